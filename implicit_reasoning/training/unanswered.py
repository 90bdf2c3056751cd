"""Test rows that no shortcut answers correctly. No shortcut explains correct answers to them.

A shortcut may be right by chance. The remaining rows are therefore harder: a guess is right less
often on these rows than on all rows.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.clusters import clusters_of
from implicit_reasoning.worlds.shortcuts import scored_probes, shortcut_correctness

MIN_BRIDGES = 20
"""The minimum number of bridges among the rows of a split that no shortcut answers correctly.

For a split with fewer bridges, no accuracy on these rows is computed.
"""

ACCURACY, ROWS = "accuracy_unanswered", "unanswered"
"""Names of columns, each followed by `/<split>`: the accuracy on these rows, and their number."""


def rows_without_shortcut(dataset: Dataset) -> dict[str, Int[np.ndarray, " row"]]:
    """Return the probe rows that no shortcut answers correctly, by test split of chains.

    All shortcuts are used, including the cluster oracle. For a task without chains, the result is
    empty.
    """
    if "r2" not in dataset.truth:
        return {}
    by_rule = shortcut_correctness(dataset, dataset.splits)
    return {
        split: scored_probes(dataset, split)[
            ~np.any([by_split[split] for by_split in by_rule.values()], axis=0)
        ]
        for split in next(iter(by_rule.values()))
    }


def unanswered_rows(dataset: Dataset) -> dict[str, Int[np.ndarray, " row"]]:
    """Return the rows of `rows_without_shortcut`, except for splits with few bridge entities.

    A split is omitted if these rows have fewer than `MIN_BRIDGES` different bridge entities.
    """
    return {
        split: rows
        for split, rows in rows_without_shortcut(dataset).items()
        if len(np.unique(clusters_of(dataset, rows))) >= MIN_BRIDGES
    }
