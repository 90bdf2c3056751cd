"""Edits that overwrite a state, and change no stored fact.

A vector is added to one site of a block wherever a prompt uses the edited fact: at r1 of the fact
and of chains that use it at the first hop, and at the last position of chains that use it at the
second hop. Other prompts do not change. The first hop of these edits shows how far the rest of the
model follows a state that codes b'. It is the part of the first hop of a weight edit that is no
evidence about stores of facts. The second hop bounds that of a weight edit with the same vector,
because the vector is written there, whether or not the second hop reads the edited block.

There are two sites. At `hook_mlp_out`, the vector is that of the weight edit. At `hook_resid_mid`,
before the MLP, the vector is searched separately, so the edit does not go through the store at all.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from implicit_reasoning.analysis.editing.edited_models import Rest, ScoredEdits, answer_logits
from implicit_reasoning.analysis.editing.scores import Case, score_edit
from implicit_reasoning.analysis.editing.value_search import (
    FactPrompts,
    ValueSearch,
    search_vectors,
)
from implicit_reasoning.model import Edit, HookContext, Params, Transformer
from implicit_reasoning.model.surgery import changed_depths


def search_states(
    model: Transformer,
    params: Params,
    prompts: FactPrompts,
    layer: int,
    site: str,
    unit: Float[Array, ""],
    search: ValueSearch,
) -> Float[Array, "edit d_model"]:
    """Search for a vector to add at a site at r1 of each fact, so that the model answers b'.

    Args:
      model: the model.
      params: the parameters of one model.
      prompts: the prompts of the facts. Prompts of other facts are ignored, because they do not
        change.
      layer: an unrolled depth of the block. States are edited at every depth of this block.
      site: the name of the site in the block, such as "hook_resid_mid".
      unit: the unit of steps, from `second_moment`.
      search: the settings.
    """
    place = jnp.array([prompts.tokens.shape[2] - 1])

    def fact(tokens: Array, new: Array) -> tuple[Array, Array]:
        return tokens[:1], new

    def loss(fact: tuple[Array, Array], step: Array) -> tuple[Array, Array]:
        tokens, new = fact
        edits = overwrite(changed_depths(model, layer), site, place, unit * step)
        logits = model.forward(params, tokens, edits=edits)[0]
        target = -jax.nn.log_softmax(logits[0, -1])[new]
        return target + search.decay * (step**2).mean(), target

    edits = prompts.tokens, prompts.new
    return unit * search_vectors(fact, loss, edits, model.spec.d_model, search)


def score_states(
    model: Transformer,
    params: Params,
    cases: Case,
    rest: Rest,
    layer: int,
    site: str,
    added: Float[Array, "edit d_model"],
) -> ScoredEdits:
    """Score models whose states are edited wherever a prompt uses the edited fact.

    Args:
      model: the model.
      params: the parameters, which are not changed.
      cases: the consequences of all edits, from `prepare`.
      rest: the other prompts, from `prepare`. They do not change.
      layer: an unrolled depth of the block. States are edited at every depth of this block.
      site: the name of the site in the block.
      added: the vector of each edit.
    """

    def one(item: tuple[Case, Array, Array]) -> ScoredEdits:
        case, counted, vector = item
        edits = overwrite(changed_depths(model, layer), site, case.place, vector)
        logits = answer_logits(model, params, case.tokens, case.position, edits, whole=True)
        return ScoredEdits(*score_edit(case, logits, counted, counted), jnp.float32(0))

    found: ScoredEdits = jax.lax.map(one, (cases, rest.counted, added))
    return found


def overwrite(
    depths: Sequence[int],
    site: str,
    place: Int[Array, " batch"],
    vector: Float[Array, " d_model"],
) -> dict[str, Edit]:
    """Return edits that add a vector at one position of each prompt.

    Args:
      depths: the unrolled depths of the blocks.
      site: the name of the site in a block.
      place: the position for each prompt; -1 to leave the prompt as it is.
      vector: the vector.
    """
    return {f"blocks.{depth}.{site}": Edit(_add_at, (place, vector)) for depth in depths}


def _add_at(value: Array, hooks: HookContext, args: tuple[Array, Array]) -> Array:
    """Add a vector at one position of each row; no position is -1."""
    place, vector = args
    here = jnp.arange(value.shape[1])[None] == place[:, None]
    return value + jnp.where(here[..., None], vector[None, None], 0)
