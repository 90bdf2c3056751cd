"""Conversion of the splits of a composition task to token rows."""

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
    """Convert the splits of a task to a dataset of token rows.

    Identity rows are added if `task.identity` asks for them (see `with_identity`).

    Args:
      task: the settings.
      cut: the splits.
      answers: taught answers by name of the split, int [chain]. They replace the true answers.
      private: bool [fact], the second facts that no identity row may use (see `with_identity`).
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
    """Look up the first fact of every row in a given table of tails.

    Args:
      dataset: a dataset of chains.
      taught: the table, without the identity relation that `dataset.world` may have.

    Returns:
      int [row], entities; -1 if the row has no fact.
    """
    itself = np.arange(taught.n_entities, dtype=np.int32)
    tail = np.column_stack([taught.tail, itself])  # an identity relation is the last relation
    e1, r1 = dataset.truth["e1"], dataset.truth["r1"]
    return np.where(r1 >= 0, tail[e1, r1], np.int32(NONE))
