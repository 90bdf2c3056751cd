"""Cells of a patching grid: a cell is a run in which one state of a clean run is replaced.

The cone of a cell is the set of states that the patch can change, at the patched position and at
all later positions. All cells with equal layer and position are stacked into one array. To run an
operation that treats every position separately, all positions of all cells are concatenated into
one row.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from implicit_reasoning import renames

Start = tuple[int, int]
"""The layer and position `(layer, pos)` of the state that a patch replaces.

`S[layer, pos]` is the residual stream after `layer` blocks, so layers are 0 to `depth`.
"""

Cones = dict[Start, Float[Array, "_cell batch _own_pos ..."]]
"""For each start, the values of its cells that differ from the clean run."""


def insert_suffix(
    clean: Float[Array, "batch _pos ..."], own: Float[Array, "cell batch own_pos ..."], at: int
) -> Float[Array, "cell batch _pos ..."]:
    """Return the clean values, with `own` in place of positions `at` to `at + own_pos - 1`."""
    clean = jnp.broadcast_to(clean[None], (len(own), *clean.shape)).astype(own.dtype)
    return jnp.concatenate([clean[:, :, :at], own, clean[:, :, at + own.shape[2] :]], axis=2)


def flatten_cells(cones: Cones) -> Float[Array, "1 row ..."]:
    """Concatenate the values of all cells (patched runs), examples and positions into one row."""
    return jnp.concatenate([x.reshape(1, -1, *x.shape[3:]) for x in cones.values()], axis=1)


def unflatten_cells(row: Float[Array, "1 row ..."], like: Cones) -> Cones:
    """Undo `flatten_cells`: split a row into the cells, examples and positions of `like`.

    The remaining axes of the result equal the remaining axes of `row`.
    """
    sizes = np.cumsum([np.prod(x.shape[:3]) for x in like.values()])[:-1]
    parts = jnp.split(row[0], sizes)
    return {
        start: part.reshape(*x.shape[:3], *row.shape[2:])
        for (start, x), part in zip(like.items(), parts, strict=True)
    }


__getattr__ = renames.old_names(
    __name__, {"insert": "insert_suffix", "flat": "flatten_cells", "unflat": "unflatten_cells"}
)
