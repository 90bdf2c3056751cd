"""Splice a dictionary into a model by replacing activations with the dictionary's outputs.

Splicing adds an edit to each hook site that the dictionary writes. Splicing works in the same way
for autoencoders, transcoders and cross-layer transcoders. The edit of a site `s` adds two hook
sites, which can be listed, edited and returned like hook sites of the model:

- `s.hook_acts`, [batch, pos, d_sae], contains the feature activations that the dictionary decodes;
- `s.hook_error`, with the shape of `s`, contains the reconstruction error: the model's value of `s`
  minus the dictionary's output for unedited activations. This hook site exists only with
  `keep_error=True`. The error is then added to the dictionary's output, so the model's outputs
  change only if activations or errors are edited.

For a cross-layer transcoder, `hook_acts` of every written site contains the features of all layers.
The features of layers after the site's layer are 0. To change a feature everywhere, edit
`hook_acts` at all written sites.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool

from implicit_reasoning.dictionaries.dictionary import InferenceDictionary
from implicit_reasoning.model import Edit, HookContext, Params, mask

_ACTS = ("batch", "pos", "d_sae")
_RESID = ("batch", "pos", "d_model")


class Sites(NamedTuple):
    """Names of the hook sites that a dictionary reads and writes.

    For an autoencoder, `read` and `write` are equal.
    """

    read: tuple[str, ...]
    write: tuple[str, ...]


class _Splice(NamedTuple):
    """The static arguments of one edit: the dictionary, its sites, and which site is written."""

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
    """Return edits that replace activations by a dictionary's outputs at some positions.

    Args:
      dictionary: the dictionary, which is static under `jax.jit`.
      params: the dictionary's parameters.
      sites: names of the hook sites that the dictionary reads and writes.
      where: bool [pos], true at the positions where values are replaced.
      keep_error: whether to add the reconstruction error to the output. If true, the edit also has
        the hook site `hook_error`.

    Returns:
      One edit per written hook site, keyed by the name of the site.
    """
    adds = (("hook_acts", _ACTS), ("hook_error", _RESID))[: 1 + keep_error]
    return {
        site: Edit(
            _write, (params, where), _Splice(dictionary, sites, number, keep_error), adds=adds
        )
        for number, site in enumerate(sites.write)
    }


def ablations(value: Array | float, sites: Sites, where: Bool[Array, " pos"]) -> dict[str, Edit]:
    """Return edits that replace activations by a constant at some positions.

    Args:
      value: the constant, which is a number such as 0 or an array [d_out] such as a mean over
        states.
      sites: hook sites of a dictionary. The edits replace the activations at `sites.write`.
      where: bool [pos], true at the positions where values are replaced.
    """
    parts = jnp.split(jnp.atleast_1d(value), len(sites.write)) if jnp.ndim(value) else None
    return {
        site: Edit(mask, (where[:, None], value if parts is None else parts[number]))
        for number, site in enumerate(sites.write)
    }


def _write(value: Array, hooks: HookContext, args: tuple[Params, Array], splice: _Splice) -> Array:
    """Replace the value of a site at the chosen positions by the site's part of the output."""
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
    """Concatenate the values of all read sites.

    The values of later layers, which are not known yet, are replaced by 0. Their features do not
    write to this site.
    """
    here, read = splice.sites.write[splice.number], splice.sites.read
    known = {here: value} | {s: hooks.read(s) for s in read if s != here and hooks.passed(s)}
    first = known[read[0]] if read[0] in known else hooks.read(read[0])
    return jnp.concatenate([known.get(site, jnp.zeros_like(first)) for site in read], axis=-1)
