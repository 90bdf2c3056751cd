"""Confidence intervals of accuracies in the rows of `metrics.jsonl`.

At steps that have both an evaluation and a checkpoint, training writes the intervals to the metrics
row. Versions before 2026-11-29 did not write intervals; `record.add_intervals` adds intervals to
such runs.

The examples of a split are clustered by bridge entity or by fact. `worlds.clusters.clusterings`
returns all clusterings, and the widest interval is used. For the split `phases.Splits.cross`, every
evaluation also writes the lower bound `accuracy_low95/<split>`. This bound uses only the clustering
from `worlds.clusters.clusters_of`. The module `phases` compares the bound with the accuracies of
shortcuts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from implicit_reasoning.runtime.writers import ACCURACY, CLUSTERS, HIGH, LOW
from implicit_reasoning.statistics import ClusterIntervals, Interval
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.clusters import clusterings

Row = Mapping[str, Any]


class AccuracyIntervals:
    """Confidence intervals of the accuracy on the evaluated rows (probe rows) of every split."""

    def __init__(self, dataset: Dataset):
        """Compute the clusters of the probe rows of every split that has probe rows."""
        place = np.cumsum(dataset.probe) - 1  # for each row, its index among the probe rows
        probes = {split: dataset.probes(split) for split in dataset.splits}
        self._of_split = {
            split: (place[rows], [ClusterIntervals(one) for one in clusterings(dataset, rows)])
            for split, rows in probes.items()
            if len(rows)
        }

    def columns(self, correct: Bool[np.ndarray, " probe"]) -> dict[str, float]:
        """Return the columns of `metrics.jsonl` with the intervals of one evaluation.

        Args:
          correct: bool per probe row, True for a correct answer.

        Returns:
          `accuracy_low/<split>`, `accuracy_high/<split>` and `accuracy_clusters/<split>`.
        """
        row: dict[str, float] = {}
        for split, (members, clustered) in self._of_split.items():
            found = [one.interval(correct[members]) for one in clustered]
            widest = max(found, key=lambda interval: np.nan_to_num(interval.high - interval.low))
            row[f"{LOW}/{split}"] = float(widest.low)
            row[f"{HIGH}/{split}"] = float(widest.high)
            row[f"{CLUSTERS}/{split}"] = int(widest.n_clusters)
        return row


def is_evaluated(row: Row) -> bool:
    """Return whether a row of `metrics.jsonl` contains accuracies."""
    return any(key.startswith(f"{ACCURACY}/") for key in row)


def row_with_intervals(rows: Sequence[Row]) -> Row | None:
    """Return the last row that contains intervals, or None if no row does."""
    return next(
        (row for row in reversed(rows) if any(key.startswith(f"{LOW}/") for key in row)), None
    )


def accuracy_intervals(row: Row, dataset: Dataset) -> dict[str, Interval]:
    """Return the accuracy intervals in a row of metrics, by split."""
    return {
        split: Interval(
            mean=row[f"{ACCURACY}/{split}"],
            low=row[f"{LOW}/{split}"],
            high=row[f"{HIGH}/{split}"],
            n_examples=len(dataset.probes(split)),
            n_clusters=row[f"{CLUSTERS}/{split}"],
        )
        for split in dataset.splits
        if f"{LOW}/{split}" in row
    }
