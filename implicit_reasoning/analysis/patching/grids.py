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
    model: Transformer,
    params: Params,
    base: Cache,
    donor: Cache,
    *,
    only: int | Array | None = None,
) -> Float[Array, "layer pos example d_vocab"]:
    """Logits at the end of `base` with `S[layer, pos]` of `donor`, for every layer and position.

    Layer `depth` is before the final norm, which then reads the state that was put there.

    Args:
      model: static.
      params: of both runs.
      base: the run that is patched; see `cache_sites`.
      donor: the run whose states are taken.
      only: the one position at which the two runs have another token, if there is one; it may be
        traced. Its embedding is then all that differs, so that putting it into `base` makes it
        `donor`; other embeddings, and states before it, change nothing. None of this is computed.
    """
    base_says, donor_says = (_own_logits(model, params, run) for run in (base, donor))

    def cones(pos: int, first: int) -> Array:
        layers = range(first, model.spec.depth + 1)
        starts = {layer: state(model, donor, layer)[None, :, pos] for layer in layers}
        return patched_logits(model, params, base, pos, starts)

    def at(pos: int) -> Array:
        if only is None:
            return cones(pos, 0)
        same = jnp.broadcast_to(base_says[None], (model.spec.depth, *base_says.shape))
        later = jax.lax.cond(pos >= only, lambda: cones(pos, 1), lambda: same)
        return jnp.concatenate([jnp.where(pos == only, donor_says, base_says)[None], later])

    n_pos = state(model, base, 0).shape[1]
    return jnp.stack([at(pos) for pos in range(n_pos)], axis=1)


def patch_parts(
    model: Transformer,
    params: Params,
    base: Cache,
    donor: Cache,
    *,
    only: int | Array | None = None,
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

    says = _own_logits(model, params, base)
    same = jnp.broadcast_to(says, (model.spec.depth, len(part_names(model)), *says.shape))

    def patched(pos: int) -> Array:
        starts = {block + 1: cells(block, pos) for block in range(model.spec.depth)}
        logits = patched_logits(model, params, base, pos, starts)
        return logits.reshape(same.shape)

    def at(pos: int) -> Array:
        if only is None:
            return patched(pos)
        return jax.lax.cond(pos >= only, lambda: patched(pos), lambda: same)

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
