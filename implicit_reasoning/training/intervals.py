"""Intervals of accuracies, in the rows of `metrics.jsonl`.

They are computed from the outcomes of an evaluation, in the rows whose step has a checkpoint, and
read from the rows after that. Rows of runs before 2026-11-29 have none; see
`record.add_intervals`.

The examples of a split are clustered by bridge or by fact (`worlds.clusters.clusterings`); of
several clusterings the one with the widest interval counts. `accuracy_low95/<split>`, which every
evaluation has for the cross split, is by the first of them only: it is what `phases` compares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from implicit_reasoning.statistics import ClusterIntervals, Interval
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.clusters import clusterings

LOW, HIGH, CLUSTERS = "accuracy_low", "accuracy_high", "accuracy_clusters"
"""The columns are `<name>/<split>`: the ends of the 95% interval, and its number of clusters."""

Row = Mapping[str, Any]


class AccuracyIntervals:
    """Intervals of the accuracy on the probe rows of every split; the clusters are found once."""

    def __init__(self, dataset: Dataset):
        """Cluster the probe rows of every split that has any."""
        place = np.cumsum(dataset.probe) - 1  # of a row, among the probe rows
        probes = {split: dataset.probes(split) for split in dataset.splits}
        self._of_split = {
            split: (place[rows], [ClusterIntervals(one) for one in clusterings(dataset, rows)])
            for split, rows in probes.items()
            if len(rows)
        }

    def columns(self, correct: Bool[np.ndarray, " probe"]) -> dict[str, float]:
        """The columns of a row, from which probe rows were answered correctly."""
        row: dict[str, float] = {}
        for split, (members, clustered) in self._of_split.items():
            found = [one.interval(correct[members]) for one in clustered]
            widest = max(found, key=lambda interval: np.nan_to_num(interval.high - interval.low))
            row[f"{LOW}/{split}"] = float(widest.low)
            row[f"{HIGH}/{split}"] = float(widest.high)
            row[f"{CLUSTERS}/{split}"] = int(widest.n_clusters)
        return row


def is_evaluated(row: Row) -> bool:
    """Whether a row has accuracies."""
    return any(key.startswith("accuracy/") for key in row)


def row_with_intervals(rows: Sequence[Row]) -> Row | None:
    """The last row that has intervals; None where no row has any."""
    return next(
        (row for row in reversed(rows) if any(key.startswith(f"{LOW}/") for key in row)), None
    )


def accuracy_intervals(row: Row, dataset: Dataset) -> dict[str, Interval]:
    """Accuracy and interval of every split, as a row has them; no split without the columns."""
    return {
        split: Interval(
            mean=row[f"accuracy/{split}"],
            low=row[f"{LOW}/{split}"],
            high=row[f"{HIGH}/{split}"],
            n_examples=len(dataset.probes(split)),
            n_clusters=row[f"{CLUSTERS}/{split}"],
        )
        for split in dataset.splits
        if f"{LOW}/{split}" in row
    }
