"""Short wirings: a forward pass whose last block is trimmed; a block with another value in it.

Whatever is exchanged inside a block at one position (what attention or the MLP wrote, the mix of a
head) changes nothing but the state after that block, there: each is a start of a cone (`cones`).
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from implicit_reasoning.model.cones import Cache, state, value_at
from implicit_reasoning.model.edits import Edits, HookContext
from implicit_reasoning.model.transformer import Block, Params, Transformer


def forward_at(
    model: Transformer,
    params: Params,
    tokens: Int[Array | np.ndarray, "batch pos"],
    positions: Int[Array, "batch slot"] | None = None,
    *,
    edits: Edits | None = None,
    sites: Collection[str] = (),
) -> tuple[Float[Array, "batch slot d_vocab"], dict[str, Array]]:
    """`forward`'s logits at some positions, by default the last; the last block runs only there.

    The last block's keys and values are needed everywhere, its queries, output, MLP and the
    unembedding only where somebody reads them: with 3 positions and one answer this saves two
    thirds of the last block and of the unembedding. Its sites hold these positions only.

    Raises:
      InputError: a token (if tokens are not traced) or a site that the model does not have, or an
        edited or wanted site that this wiring does not pass.
    """
    hooks = model.hook_context(edits, sites)
    network, last = model.bind(params), model.spec.depth - 1
    resid = network.embedding(tokens, hooks)
    for layer in range(last):
        resid = network.block(layer)(resid, hooks.within(f"blocks.{layer}."))
    resid = run_block_at(network.block(last), resid, positions, hooks.within(f"blocks.{last}."))
    return network.readout(resid, hooks), hooks.results()


def run_block_at(
    block: Block,
    resid: Float[Array, "batch pos d_model"],
    positions: Int[Array, "batch slot"] | None,
    hooks: HookContext,
) -> Float[Array, "batch slot d_model"]:
    """One block, with queries, output and MLP at some positions only; by default at the last."""
    resid = hooks("hook_resid_pre", resid)
    normalized = block.ln1(resid, hooks.within("ln1."))
    if positions is None:
        here, positions = _last, jnp.full((1, 1), resid.shape[1] - 1)
    else:
        here = partial(jnp.take_along_axis, indices=positions[..., None], axis=1)
    attn_out = block.attn(
        here(normalized), normalized, normalized, hooks.within("attn."), query_positions=positions
    )
    return block.after_attention(here(resid), attn_out, hooks)


def _last(x: Float[Array, "batch pos d_model"]) -> Float[Array, "batch 1 d_model"]:
    return x[:, -1:]


def after_attn_out(
    model: Transformer,
    params: Params,
    cache: Cache,
    layer: int,
    pos: int,
    attn_out: Float[Array, "cell batch d_model"],
) -> Float[Array, "cell batch d_model"]:
    """`S[layer + 1, pos]` when block `layer` has other values at `hook_attn_out` there."""
    block = model.bind(params).block(layer)
    resid = jnp.broadcast_to(state(model, cache, layer)[:, pos], attn_out.shape)
    resid, written = (x.reshape(-1, 1, x.shape[-1]) for x in (resid, attn_out))
    return block.after_attention(resid, written, HookContext()).reshape(attn_out.shape)


def after_mlp_out(
    model: Transformer,
    cache: Cache,
    layer: int,
    pos: int,
    mlp_out: Float[Array, "cell batch d_model"],
) -> Float[Array, "cell batch d_model"]:
    """`S[layer + 1, pos]` when block `layer` has other values at `hook_mlp_out` there."""
    return value_at(model, cache, f"blocks.{layer}.hook_resid_mid", pos)[None] + mlp_out


def after_heads(
    model: Transformer,
    params: Params,
    cache: Cache,
    layer: int,
    pos: int,
    z: Float[Array, "batch head d_head"],
) -> Float[Array, "head batch d_model"]:
    """`S[layer + 1, pos]` when one head of block `layer` has other values at `attn.hook_z` there.

    A cell is a head. (To exchange a head's `attn.hook_result` is the same: the map between the two
    is linear and the head's own.)
    """
    own = value_at(model, cache, f"blocks.{layer}.attn.hook_z", pos)
    one = jnp.eye(own.shape[1], dtype=bool)[:, None, :, None]
    mixed = jnp.where(one, z[None], own[None])
    attn = model.bind(params).block(layer).attn
    written = attn.output(mixed.reshape(-1, 1, *own.shape[1:]), HookContext())
    written = written.reshape(*mixed.shape[:2], -1)
    return after_attn_out(model, params, cache, layer, pos, written)
