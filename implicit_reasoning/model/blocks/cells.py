"""Cells of a grid of patches: many inputs of a block, which each differ from one clean run.

A cone is what a patch can change: the states of its position and of all later ones. All cells that
start at one layer and position are stacked. Operations on single positions run on all cells of all
starts at once, in one row.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from implicit_reasoning import renames

Start = tuple[int, int]
"""Layer (0 to `depth`) and position of `S[layer, pos]`, where other states are put."""

Cones = dict[Start, Float[Array, "_cell batch _own_pos ..."]]
"""By start, the values that differ from the clean run."""


def insert_suffix(
    clean: Float[Array, "batch _pos ..."], own: Float[Array, "cell batch own_pos ..."], at: int
) -> Float[Array, "cell batch _pos ..."]:
    """The clean values, with `own` in their place from position `at` on."""
    clean = jnp.broadcast_to(clean[None], (len(own), *clean.shape)).astype(own.dtype)
    return jnp.concatenate([clean[:, :, :at], own, clean[:, :, at + own.shape[2] :]], axis=2)


def flatten_cells(cones: Cones) -> Float[Array, "1 row ..."]:
    """All cells, examples and positions in one row."""
    return jnp.concatenate([x.reshape(1, -1, *x.shape[3:]) for x in cones.values()], axis=1)


def unflatten_cells(row: Float[Array, "1 row ..."], like: Cones) -> Cones:
    """The inverse of `flat`, for any last axes."""
    sizes = np.cumsum([np.prod(x.shape[:3]) for x in like.values()])[:-1]
    parts = jnp.split(row[0], sizes)
    return {
        start: part.reshape(*x.shape[:3], *row.shape[2:])
        for (start, x), part in zip(like.items(), parts, strict=True)
    }


__getattr__ = renames.old_names(
    __name__, {"insert": "insert_suffix", "flat": "flatten_cells", "unflat": "unflatten_cells"}
)
