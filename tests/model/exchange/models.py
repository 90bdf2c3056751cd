"""Models in which every parameter changes the output, and specs for property tests."""

import jax
import numpy as np
from hypothesis import strategies as st

from implicit_reasoning.model import Spec, Transformer

SPEC = Spec(d_vocab=23, n_ctx=4, n_layers=2, d_model=16, n_heads=4, d_mlp=24)


def filled(model, seed=0):
    """Return parameters without initial values: no bias is zero, and no norm is one.

    They are drawn by numpy and as large as trained parameters, so that exchanging two of them
    changes the logits.
    """
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    drawn = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
    return jax.device_put(drawn)  # `jnp.asarray` would compile a program for every shape


def initial(model, seed=0):
    """Return initial parameters, with biases 0 and norms 1, without compiling `init`."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == "w" or name.startswith("b"):
            return np.full(leaf.shape, name == "w", np.float32)
        return rng.normal(0, model.spec.init_std, leaf.shape).astype(np.float32)

    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.device_put(jax.tree_util.tree_map_with_path(draw, shapes))


def tokens_for(spec, rows=5, seed=1):
    return np.random.default_rng(seed).integers(0, spec.d_vocab, (rows, spec.n_ctx), np.int32)


def assert_equal(params, others):
    assert jax.tree.structure(params) == jax.tree.structure(others)
    jax.tree.map(np.testing.assert_array_equal, params, others)


def assert_same_logits(ours, theirs, tolerance=1e-4):
    """Check that the logits agree, and that they are not close to zero."""
    assert np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=tolerance)


@st.composite
def specs(draw, **fixed):
    n_heads = draw(st.integers(1, 3))
    return Spec(
        **{
            "d_vocab": draw(st.integers(2, 9)),
            "n_ctx": draw(st.integers(1, 4)),
            "n_layers": draw(st.integers(1, 2)),
            "d_model": n_heads * draw(st.integers(1, 4)),
            "n_heads": n_heads,
            "head_width": draw(st.sampled_from([0, 0, 5])),
            "d_mlp": draw(st.integers(1, 9)),
            "n_loops": draw(st.integers(1, 2)),
            "act_fn": draw(st.sampled_from(["gelu_new", "relu"])),
            "tied": draw(st.booleans()),
            "eps": draw(st.sampled_from([1e-5, 1e-2])),
            **{name: draw(strategy) for name, strategy in fixed.items()},
        }
    )


def logits_of(model: Transformer, params, tokens):
    # One program per model compiles much faster than single operations.
    return np.asarray(jax.jit(lambda p: model.forward(p, tokens)[0])(params))
