"""All cells of a patch: states, or what the parts of a block wrote, of one run put into another."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from implicit_reasoning.model import Params, Taps, Transformer
from implicit_reasoning.model.wirings import (
    Cache,
    after_attn_out,
    after_heads,
    after_mlp_out,
    patched_logits,
    state,
)


def part_names(model: Transformer) -> tuple[str, ...]:
    """Of the parts of a block, in the order of `patch_parts`."""
    return ("attention", "MLP", *(f"head {head}" for head in range(model.spec.n_heads)))


def patch_states(
    model: Transformer, params: Params, base: Cache, donor: Cache, *, only: int | None = None
) -> Float[Array, "layer pos example d_vocab"]:
    """Logits at the end of `base` with `S[layer, pos]` of `donor`, for every layer and position.

    Layer `depth` is before the final norm, which then reads the state that was put there.

    Args:
      model: static, like `only`.
      params: of both runs.
      base: the run that is patched; see `cache_sites`.
      donor: the run whose states are taken.
      only: the one position at which the two runs have another token, if there is one. States
        before it are then equal, and so are the embeddings after it: nothing is computed there.
    """
    same = _own_logits(model, params, base)

    def at(pos: int) -> Array:
        first = 0 if only in (None, pos) else 1 if pos > only else model.spec.depth + 1
        layers = range(first, model.spec.depth + 1)
        starts = {layer: state(model, donor, layer)[None, :, pos] for layer in layers}
        equal = jnp.broadcast_to(same[None], (first, *same.shape))
        if not starts:
            return equal
        return jnp.concatenate([equal, patched_logits(model, params, base, pos, starts)])

    n_pos = state(model, base, 0).shape[1]
    return jnp.stack([at(pos) for pos in range(n_pos)], axis=1)


def patch_parts(
    model: Transformer, params: Params, base: Cache, donor: Cache, *, only: int | None = None
) -> Float[Array, "block part pos example d_vocab"]:
    """Logits at the end of `base` when one part of one block writes what it did in `donor`.

    Arguments are those of `patch_states`.
    """

    def cells(block: int, pos: int) -> Array:
        name, here = f"blocks.{block}.", (model, params, base, block, pos)
        attn_out, mlp_out, z = (
            donor[name + site][:, pos] for site in ("hook_attn_out", "hook_mlp_out", "attn.hook_z")
        )
        return jnp.concatenate(
            [
                after_attn_out(*here, attn_out[None]),
                after_mlp_out(model, base, block, pos, mlp_out[None]),
                after_heads(*here, z),
            ]
        )

    same, n_parts = _own_logits(model, params, base), len(part_names(model))

    def at(pos: int) -> Array:
        if only is not None and pos < only:
            return jnp.broadcast_to(same[None, None], (model.spec.depth, n_parts, *same.shape))
        starts = {block + 1: cells(block, pos) for block in range(model.spec.depth)}
        logits = patched_logits(model, params, base, pos, starts)
        return logits.reshape(model.spec.depth, -1, *logits.shape[1:])

    n_pos = state(model, base, 0).shape[1]
    return jnp.stack([at(pos) for pos in range(n_pos)], axis=2)


def _own_logits(model: Transformer, params: Params, run: Cache) -> Float[Array, "example d_vocab"]:
    """What the run itself says at its end."""
    last = state(model, run, model.spec.depth)[:, -1]
    return model.bind(params).readout(last, Taps())


def both_ways(
    patch: Callable[[Transformer, Params, Cache, Cache], Array],
    model: Transformer,
    params: Params,
    one: Cache,
    other: Cache,
) -> Float[Array, "direction *grid"]:
    """The grid of `other` put into `one`, and the reverse; compiled once for both."""
    pairs = jax.tree.map(lambda *pair: jnp.stack(pair), (one, other), (other, one))
    grids: Array = jax.lax.map(lambda pair: patch(model, params, *pair), pairs)
    return grids
