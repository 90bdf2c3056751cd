"""The precision of the matrix products of a program.

No device is needed, because a program states the precision of each of its products.
"""

import jax
import jax.numpy as jnp

HIGHEST = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)


def products(jaxpr):
    """Yield the precision of each floating-point product in a program, and its equation."""
    for eqn in jaxpr.eqns:
        multiplies = eqn.primitive.name in ("dot_general", "conv_general_dilated")
        if multiplies and jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating):
            yield eqn.params["precision"], str(eqn)
        for inner in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")
        ):
            if hasattr(inner, "jaxpr"):
                inner = inner.jaxpr
            if hasattr(inner, "eqns"):
                yield from products(inner)


def assert_exact(function, *arguments, at_least=1):
    """Check every product of a function, and return the shapes of what it returns."""
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    found = list(products(traced.jaxpr))
    assert len(found) >= at_least
    assert all(precision == HIGHEST for precision, _ in found), [
        text for precision, text in found if precision != HIGHEST
    ]
    return shapes
