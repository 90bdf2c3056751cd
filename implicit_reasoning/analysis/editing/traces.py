"""Traces of a rank-one edit inside the model: where its key is read, and which tail a state codes.

Two numbers explain why chains follow an edit, or do not:

- The *read strength* at a position is the share of v* - W k* that the edit adds to the output of
  the MLP there. It is 1 for the prompt of the fact. If it is near 0 where a chain uses the fact,
  the chain does not read the edited key in this block. In a looped model, it is the largest value
  over the depths of the block.
- The *decoded tail* of a state is the tail whose code is closest. The code of a tail is the mean of
  the states at r1 of all facts with this tail, minus the mean of all tails.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from implicit_reasoning.analysis.editing.edited_models import with_bridge
from implicit_reasoning.analysis.editing.scores import Case
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.surgery import LowRankChange, change_edits, changed_depths


class Codes(NamedTuple):
    """The code of every tail, in the states after each block at r1 of the prompts of facts.

    Attributes:
      mean: the mean of the means of all tails.
      code: the mean of each tail minus `mean`, with length 1; 0 for entities that are no tail.
    """

    mean: Float[Array, "layer d_model"]
    code: Float[Array, "layer entity d_model"]


def read_strength(
    model: Transformer, params: Params, cases: Case, changes: LowRankChange, layer: int
) -> Float[Array, "edit prompt"]:
    """Return the read strength of each edit where each prompt uses the edited fact.

    With a chain of thought, the prompts contain the bridge that the model outputs without any edit.
    A chain reads the fact of its second hop at this token.

    Args:
      model: the model.
      params: the parameters without any edit.
      cases: the consequences of all edits.
      changes: the rank-one change [edit, ...] of each edit.
      layer: an unrolled depth of the block.

    Returns:
      The strength at `Case.place`, or at `Case.position` for prompts that do not use the fact.
    """
    sites = [f"blocks.{depth}.mlp.hook_post" for depth in changed_depths(model, layer)]

    def one(item: tuple[Case, Array]) -> Array:
        case, keys = item
        tokens = with_bridge(model, params, case.tokens)
        found = model.forward(params, tokens, sites=sites)[1]
        acts = jnp.stack([found[site] for site in sites])
        place = jnp.where(case.place < 0, case.position, case.place)
        here = jnp.take_along_axis(acts, place[None, :, None, None], axis=2)[:, :, 0]
        return jnp.matmul(here, keys[0], precision="highest").max(0)

    found: Array = jax.lax.map(one, (cases, changes.keys))
    return found


def tail_codes(
    model: Transformer,
    params: Params,
    tokens: Int[Array, "fact 2"],
    tail: Int[Array, " fact"],
    n_entities: int,
) -> Codes:
    """Compute the code of every tail, after each block.

    Args:
      model: the model.
      params: the parameters without any edit.
      tokens: the prompts (e1, r1) of all facts.
      tail: the tail of each fact.
      n_entities: number of entities of the world.
    """
    states = _states(model, params, tokens, None)
    member = jax.nn.one_hot(tail, n_entities)
    count = member.sum(0)
    sums = jnp.einsum("fe,lfm->lem", member, states, precision="highest")
    means = sums / jnp.maximum(count, 1)[None, :, None]
    there = (count > 0)[None, :, None]
    mean = jnp.where(there, means, 0).sum(1) / there.sum()
    return Codes(mean, _unit(jnp.where(there, means - mean[:, None], 0)))


def decoded_tails(
    model: Transformer,
    params: Params,
    tokens: Int[Array, "edit 2"],
    changes: LowRankChange,
    layer: int,
    codes: Codes,
) -> Int[Array, "edit layer"]:
    """Return the tail that is decoded at r1 of each edited fact after the edit, after each block.

    Chains (e1, r1, r2) have the same states at r1, because the model is causal.

    Args:
      model: the model.
      params: the parameters without any edit.
      tokens: the prompts (e1, r1) of the edited facts.
      changes: the rank-one change [edit, ...] of each edit.
      layer: the unrolled depth of the edited block.
      codes: the codes of the model without edits.
    """

    def one(item: tuple[Array, LowRankChange]) -> Array:
        prompt, change = item
        states = _states(model, params, prompt[None], change_edits(model, layer, change))[:, 0]
        near = jnp.einsum("lm,lem->le", states - codes.mean, codes.code, precision="highest")
        return near.argmax(-1).astype(jnp.int32)

    found: Array = jax.lax.map(one, (tokens, changes))
    return found


def _states(
    model: Transformer, params: Params, tokens: Array, edits: dict | None
) -> Float[Array, "layer row d_model"]:
    """Return the states after each block at the last position."""
    sites = model.resid_sites[1:]
    found = model.forward(params, tokens, edits=edits, sites=sites)[1]
    return jnp.stack([found[site][:, -1] for site in sites])


def _unit(vectors: Float[Array, "*row d_model"]) -> Float[Array, "*row d_model"]:
    length = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / jnp.where(length > 0, length, 1)
