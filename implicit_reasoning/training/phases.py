"""Memorised, generalised, across distributions: when each phase of grokking began, by stated rules.

Phases may overlap. Rules, on accuracies of probe rows:

- memorised: the training chains' >= .99
- in-distribution (half, whole): the held-out chains' >= .5, and >= .95
- cross-distribution: of chains whose *first* fact was seen only as a fact, the lower end of the 95%
  interval of the accuracy is above the upper end of that of every shortcut, on the same rows and
  clusters (bridges)

The first two are descriptions. They begin at the first of three evaluations in a row that satisfy
the rule, so that one lucky evaluation does not count. The third is a test. It has to hold at that
evaluation and at *all* later ones, of which there are two or more, for these reasons:

- Evaluations: the first of many correlated tests that passes is wrong far more often than one test.
  If the model is no better than a shortcut at some evaluation, then a phase that begins there or
  before needs this very evaluation to pass, so the probability of a beginning that is too early is
  that of one test, whatever the number of evaluations. A phase that is lost again is not reported.
- Shortcuts: the model has to be above each rule. If it is no better than one of them, its interval
  passes that rule's with a probability of at most 5% (2.5% for either interval to miss its mean),
  whatever the number of rules and their correlation on the same rows.

Both need nothing of a run but `metrics.jsonl` and the world, so the rule also judges old runs.
Before 2026-11-28 the interval in `metrics.jsonl` was a bootstrap by first fact, and is narrower.

The lag is the distance from "memorised" to "in-distribution, whole", in steps.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from implicit_reasoning.runs import Run
from implicit_reasoning.statistics import ClusterIntervals
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.clusters import clusters_of
from implicit_reasoning.worlds.shortcuts import scored_probes, shortcut_correctness

MIN_CONSECUTIVE = 3

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Splits:
    """Which splits of a dataset play the parts that the rules speak of; None where it has none."""

    trained: str | None
    held_out: str | None
    cross: str | None

    @classmethod
    def of(cls, dataset: Dataset) -> Splits:
        """Of a dataset with the house's split names."""
        trained = next((name for name in dataset.splits if name.startswith("train_")), None)
        if trained is None:
            return cls(None, None, None)
        pattern = trained.removeprefix("train_")

        def existing(name: str) -> str | None:
            return name if name in dataset.splits and len(dataset.probes(name)) else None

        # The rule for the cross split is about facts, so there have to be some.
        cross = existing(f"test_o{pattern[1:]}") if "fact1" in dataset.truth else None
        return cls(trained, existing(f"test_{pattern}"), cross)


@dataclass(frozen=True)
class Phases:
    """The step at which each phase began; None is "not reached"."""

    memorised: int | None
    in_distribution_half: int | None
    in_distribution: int | None
    cross_distribution: int | None

    @property
    def lag(self) -> int | None:
        """Steps from memorised to in-distribution; negative if it generalised first."""
        if self.memorised is None or self.in_distribution is None:
            return None
        return self.in_distribution - self.memorised

    def describe(self) -> dict[str, str]:
        """Each phase, and the lag, in words."""
        found = {**dataclasses.asdict(self), "lag": self.lag}
        return {
            name.replace("_", " "): "not reached" if step is None else f"{step:,} steps"
            for name, step in found.items()
        }


def phases(rows: Sequence[Row], splits: Splits, cross_shortcut: float | None) -> Phases:
    """Find the phases in the rows of `metrics.jsonl`.

    Args:
      rows: ascending by step; those without an evaluation are passed over.
      splits: of the dataset.
      cross_shortcut: what the cross split has to be above, see `phase_criteria`; None if there is
        nothing to compare with, and then that phase is never reached.
    """

    def series(
        split: str | None, rule: Callable[[float], bool], quantity: str = "accuracy"
    ) -> list[tuple[int, bool]]:
        key = f"{quantity}/{split}"
        return [(row["step"], rule(row[key])) for row in rows if split and key in row]

    def above(low: float) -> bool:
        return cross_shortcut is not None and bool(low > cross_shortcut)

    return Phases(
        memorised=_first_in_a_row(series(splits.trained, lambda a: a >= 0.99)),
        in_distribution_half=_first_in_a_row(series(splits.held_out, lambda a: a >= 0.5)),
        in_distribution=_first_in_a_row(series(splits.held_out, lambda a: a >= 0.95)),
        cross_distribution=_from_then_on(series(splits.cross, above, "accuracy_low95")),
    )


def run_phases(run: Run) -> Phases:
    """The phases of a run, from its `metrics.jsonl` and the shortcuts of its world."""
    return phases(run.metrics, *phase_criteria(run.dataset))


def phase_criteria(dataset: Dataset) -> tuple[Splits, float | None]:
    """What the rules of `phases` speak of in a dataset.

    Returns:
      Its splits, and the highest upper end of the shortcuts' 95% intervals on the cross split; None
      where there is no such split, or no shortcut.
    """
    splits = Splits.of(dataset)
    if splits.cross is None:
        return splits, None
    by_rule = shortcut_correctness(dataset, [splits.cross])
    right = [by_split[splits.cross] for by_split in by_rule.values() if splits.cross in by_split]
    if not right:
        return splits, None
    clusters = clusters_of(dataset, scored_probes(dataset, splits.cross))
    return splits, float(ClusterIntervals(clusters).interval(np.stack(right)).high.max())


def _first_in_a_row(series: Sequence[tuple[int, bool]]) -> int | None:
    for start in range(len(series) - MIN_CONSECUTIVE + 1):
        window = series[start : start + MIN_CONSECUTIVE]
        if all(satisfied for _, satisfied in window):
            return window[0][0]
    return None


def _from_then_on(series: Sequence[tuple[int, bool]]) -> int | None:
    """The first step of those at the end that are all satisfied; None for fewer than three."""
    lasting = list(itertools.takewhile(lambda one: one[1], reversed(series)))
    return lasting[-1][0] if len(lasting) >= MIN_CONSECUTIVE else None
