"""The prompts on which the features of a graph get their labels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from implicit_reasoning.analysis.facts import first_occurrences
from implicit_reasoning.analysis.states import chain_splits, prompts, state_keys
from implicit_reasoning.dictionaries.measures.bridges import bridge_position
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.dataset import world_of

_MAX_PROMPTS = 2_000
_SEED = 0


class LabelPrompts(NamedTuple):
    """Chains on which features are labeled.

    Attributes:
      rows: the rows of the chains in the dataset.
      tokens: their prompts.
      bridge: the bridge of each chain.
      second: whether the first fact of each chain is in the second half. Labels are chosen on one
        half of the first facts of each bridge and scored on the other half.
      known: whether the prefix at each position determines the bridge.
      distinct: whether the prefix at each position is the first of its kind. States of equal
        prefixes are equal, so one of them counts.
      n_values: the number of entities.
    """

    rows: Int[np.ndarray, " state"]
    tokens: Int[np.ndarray, "state pos"]
    bridge: Int[np.ndarray, " state"]
    second: Bool[np.ndarray, " state"]
    known: Bool[np.ndarray, " pos"]
    distinct: Bool[np.ndarray, "state pos"]
    n_values: int


def label_prompts(dataset: Dataset, rows: Int[np.ndarray, " state"]) -> LabelPrompts:
    """Return some chains as prompts on which features are labeled."""
    bridge = dataset.truth["e2"][rows].astype(np.int32)
    return LabelPrompts(
        rows,
        prompts(dataset, rows),
        bridge,
        second_half(dataset.truth["fact1"][rows], bridge),
        np.arange(len(dataset.positions)) >= bridge_position(dataset),
        first_occurrences(state_keys(dataset, rows)).T,
        world_of(dataset).n_entities,
    )


def any_label_prompts(dataset: Dataset) -> LabelPrompts:
    """Choose chains of all splits, at most 2,000, as prompts on which features are labeled."""
    chains = np.concatenate([dataset.rows(split) for split in chain_splits(dataset)])
    return label_prompts(dataset, np.random.default_rng(_SEED).permutation(chains)[:_MAX_PROMPTS])


def second_half(
    facts: Int[np.ndarray, " state"], bridge: Int[np.ndarray, " state"]
) -> Bool[np.ndarray, " state"]:
    """Divide first facts at random into two halves that have every bridge equally often.

    If a bridge has an odd number of facts, the first half has one more. A bridge with one fact is
    in the first half only.

    Args:
      facts: the first fact of each chain.
      bridge: the bridge of each chain.

    Returns:
      Whether the fact of each chain is in the second half.
    """
    distinct, first, place = np.unique(facts, return_index=True, return_inverse=True)
    own = bridge[first]
    order = np.lexsort((np.random.default_rng(_SEED).random(len(distinct)), own))
    start = np.searchsorted(own[order], own[order])
    second = np.empty(len(distinct), bool)
    second[order] = (np.arange(len(distinct)) - start) % 2 == 1
    return second[place]
