"""Broadcasting that is meant: shapes of another rank never meet by accident in this model."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array


def of_rank(x: ArrayLike, value: Array) -> Array:
    """`x` with the rank and dtype of `value`: axes of one in front, as numpy broadcasts."""
    x = jnp.asarray(x)
    return jax.lax.expand_dims(x, range(value.ndim - x.ndim)).astype(value.dtype)
