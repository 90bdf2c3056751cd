"""The saved results of `reasoning_or_shortcut.py`, by arm, and numbers over runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr
from archive import read

from implicit_reasoning.statistics import mean_over_seeds

IMPLICIT = "ladder"
RUNGS = ("test_c0", "test_c1", "test_c2")
MOST, FEWEST = 7, 1  # of eight runs
HALF = 0.5


class Arm(NamedTuple):
    """The results of one arm.

    Attributes:
      parts: arrays by node of the arm's file, with the leading dimension `run`.
      worlds: world seed of each run.
      inits: initialization seed of each run.
    """

    parts: dict[str, xr.Dataset]
    worlds: np.ndarray
    inits: np.ndarray

    def accuracy(self, split: str, stage: str = "end") -> np.ndarray:
        """Return the accuracy of every run at a stage; nan if a run does not reach the stage."""
        return self.at(split, stage, "accuracy")

    def at(self, split: str, stage: str, name: str) -> np.ndarray:
        """Return a value of every run at a stage, such as `accuracy_low`; nan if there is none."""
        stages = self.parts["stages"]
        if split not in stages["split"]:
            return np.full(len(self.worlds), np.nan)
        return np.asarray(stages[name].sel(split=split, stage=stage).values, float)

    def rule(self, split: str) -> np.ndarray:
        """Return the accuracy of the best shortcut in every run; nan if there is none."""
        rules = self.parts["training"]["shortcut"]
        if split not in rules["split"]:
            return np.full(len(self.worlds), np.nan)
        return np.asarray(rules.sel(split=split).values, float)

    def times(self, split: str, level: float = HALF) -> tuple[np.ndarray, np.ndarray]:
        """Return the step at which every run reaches an accuracy, and whether it does.

        The step of a run that does not reach the accuracy is its last step.
        """
        curve = self.parts["training"]["accuracy"].sel(split=split).transpose("run", ...)
        steps = np.asarray(curve["evaluation"].values)
        reached = np.asarray(curve.values >= level)
        ever = np.asarray(reached.any(1))
        last = np.where(np.isfinite(curve.values), steps, 0).max(1)  # runs may differ in length
        return np.where(ever, steps[reached.argmax(1)], last), ever


def last_of(curve: xr.DataArray) -> np.ndarray:
    """Return the last value of every run that is not nan; nan if there is none."""
    values = np.asarray(curve.transpose("run", "evaluation").values, float)
    there = np.isfinite(values)
    last = values.shape[1] - 1 - there[:, ::-1].argmax(1)
    found: np.ndarray = values[np.arange(len(values)), last]
    return found


def read_arms(out: Path) -> dict[str, Arm]:
    """Load the results of all arms that have a file, by arm."""
    arms = {}
    for path in sorted(out.glob("*.nc")):
        tree = read(path)
        parts = {str(name): node.to_dataset(inherit=False) for name, node in tree.children.items()}
        top = tree.to_dataset()
        arms[path.stem] = Arm(parts, top["world"].values, top["init"].values)
    return arms


def over_worlds(values: np.ndarray, worlds: np.ndarray) -> str:
    """Format values as `mean [low, high] (lowest - highest; n)`, with a t interval over worlds.

    Two worlds or fewer have no interval.
    """
    found = mean_over_seeds(np.asarray(values, float), worlds)
    if not found.n_clusters:
        return "-"
    n = int(np.isfinite(values).sum())
    text = f"{found.mean:z.2f}"
    if n == 1:
        return f"{text} (1)"
    if found.n_clusters > 2:  # two worlds give an interval that says nothing
        text += f" [{found.low:z.2f}, {found.high:z.2f}]"
    return f"{text} ({np.nanmin(values):z.2f} - {np.nanmax(values):z.2f}; {n})"


def number(value: float) -> str:
    """Format a number; `-` for nan."""
    return "-" if np.isnan(value) else f"{value:z.2f}"


def ladders(arms: Mapping[str, Arm]) -> dict[str, Arm]:
    """Return the arms whose task is the ladder."""
    return {
        name: arm
        for name, arm in arms.items()
        if "stages" in arm.parts and "test_c0" in arm.parts["stages"]["split"]
    }


def by_count(true: int, false: int, runs: int) -> str:
    """Return what a rule says that needs `MOST` runs: `yes`, `no`, `open` or `too few runs`."""
    if runs < MOST + FEWEST:
        return f"too few runs ({runs})"
    return "yes" if true >= MOST else "no" if false >= MOST else "open"
