"""Cells of a patching grid: many inputs of a block, each of which differs from one clean run.

A cone is the set of states that a patch can change: its position and all later positions. All
cells that start at the same layer and position are stacked. An operation on single positions runs
once, on all positions of all cells in one row.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from implicit_reasoning import renames

Start = tuple[int, int]
"""`(layer, pos)` of the state `S[layer, pos]` that a patch replaces; layers are 0 to `depth`."""

Cones = dict[Start, Float[Array, "_cell batch _own_pos ..."]]
"""The values that differ from the clean run, by start."""


def insert_suffix(
    clean: Float[Array, "batch _pos ..."], own: Float[Array, "cell batch own_pos ..."], at: int
) -> Float[Array, "cell batch _pos ..."]:
    """Return the clean values, with those from position `at` on replaced by `own`."""
    clean = jnp.broadcast_to(clean[None], (len(own), *clean.shape)).astype(own.dtype)
    return jnp.concatenate([clean[:, :, :at], own, clean[:, :, at + own.shape[2] :]], axis=2)


def flatten_cells(cones: Cones) -> Float[Array, "1 row ..."]:
    """Put the values of all cells, examples and positions into one row."""
    return jnp.concatenate([x.reshape(1, -1, *x.shape[3:]) for x in cones.values()], axis=1)


def unflatten_cells(row: Float[Array, "1 row ..."], like: Cones) -> Cones:
    """Undo `flatten_cells`; the trailing axes of `row` may differ from those of `like`."""
    sizes = np.cumsum([np.prod(x.shape[:3]) for x in like.values()])[:-1]
    parts = jnp.split(row[0], sizes)
    return {
        start: part.reshape(*x.shape[:3], *row.shape[2:])
        for (start, x), part in zip(like.items(), parts, strict=True)
    }


__getattr__ = renames.old_names(
    __name__, {"insert": "insert_suffix", "flat": "flatten_cells", "unflat": "unflatten_cells"}
)
