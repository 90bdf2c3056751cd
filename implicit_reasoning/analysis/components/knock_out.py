"""Knock out attention edges, and match each edge with another edge of similar attention.

An edge is knocked out in one block, or in all blocks. A knock-out in one block changes only the
state of its query position after the block, so only later states are computed again.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.analysis.patching.outcomes import margin, outcomes_of
from implicit_reasoning.model import Edit, HookContext, Params, Transformer, mask
from implicit_reasoning.model.blocks import GPT2Block
from implicit_reasoning.model.cones import Cache, cache_sites, patched_logits


def knock_out_sites(model: Transformer) -> tuple[str, ...]:
    """Return the names of the sites that knock-outs read in the unchanged run."""
    names = ("attn.hook_attn_scores", "attn.hook_v", "attn.hook_z")
    inside = [f"blocks.{block}.{name}" for block in range(model.spec.depth) for name in names]
    return tuple(dict.fromkeys((*cache_sites(model), *inside)))


def existing_edges(n_pos: int) -> Bool[np.ndarray, "query_pos key_pos"]:
    """Return which edges can be knocked out. The first position attends to itself only."""
    found: np.ndarray = np.tril(np.ones((n_pos, n_pos), bool)) & (np.arange(n_pos) > 0)[:, None]
    return found


def knock_outs(model: Transformer, params: Params, example: dict[str, Array]) -> dict[str, Array]:
    """Compute the outcomes of all knock-outs.

    Args:
      model: the model; static.
      params: parameters of one checkpoint.
      example: arrays by name, with the example axis first: `tokens`, the right token `answer`, and
        another possible answer `other` (-1 if there is none).

    Returns:
      `fraction` [outcome, block, cut, query_pos, key_pos, example] and `margin` (the same without
      the outcome); with the prefix `everywhere_`, for edges that are knocked out in all blocks,
      without the axes of blocks and cuts. Edges that do not exist have meaningless values.
    """
    tokens, answer, other = (example[name] for name in ("tokens", "answer", "other"))
    n_pos = tokens.shape[1]
    logits, cache = model.forward(params, tokens, sites=knock_out_sites(model))

    def outcomes(grid: Float[Array, "*cell example d_vocab"]) -> dict[str, Array]:
        return {"fraction": outcomes_of(grid, answer, other), "margin": margin(grid, answer)}

    def cut(number: Array) -> dict[str, Array]:
        heads = jnp.arange(model.spec.n_heads)
        of_cut = (heads == number) | (number == len(heads))
        return outcomes(_without_edges(model, params, cache, logits[:, -1], of_cut))

    def everywhere(edge: Int[Array, " 2"]) -> dict[str, Array]:
        here = (jnp.arange(n_pos)[:, None] == edge[0]) & (jnp.arange(n_pos)[None] == edge[1])
        without = Edit(mask, (here, -jnp.inf))
        edits = {f"blocks.{n}.attn.hook_attn_scores": without for n in range(model.spec.depth)}
        return outcomes(model.forward(params, tokens, edits=edits)[0][:, -1])

    by_cut = jax.lax.map(cut, jnp.arange(model.spec.n_heads + 1))
    places = np.argwhere(existing_edges(n_pos))
    by_edge = jax.lax.map(everywhere, jnp.asarray(places))

    def square(values: Array) -> Array:
        """Put the values of edges [edge, ...] into [..., query_pos, key_pos, example]."""
        whole = jnp.zeros((n_pos, n_pos, *values.shape[1:]), values.dtype)
        whole = whole.at[places[:, 0], places[:, 1]].set(values)
        return jnp.moveaxis(whole, (0, 1), (-3, -2))

    return {
        "fraction": jnp.moveaxis(by_cut["fraction"], 0, 2),
        "margin": jnp.moveaxis(by_cut["margin"], 0, 1),
        **{f"everywhere_{name}": square(values) for name, values in by_edge.items()},
    }


def _without_edges(
    model: Transformer,
    params: Params,
    cache: Cache,
    logits: Float[Array, "example d_vocab"],
    heads: Bool[Array, " head"],
) -> Float[Array, "block query_pos key_pos example d_vocab"]:
    """Return the logits after the knock-out of each edge in some heads of each block.

    A knock-out changes the state of its query position after the block. All later changes are
    computed from there.

    Args:
      model: the model; static.
      params: parameters of one checkpoint.
      cache: site values of the run without a knock-out.
      logits: the logits of this run at the last position.
      heads: the heads in which the edge is knocked out.
    """
    depth, n_pos = model.spec.depth, cache["blocks.0.hook_resid_pre"].shape[1]
    network, starts = model.bind(params), {}
    for number in range(depth):
        block = network.block(number)
        assert isinstance(block, GPT2Block)  # `examples` has checked it
        # The last block is read at the last position only.
        for query in range(1 if number < depth - 1 else n_pos - 1, n_pos):
            resid, scores, v, z = (
                cache[f"blocks.{number}.{name}"]
                for name in (
                    "hook_resid_pre",
                    "attn.hook_attn_scores",
                    "attn.hook_v",
                    "attn.hook_z",
                )
            )
            pattern = _without_each_key(scores[:, :, query, : query + 1]).astype(v.dtype)
            without = jnp.einsum("cbhk,bkhe->cbhe", pattern, v[:, : query + 1], precision="highest")
            mixed = jnp.where(heads[None, None, :, None], without, z[None, :, query])
            rows = mixed.reshape(-1, 1, *mixed.shape[2:])
            attn_out = block.attn.output(rows, HookContext())
            before = jnp.broadcast_to(resid[None, :, query], (query + 1, *resid[:, query].shape))
            before = before.reshape(-1, 1, before.shape[-1])
            after = block.after_attention(before, attn_out, HookContext())
            starts[number + 1, query] = after.reshape(*mixed.shape[:2], -1)
    found = patched_logits(model, params, cache, starts)
    same = jnp.broadcast_to(logits[None], (n_pos, *logits.shape))

    def padded(at: tuple[int, int]) -> Array:
        own = found.get(at, same[:0])
        return jnp.concatenate([own, same[len(own) :]])

    grid = [[padded((number + 1, query)) for query in range(n_pos)] for number in range(depth)]
    return jnp.stack([jnp.stack(row) for row in grid])


def _without_each_key(
    scores: Float[Array, "example head key_pos"],
) -> Float[Array, "key_pos example head key_pos"]:
    """Return the attention after the knock-out of each key; the first axis is the key."""
    knocked_out = jnp.eye(scores.shape[-1], dtype=bool)[:, None, None]
    return jax.nn.softmax(jnp.where(knocked_out, -jnp.inf, scores[None]), axis=-1)


def match_edges(mass: Float[Array, "block cut query_pos key_pos"], edges: np.ndarray) -> Any:
    """Return a function that replaces the values of each edge by those of a similar edge.

    The similar edge has the same query position. It is an edge of a single head for a single head,
    and of all heads for all heads.

    Args:
      mass: the mean attention of each edge.
      edges: which edges can be knocked out.
    """
    n_blocks, n_cuts, n_pos = mass.shape[:3]
    # [query_pos, block and cut and key]
    table = jnp.moveaxis(mass, 2, 0).reshape(n_pos, -1)
    block, cut, _ = np.indices((n_blocks, n_cuts, n_pos)).reshape(3, -1)
    together = cut == n_cuts - 1
    read = (block < n_blocks - 1)[None] | (np.arange(n_pos) == n_pos - 1)[:, None]
    there = np.tile(edges, (1, n_blocks * n_cuts)) & read
    same_kind = (together[:, None] == together[None]) & ~np.eye(len(cut), dtype=bool)
    candidates = jnp.asarray(there[:, None] & same_kind[None])
    distance = jnp.where(candidates, jnp.abs(table[:, :, None] - table[:, None]), jnp.inf)
    nearest = distance.argmin(-1)

    def matched(values: Array) -> Array:
        rows = jnp.moveaxis(values, 2, 0).reshape(n_pos, len(cut), -1)
        found = jnp.take_along_axis(rows, nearest[..., None], axis=1)
        found = found.reshape(n_pos, n_blocks, n_cuts, n_pos, -1)
        return jnp.moveaxis(found, 0, 2)

    return matched


def match_everywhere(mass: Float[Array, "query_pos key_pos"], edges: np.ndarray) -> Any:
    """Return a function like that of `match_edges`, for knock-outs in all blocks.

    Args:
      mass: the sum of the mean attention over all heads and blocks.
      edges: which edges can be knocked out.
    """
    apart = ~np.eye(len(edges), dtype=bool)[None] & edges[:, None]
    distance = jnp.where(apart, jnp.abs(mass[:, :, None] - mass[:, None]), jnp.inf)
    nearest = distance.argmin(-1)

    def matched(values: Array) -> Array:
        return jnp.take_along_axis(values, nearest[..., None], axis=1)

    return matched
