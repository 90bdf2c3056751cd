"""Rows of composition: the chains of all splits, written as tokens, with identity rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from implicit_reasoning.worlds.chains import Chains
from implicit_reasoning.worlds.dataset import Dataset, Rows, assemble
from implicit_reasoning.worlds.spelling import position_names, rows_from_chains, vocabulary
from implicit_reasoning.worlds.tasks.cut import Cut, spelling_of
from implicit_reasoning.worlds.tasks.identity import with_identity
from implicit_reasoning.worlds.world import NONE, World


def make_dataset(
    task: Any,
    cut: Cut,
    answers: dict[str, Int[np.ndarray, " chain"]] | None = None,
    private: Bool[np.ndarray, " fact"] | None = None,
) -> Dataset:
    """Convert the splits of a task to rows, and add the identity rows of its settings.

    Args:
      task: the settings.
      cut: the splits.
      answers: entities that replace the true answers of some splits.
      private: second facts that no identity row may use; see `with_identity`.
    """
    cut, more = with_identity(task, cut, private)
    world, spelling, other = cut.chains.world, spelling_of(task), answers or {}

    def rows(splits: dict[str, Chains]) -> dict[str, Rows]:
        return {
            name: rows_from_chains(part, spelling, other.get(name)) for name, part in splits.items()
        }

    return assemble(
        rows(cut.trained) | more,
        rows(cut.tested),
        vocab=vocabulary(world, spelling),
        positions=position_names(cut.chains.hops, spelling),
        probes=task.probes,
        world=world,
    )


def decoys(dataset: Dataset, taught: World) -> Int[np.ndarray, " row"]:
    """Return the entity that a table teaches for the first fact of every row; -1 without a fact.

    Args:
      dataset: a dataset of chains.
      taught: the table, without the identity relation that `dataset.world` may have.
    """
    itself = np.arange(taught.n_entities, dtype=np.int32)
    tail = np.column_stack([taught.tail, itself])  # an identity relation is the last relation
    e1, r1 = dataset.truth["e1"], dataset.truth["r1"]
    return np.where(r1 >= 0, tail[e1, r1], np.int32(NONE))
