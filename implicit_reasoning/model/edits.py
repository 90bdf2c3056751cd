"""Edits: what may be done to a value on its way through a site.

An `Edit` is a *static* function together with *traced* arguments, so that a grid of a thousand
edits of one kind compiles once: `jax.vmap` over the arguments does the rest. The function must
therefore live at module level (a fresh lambda is a new function, and traces again).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from implicit_reasoning.model.rank import of_rank

EditFn = Callable[[Array, Mapping[str, Array], Any], Array]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["args"], meta_fields=["fn"])
@dataclass(frozen=True)
class Edit:
    """Replace the value at a site by `fn(value, seen, args)`.

    Attributes:
      fn: static; `value` is the site's array, `seen` maps the names of the sites that the wiring
        has passed so far to their (edited) values, `args` is the field below. It returns an array
        of the shape of `value`.
      args: any pytree of arrays; traced, so it may be mapped, differentiated and sharded.
    """

    fn: EditFn
    args: Any = None


def set_to(value: Array, seen: Mapping[str, Array], new: ArrayLike) -> Array:
    """The value becomes `new` (broadcast to the site's shape)."""
    return jnp.broadcast_to(of_rank(new, value), value.shape)


def add(value: Array, seen: Mapping[str, Array], term: ArrayLike) -> Array:
    """Add `term`: a steering vector, the difference of two runs, a gradient's perturbation."""
    return value + of_rank(term, value)


def scale(value: Array, seen: Mapping[str, Array], factor: ArrayLike) -> Array:
    """Multiply by `factor`; 0 is a zero ablation, broadcasting chooses heads or positions."""
    return value * of_rank(factor, value)


def mask(value: Array, seen: Mapping[str, Array], args: tuple[ArrayLike, ArrayLike]) -> Array:
    """Where the first argument is true the value becomes the second: `args = (where, new)`.

    The patch of one (position, head) cell is a mask; a grid of cells is a stack of masks.
    """
    where, new = args
    where = of_rank(where, value).astype(bool)
    return jnp.where(where, of_rank(new, value), value)


def drop(value: Array, seen: Mapping[str, Array], args: tuple[Array, Array]) -> Array:
    """Inverted dropout, `args = (key, rate)`: zero with probability `rate`, rescale the rest."""
    key, rate = args
    keep = jax.random.bernoulli(key, 1 - rate, value.shape)
    return jnp.where(keep, value / (1 - rate).astype(value.dtype), 0)
