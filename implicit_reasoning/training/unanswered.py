"""Test rows that no shortcut answers: the accuracy on them is not that of a shortcut.

A rule may be right by chance, so these rows are harder than others. The accuracy of guessing on
them is below the accuracy of guessing on all rows.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.clusters import clusters_of
from implicit_reasoning.worlds.shortcuts import scored_probes, shortcut_correctness

MIN_BRIDGES = 20
"""Splits with fewer bridges among the rows that no rule answers have no such accuracy."""

ACCURACY, ROWS = "accuracy_unanswered", "unanswered"
"""Column names; a column is `<name>/<split>`: the accuracy, and the number of rows."""


def unanswered_rows(dataset: Dataset) -> dict[str, Int[np.ndarray, " row"]]:
    """Return the rows of each test split of chains that no rule answers correctly.

    The rules are all shortcuts, the cluster oracle among them. The rows are probes. The result has
    no split whose rows have fewer than `MIN_BRIDGES` bridges, and no split of a task without
    chains.
    """
    if "r2" not in dataset.truth:
        return {}
    by_rule = shortcut_correctness(dataset, dataset.splits)
    found = {}
    for split in next(iter(by_rule.values())):
        answered = np.any([by_split[split] for by_split in by_rule.values()], axis=0)
        rows = scored_probes(dataset, split)[~answered]
        if len(np.unique(clusters_of(dataset, rows))) >= MIN_BRIDGES:
            found[split] = rows
    return found
