"""Patch the query, key or value of each head of a donor run into a base run, one at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from implicit_reasoning.model import Edit, Params, Transformer, mask, set_to
from implicit_reasoning.model.cones import Cache
from implicit_reasoning.model.wirings import forward_at

PROJECTIONS = ("query", "key", "value")
"""Labels of the axis `projection` of `patch_projections`."""

_SITES = ("hook_q", "hook_k", "hook_v")


def projection_sites(model: Transformer) -> tuple[str, ...]:
    """Return the names of the sites (hook points) of queries, keys and values in all blocks."""
    return tuple(f"blocks.{n}.attn.{site}" for n in range(model.spec.depth) for site in _SITES)


def patch_projections(
    model: Transformer, params: Params, base: Cache, donor: Cache
) -> Float[Array, "block projection head pos example d_vocab"]:
    """Patch the query, key or value of each head at each position, one at a time.

    Args:
      model: the model, with GPT-2's blocks; static.
      params: parameters of both runs.
      base: cached activations of the base run, from `forward_at`, at `projection_sites` and at
        `hook_resid_pre` of every block.
      donor: cached activations of the donor run, at the same sites as `base`.

    Returns:
      The logits at the last position after each patch.
    """
    blocks = [_in_block(model, params, base, donor, block) for block in range(model.spec.depth)]
    return jnp.stack(blocks)


def _in_block(
    model: Transformer, params: Params, base: Cache, donor: Cache, block: int
) -> Float[Array, "projection head pos example d_vocab"]:
    """Return the logits of all patches of one block.

    The block's input is that of the base run. The values of earlier blocks are therefore not used,
    and the compiler removes them.
    """
    start = base[f"blocks.{block}.hook_resid_pre"]
    tokens = jnp.zeros(start.shape[:2], jnp.int32)
    sites = [f"blocks.{block}.attn.{name}" for name in _SITES]
    shape = (model.spec.n_heads, start.shape[1])
    cells = jnp.eye(shape[0] * shape[1], dtype=bool).reshape(-1, 1, *shape, 1)
    cells = cells.swapaxes(2, 3)  # [cell, example, pos, head, d_head]

    def patched(projection: Array) -> Array:
        def one(cell: Array) -> Array:
            edits = {f"blocks.{block}.hook_resid_pre": Edit(set_to, start)}
            for number, site in enumerate(sites):
                # The last block may have queries at the last position only.
                here = cell[:, -base[site].shape[1] :] & (projection == number)
                edits[site] = Edit(mask, (here, donor[site]))
            return forward_at(model, params, tokens, edits=edits)[0][:, 0]

        return jax.vmap(one)(cells)

    logits: Array = jax.lax.map(patched, jnp.arange(len(sites)))
    return logits.reshape(len(sites), *shape, *logits.shape[2:])
