"""FLOPs of the matrix products of a function, counted in its trace."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Jaxpr, jaxprs_in_params


def product_flops(function: Callable[..., Any], *args: Any) -> float:
    """Return the FLOPs of all matrix products of a function.

    The body of a scan counts once for each step. Products that are written as sums do not count,
    such as those of attention over a few positions.

    Args:
      function: a function without loops of unknown length.
      *args: its arguments. Only their shapes matter.
    """
    return float(_flops(jax.make_jaxpr(function)(*args).jaxpr))


def _flops(jaxpr: Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        assert name not in ("while", "cond"), f"the number of steps of {name} is not known"
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            factor: Any = equation.invars[0].aval
            product: Any = equation.outvars[0].aval
            total += 2 * math.prod(factor.shape[axis] for axis in contracted) * product.size
        inner = sum(map(_flops, jaxprs_in_params(params)))
        total += inner * (params["length"] if name == "scan" else 1)
    return total
