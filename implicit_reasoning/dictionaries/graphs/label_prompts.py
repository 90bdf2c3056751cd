"""The prompts on which the features of a graph get their labels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from implicit_reasoning.analysis.facts import first_occurrences
from implicit_reasoning.analysis.states import chain_splits, prompts, state_keys
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
        half of the first facts and scored on the other half.
      distinct: whether the prefix at each position is the first of its kind. States of equal
        prefixes are equal, so one of them counts.
      n_values: the number of entities.
    """

    rows: Int[np.ndarray, " state"]
    tokens: Int[np.ndarray, "state pos"]
    bridge: Int[np.ndarray, " state"]
    second: Bool[np.ndarray, " state"]
    distinct: Bool[np.ndarray, "state pos"]
    n_values: int


def label_prompts(dataset: Dataset, rows: Int[np.ndarray, " state"]) -> LabelPrompts:
    """Return some chains as prompts on which features are labeled."""
    facts = dataset.truth["fact1"]
    second = np.random.default_rng(_SEED).random(int(facts.max()) + 1) >= 0.5
    return LabelPrompts(
        rows,
        prompts(dataset, rows),
        dataset.truth["e2"][rows].astype(np.int32),
        second[facts[rows]],
        first_occurrences(state_keys(dataset, rows)).T,
        world_of(dataset).n_entities,
    )


def any_label_prompts(dataset: Dataset) -> LabelPrompts:
    """Choose chains of all splits, at most 2,000, as prompts on which features are labeled."""
    chains = np.concatenate([dataset.rows(split) for split in chain_splits(dataset)])
    return label_prompts(dataset, np.random.default_rng(_SEED).permutation(chains)[:_MAX_PROMPTS])
