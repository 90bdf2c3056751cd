"""A dictionary in its model: what it writes takes the place of what it was trained to write.

It reads sites and writes sites, side by side in one vector (`kinds.py`), so that an autoencoder, a
transcoder and a cross-layer transcoder are spliced in alike: an edit at every site it writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool

from implicit_reasoning.dictionaries.dictionary import Finished
from implicit_reasoning.model import Edit, Params


class Sites(NamedTuple):
    """Which sites a dictionary reads and writes; equal for an autoencoder."""

    read: tuple[str, ...]
    write: tuple[str, ...]


def edits(
    finished: Finished, params: Params, sites: Sites, where: Bool[Array, " pos"]
) -> dict[str, Edit]:
    """Edits that write a dictionary's outputs at some positions.

    To be made where they are used, within one trace: their functions belong to it.

    Args:
      finished: static.
      params: its parameters.
      sites: that it reads and writes.
      where: positions at which it writes; at others all stays.
    """
    return {
        site: Edit(partial(_written, finished, sites, number), (params, where))
        for number, site in enumerate(sites.write)
    }


def ablations(value: Array | float, sites: Sites, where: Bool[Array, " pos"]) -> dict[str, Edit]:
    """Edits that write a constant there instead, [d_out] or a number: zero, or the mean."""
    parts = jnp.split(jnp.atleast_1d(value), len(sites.write)) if jnp.ndim(value) else None
    return {
        site: Edit(_constant, (value if parts is None else parts[number], where))
        for number, site in enumerate(sites.write)
    }


def _written(
    finished: Finished,
    sites: Sites,
    number: int,
    value: Array,
    seen: Mapping[str, Array],
    args: tuple[Params, Array],
) -> Array:
    """The part of what a dictionary writes that belongs to its site of a number."""
    params, where = args
    x = _side_by_side(sites, number, value, seen)
    out = finished(params, x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)
    part = jnp.split(out, len(sites.write), axis=-1)[number]
    return jnp.where(where[None, :, None], part, value)


def _side_by_side(sites: Sites, number: int, value: Array, seen: Mapping[str, Array]) -> Array:
    """What is read; later layers, whose features write nothing here, are 0 yet."""
    here = {**seen, sites.write[number]: value}
    known = [here.get(site) for site in sites.read]
    like: Any = next(part for part in known if part is not None)
    return jnp.concatenate(
        [jnp.zeros_like(like) if part is None else part for part in known], axis=-1
    )


def _constant(value: Array, seen: Mapping[str, Array], args: tuple[Array, Array]) -> Array:
    new, where = args
    return jnp.where(where[None, :, None], jnp.broadcast_to(new, value.shape), value)
