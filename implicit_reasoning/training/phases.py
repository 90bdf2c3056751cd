"""Phases of grokking: the step at which a run memorizes, generalizes and transfers.

Phases may overlap. Each phase has a rule for the accuracy on probe rows:

- memorised: the accuracy on training chains is at least 0.99.
- in-distribution (half, whole): the accuracy on held-out chains is at least 0.5 (half) or 0.95
  (whole).
- cross-distribution: this rule uses chains whose *first* fact is trained only as a single fact. The
  lower end of the 95% interval of the accuracy on these chains is above the upper end of the 95%
  interval of the accuracy of every shortcut. All intervals use the same rows and the same clusters
  (bridge entities).

The first two phases are descriptive. They begin at the first of three consecutive evaluations that
satisfy the rule, so a single lucky evaluation does not count. The third phase is a statistical
test. It begins at the first evaluation from which the rule holds at *all* later evaluations, and at
least three evaluations must satisfy the rule. This definition controls two kinds of multiple
testing:

- Evaluations: if a rule is tested at many correlated evaluations and the first success counts,
  false positives are far more frequent than with a single test. Suppose that the model is no better
  than a shortcut at evaluation E. The phase can begin at or before E only if E satisfies the rule.
  The probability that the phase begins too early is therefore at most the false-positive
  probability of a single test, for any number of evaluations. If later evaluations violate the
  rule, the phase is not reported.
- Shortcuts: the model must be above every shortcut. Suppose that the model is no better than
  shortcut S. The model's interval is above the interval of S only if one of these two intervals
  misses the true mean on one side. The probability of each miss is 2.5%, so the false-positive
  probability is at most 5%. This bound holds for any number of shortcuts and any correlation
  between shortcuts.

The rules need only `metrics.jsonl` and the world, so they also apply to old runs. Versions before
2026-11-28 wrote bootstrap intervals that were clustered by first fact. These intervals are narrower
than intervals that are clustered by bridge entity.

The lag is the number of steps from "memorised" to "in-distribution, whole".
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
    """Names of the data splits from which phases are determined. A missing split is None.

    Attributes:
      trained: the split of the training chains.
      held_out: the split of held-out chains whose facts all occur in training chains.
      cross: the split of chains whose first fact is trained only as a single fact.
    """

    trained: str | None
    held_out: str | None
    cross: str | None

    @classmethod
    def of(cls, dataset: Dataset) -> Splits:
        """Find the data splits from which phases are determined.

        For chains of two hops, the splits are `train_ii`, `test_ii` and `test_oi`.
        """
        trained = next((name for name in dataset.splits if name.startswith("train_")), None)
        if trained is None:
            return cls(None, None, None)
        pattern = trained.removeprefix("train_")

        def existing(name: str) -> str | None:
            return name if name in dataset.splits and len(dataset.probes(name)) else None

        # The rule for the cross split needs to know the facts of chains. Not all datasets have
        # facts.
        cross = existing(f"test_o{pattern[1:]}") if "fact1" in dataset.truth else None
        return cls(trained, existing(f"test_{pattern}"), cross)


@dataclass(frozen=True)
class Phases:
    """The step at which each phase began; None if the run did not reach the phase."""

    memorised: int | None
    in_distribution_half: int | None
    in_distribution: int | None
    cross_distribution: int | None

    @property
    def lag(self) -> int | None:
        """Number of steps from `memorised` to `in-distribution, whole`; may be negative."""
        if self.memorised is None or self.in_distribution is None:
            return None
        return self.in_distribution - self.memorised

    def describe(self) -> dict[str, str]:
        """Return text that lists the steps of all phases and the lag."""
        found = {**dataclasses.asdict(self), "lag": self.lag}
        return {
            name.replace("_", " "): "not reached" if step is None else f"{step:,} steps"
            for name, step in found.items()
        }


def phases(rows: Sequence[Row], splits: Splits, cross_shortcut: float | None) -> Phases:
    """Find the phases in the rows of `metrics.jsonl`.

    Args:
      rows: the rows, ascending by step. Rows without an evaluation are skipped.
      splits: the splits of the dataset.
      cross_shortcut: the largest upper end of the shortcuts' 95% intervals on the split `cross`,
        from `phase_criteria`. In the cross-distribution phase, the interval of the model's accuracy
        is above this value. If None, this phase is never reached.
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
    """Find the phases of a run from its `metrics.jsonl` and the shortcuts of its world."""
    return phases(run.metrics, *phase_criteria(run.dataset))


def phase_criteria(dataset: Dataset) -> tuple[Splits, float | None]:
    """Return the arguments `splits` and `cross_shortcut` of `phases` for a dataset.

    Returns:
      The splits, and the largest upper end of the shortcuts' 95% intervals on the split `cross`.
      The second value is None if there is no such split or no shortcut.
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
    """Return the first step from which all evaluations satisfy the rule.

    Return None if these are fewer than `MIN_CONSECUTIVE` evaluations.
    """
    lasting = list(itertools.takewhile(lambda one: one[1], reversed(series)))
    return lasting[-1][0] if len(lasting) >= MIN_CONSECUTIVE else None
