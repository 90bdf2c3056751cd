"""A dictionary in its model: its output replaces the values that it was trained to predict.

A dictionary reads sites and writes sites, side by side in one vector (`architectures.py`), so that
an autoencoder, a transcoder and a cross-layer transcoder are spliced in alike: an edit at every
site that is written. The edit at the site `s` adds sites of its own, which `forward` lists, edits
and returns like those of the model:

- `s.hook_acts`, [batch, pos, d_sae]: the activations that are decoded;
- `s.hook_error`, the shape of `s`, if the error is kept: the difference between the value and the
  dictionary's output for unedited activations. It is added to the output, so the model is unchanged
  until activations or errors are edited.

A cross-layer transcoder has all its activations at every site that it writes; at each of them those
of later layers are 0. Edit them at all these sites to change a feature everywhere.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool

from implicit_reasoning.dictionaries.dictionary import InferenceDictionary
from implicit_reasoning.model import Edit, HookContext, Params

_ACTS = ("batch", "pos", "d_sae")
_RESID = ("batch", "pos", "d_model")


class Sites(NamedTuple):
    """Which sites a dictionary reads and writes; equal for an autoencoder."""

    read: tuple[str, ...]
    write: tuple[str, ...]


class _Splice(NamedTuple):
    """The constants of one edit: the dictionary, and which of its outputs is written."""

    dictionary: InferenceDictionary
    sites: Sites
    number: int
    keep_error: bool


def edits(
    dictionary: InferenceDictionary,
    params: Params,
    sites: Sites,
    where: Bool[Array, " pos"],
    *,
    keep_error: bool = False,
) -> dict[str, Edit]:
    """Edits that write a dictionary's outputs at some positions.

    Args:
      dictionary: static.
      params: its parameters.
      sites: that it reads and writes.
      where: positions at which it writes; the others keep their values.
      keep_error: whether the difference to the true value is added, as the site `hook_error`.
    """
    adds = (("hook_acts", _ACTS), ("hook_error", _RESID))[: 1 + keep_error]
    return {
        site: Edit(
            _write, (params, where), _Splice(dictionary, sites, number, keep_error), adds=adds
        )
        for number, site in enumerate(sites.write)
    }


def ablations(value: Array | float, sites: Sites, where: Bool[Array, " pos"]) -> dict[str, Edit]:
    """Edits that write a constant there instead, [d_out] or a number: zero, or the mean."""
    parts = jnp.split(jnp.atleast_1d(value), len(sites.write)) if jnp.ndim(value) else None
    return {
        site: Edit(_constant, (value if parts is None else parts[number], where))
        for number, site in enumerate(sites.write)
    }


def _write(value: Array, hooks: HookContext, args: tuple[Params, Array], splice: _Splice) -> Array:
    """The part of the dictionary's output that belongs to this site."""
    params, where = args
    x = _side_by_side(splice, value, hooks)
    acts = splice.dictionary.encode(params, x.reshape(-1, x.shape[-1]))
    edited = hooks("hook_acts", acts.reshape(*x.shape[:-1], -1))
    out = _decoded(splice, params, edited, x)
    if splice.keep_error:
        unedited = _decoded(splice, params, acts, x)
        out += hooks("hook_error", value - unedited)
    return jnp.where(where[None, :, None], out, value)


def _decoded(splice: _Splice, params: Params, acts: Array, x: Array) -> Array:
    flat = acts.reshape(-1, acts.shape[-1]), x.reshape(-1, x.shape[-1])
    out = splice.dictionary.decode(params, *flat).reshape(*x.shape[:-1], -1)
    return jnp.split(out, len(splice.sites.write), axis=-1)[splice.number]


def _side_by_side(splice: _Splice, value: Array, hooks: HookContext) -> Array:
    """The inputs; those of later layers, whose features do not write here, are 0."""
    here, read = splice.sites.write[splice.number], splice.sites.read
    known = {here: value} | {s: hooks.read(s) for s in read if s != here and hooks.passed(s)}
    first = known[read[0]] if read[0] in known else hooks.read(read[0])
    return jnp.concatenate([known.get(site, jnp.zeros_like(first)) for site in read], axis=-1)


def _constant(value: Array, hooks: HookContext, args: tuple[Array, Array]) -> Array:
    new, where = args
    return jnp.where(where[None, :, None], jnp.broadcast_to(new, value.shape), value)
