"""The suffix-and-cone wiring: of a patched forward pass, only what the patch can change.

A state exchanged at (layer, position) reaches later layers, there and at later positions, and
nothing else. All other keys and values are those of the clean run, whose sites are the cache. And
whatever is exchanged inside a block at one position (what attention or the MLP wrote, the mix of a
head) changes nothing but the state after that block, there: each of them is a start of such a cone.

Layers are unrolled, and the cells of a grid join the batch at the layer where they start: a grid of
`depth` layers runs each block once. (A traced layer number would run all blocks for every cell.)
"""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from implicit_reasoning.errors import InputError
from implicit_reasoning.model.sites import Taps
from implicit_reasoning.model.transformer import Block, Params, Transformer

Cache = Mapping[str, Array]
"""Values of the sites of a run, as `Transformer.forward` returns them."""

_CONE = ("hook_resid_pre", "attn.hook_k", "attn.hook_v")
_INSIDE = ("attn.hook_z", "hook_attn_out", "hook_resid_mid", "hook_mlp_out")


def cache_sites(model: Transformer, *, inside: bool = False) -> tuple[str, ...]:
    """The sites that `patched_logits` reads; with `inside`, those of starts inside blocks too."""
    names = _CONE + (_INSIDE if inside else ())
    depth = model.spec.depth
    blocks = tuple(f"blocks.{layer}.{name}" for layer in range(depth) for name in names)
    return (*blocks, f"blocks.{depth - 1}.hook_resid_post")


def state(model: Transformer, cache: Cache, layer: int) -> Float[Array, "batch pos d_model"]:
    """`S[layer]` of a cache: the residual after `layer` blocks, before the final norm."""
    last = layer == model.spec.depth
    return cache[f"blocks.{layer - 1}.hook_resid_post" if last else f"blocks.{layer}.{_CONE[0]}"]


def patched_logits(
    model: Transformer,
    params: Params,
    cache: Cache,
    pos: int,
    starts: Mapping[int, Float[Array, "cell batch d_model"]],
    *,
    end: int | None = None,
) -> Float[Array, "cells batch d_vocab"]:
    """Logits at one position, for states put in place of `S[layer, pos]`, one after the other.

    Args:
      model: static, like `pos`, `end` and the layers of `starts`.
      params: of the run that is patched.
      cache: of the run that is patched; see `cache_sites`.
      pos: the position that is patched.
      starts: by layer, from 0 to `depth`, the states that are put there: a cell each.
      end: where logits are wanted; the last position of the cache by default.

    Returns:
      Of every cell, by ascending layer; what `forward` gives at `end` with the same edit.

    Raises:
      InputError: a layer the model does not have, or a position after `end`.
    """
    depth, n_pos = model.spec.depth, state(model, cache, 0).shape[1]
    end = n_pos - 1 if end is None else end
    if not 0 <= pos <= end < n_pos:
        raise InputError(f"cannot patch position {pos} of {n_pos} for logits at position {end}")
    if unknown := [layer for layer in starts if not 0 <= layer <= depth]:
        raise InputError(f"cannot patch layer {unknown[0]}; S has the layers 0 to {depth}")
    network, batch = model.bind(params), state(model, cache, 0).shape[0]
    rows = jnp.zeros((0, end + 1 - pos, model.spec.d_model))  # cells and batch as one axis
    for layer in range(depth):
        if layer in starts:
            clean = state(model, cache, layer)[:, pos + 1 : end + 1]
            rows = jnp.concatenate([rows, _joined(starts[layer], clean)])
        if len(rows):
            prefix = _repeated(cache, layer, pos, len(rows) // batch)
            last = layer == depth - 1
            rows = run_block(network.block(layer), rows, prefix=prefix, at_end=last)
    rows = rows[:, -1]
    if depth in starts:
        # After the last block nobody reads the other positions any more.
        clean = jnp.broadcast_to(state(model, cache, depth)[:, end], starts[depth].shape)
        final = starts[depth] if pos == end else clean
        rows = jnp.concatenate([rows, final.reshape(-1, model.spec.d_model)])
    logits = network.readout(rows, Taps())
    return logits.reshape(-1, batch, logits.shape[-1])


def run_block(
    block: Block,
    resid: Float[Array, "rows suffix d_model"],
    *,
    prefix: tuple[Array, Array] | None = None,
    at_end: bool = False,
) -> Float[Array, "rows query_pos d_model"]:
    """One block over the last positions.

    Args:
      block: to run.
      resid: what it reads there.
      prefix: keys and values of the positions before, `[rows, prefix_pos, head, d_head]`.
      at_end: queries, output and MLP for the last position only, as the last block of a model
        needs them: a third of its work where there are three positions.
    """
    normalized = block.ln1(resid, Taps())
    first = resid.shape[1] - 1 if at_end else 0
    before = 0 if prefix is None else prefix[0].shape[1]
    positions = before + jnp.arange(first, resid.shape[1])
    attn_out = block.attn(
        normalized[:, first:],
        normalized,
        normalized,
        Taps(),
        query_positions=jnp.broadcast_to(positions, (len(resid), len(positions))),
        prefix=prefix,
    )
    return block.after_attention(resid[:, first:], attn_out, Taps())


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
    return block.after_attention(resid, written, Taps()).reshape(attn_out.shape)


def after_mlp_out(
    model: Transformer,
    cache: Cache,
    layer: int,
    pos: int,
    mlp_out: Float[Array, "cell batch d_model"],
) -> Float[Array, "cell batch d_model"]:
    """`S[layer + 1, pos]` when block `layer` has other values at `hook_mlp_out` there."""
    return cache[f"blocks.{layer}.hook_resid_mid"][None, :, pos] + mlp_out


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
    own = cache[f"blocks.{layer}.attn.hook_z"][:, pos]
    one = jnp.eye(own.shape[1], dtype=bool)[:, None, :, None]
    mixed = jnp.where(one, z[None], own[None])
    attn = model.bind(params).block(layer).attn
    written = attn.output(mixed.reshape(-1, 1, *own.shape[1:]), Taps())
    written = written.reshape(*mixed.shape[:2], -1)
    return after_attn_out(model, params, cache, layer, pos, written)


def _joined(
    start: Float[Array, "cell batch d_model"], clean: Float[Array, "batch later d_model"]
) -> Float[Array, "rows suffix d_model"]:
    """Patched states, followed by the clean ones of later positions."""
    later = jnp.broadcast_to(clean[None], (len(start), *clean.shape))
    both = jnp.concatenate([start[:, :, None].astype(clean.dtype), later], axis=2)
    return both.reshape(-1, *both.shape[2:])


def _repeated(cache: Cache, layer: int, pos: int, cells: int) -> tuple[Array, Array]:
    """The clean keys and values before `pos`, once for every cell."""
    keys, values = (cache[f"blocks.{layer}.{name}"][:, :pos] for name in _CONE[1:])
    return jnp.tile(keys, (cells, 1, 1, 1)), jnp.tile(values, (cells, 1, 1, 1))
