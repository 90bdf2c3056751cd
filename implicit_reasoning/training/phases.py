"""Memorised, generalised, across distributions: when each phase of grokking began, by stated rules.

A phase begins at the first of three evaluations in a row that satisfy its rule, so that one lucky
evaluation does not count. Phases may overlap. Rules, on accuracies of probe rows:

- memorised: the training chains' >= .99
- in-distribution (half, whole): the held-out chains' >= .5, and >= .95
- cross-distribution: the lower end of the 95% interval of chains whose *first* fact was seen only
  as a fact (bootstrap clustered by that fact) is above the best shortcut there

The lag is the distance from "memorised" to "in-distribution, whole", in steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from implicit_reasoning.runs import Run
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.shortcuts import shortcuts

IN_A_ROW = 3

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

        # The rule for the cross split clusters by the first fact, so there has to be one.
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
      cross_shortcut: accuracy of the best shortcut on `splits.cross`; None if there is none.
    """

    def first(split: str | None, rule: Callable[[float], bool], quantity: str = "accuracy") -> Any:
        if split is None:
            return None
        key = f"{quantity}/{split}"
        series = [(row["step"], rule(row[key])) for row in rows if key in row]
        return _first_in_a_row(series)

    return Phases(
        memorised=first(splits.trained, lambda a: a >= 0.99),
        in_distribution_half=first(splits.held_out, lambda a: a >= 0.5),
        in_distribution=first(splits.held_out, lambda a: a >= 0.95),
        cross_distribution=None
        if cross_shortcut is None
        else first(splits.cross, lambda low: low > cross_shortcut, "accuracy_low95"),
    )


def run_phases(run: Run, rules: Mapping[str, Mapping[str, float]] | None = None) -> Phases:
    """The phases of a run, from its metrics and the shortcuts of its world.

    Args:
      run: with a `metrics.jsonl`.
      rules: what `worlds.shortcuts` found, if it is at hand; else it is computed.
    """
    return phases(run.metrics, *held_against(run.dataset, rules))


def held_against(
    dataset: Dataset, rules: Mapping[str, Mapping[str, float]] | None = None
) -> tuple[Splits, float | None]:
    """What the rules of `phases` speak of in a dataset: its splits, the best cross shortcut."""
    splits = Splits.of(dataset)
    if splits.cross is None:
        return splits, None
    by_rule = shortcuts(dataset) if rules is None else rules
    on_cross = [rule[splits.cross] for rule in by_rule.values() if splits.cross in rule]
    return splits, max(on_cross, default=None)


def _first_in_a_row(series: Sequence[tuple[int, bool]]) -> int | None:
    for start in range(len(series) - IN_A_ROW + 1):
        window = series[start : start + IN_A_ROW]
        if all(satisfied for _, satisfied in window):
            return window[0][0]
    return None
