"""Several rank-one edits of one model: an edit that is edited back, and edits one after another.

The keys of a block do not depend on its own W_out, except at later loops of a looped model. The
edits of one block therefore have the keys and directions of the unchanged model. Only the values
are searched in the model that has the earlier edits.

Sources: Yao et al. 2023, "Editing large language models" (sequential editing, reversibility);
Gupta et al. 2024, "Model editing at scale leads to gradual and catastrophic forgetting".
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from implicit_reasoning.analysis.editing.rank_one import search_value, search_values
from implicit_reasoning.analysis.editing.value_search import FactPrompts, ValueSearch
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.surgery import LowRankChange


def edit_back(
    model: Transformer,
    params: Params,
    prompts: FactPrompts,
    old: Int[Array, " edit"],
    layer: int,
    made: LowRankChange,
    unit: Float[Array, ""],
    search: ValueSearch,
) -> LowRankChange:
    """Edit each fact again, so that it has its old tail.

    Args:
      model: the model.
      params: the parameters without any edit.
      prompts: the prompts of the edits.
      old: the token of the old tail of each fact.
      layer: the unrolled depth of the block.
      made: the rank-one change [edit, ...] of each first edit.
      unit: the unit of steps, from `second_moment`.
      search: the settings.

    Returns:
      The sum of both changes of each edit. Its rank is one, because both have the same key.
    """
    again = prompts._replace(new=old)
    added = search_values(model, params, again, layer, made, unit, search, made)
    return made._replace(values=made.values + added[:, None])


def edit_in_sequence(
    model: Transformer,
    params: Params,
    prompts: FactPrompts,
    layer: int,
    directions: LowRankChange,
    unit: Float[Array, ""],
    search: ValueSearch,
) -> LowRankChange:
    """Edit facts one after another in one model.

    Args:
      model: the model.
      params: the parameters without any edit.
      prompts: the prompts of the edits, in the order of the edits.
      layer: the unrolled depth of the block.
      directions: changes [edit, ...] from `rank_one_changes`; their values are ignored.
      unit: the unit of steps, from `second_moment`.
      search: the settings.

    Returns:
      One change, whose rank is the number of edits. `first_edits` returns the change after fewer
      edits.
    """
    keys = directions.keys[:, 0]

    def step(
        values: Float[Array, "edit d_model"], number: Array
    ) -> tuple[Float[Array, "edit d_model"], None]:
        own, key = jax.tree.map(lambda leaf: leaf[number], (prompts, keys))
        earlier = LowRankChange(keys, values)
        found = search_value(model, params, own, layer, key[None], unit, search, earlier)
        return values.at[number].set(found), None

    none = jnp.zeros((len(keys), model.spec.d_model))
    prompts = jax.tree.map(jnp.asarray, prompts)
    return LowRankChange(keys, jax.lax.scan(step, none, jnp.arange(len(keys)))[0])


def first_edits(change: LowRankChange, count: Int[Array, ""] | int) -> LowRankChange:
    """Return the change after the first edits of a sequence.

    Args:
      change: the change of `edit_in_sequence`.
      count: number of edits.
    """
    there = jnp.arange(len(change.values)) < count
    return change._replace(values=jnp.where(there[:, None], change.values, 0))
