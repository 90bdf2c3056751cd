"""Which checkpoints of a run a study measures, and the stages of a run.

Ten checkpoints of a run are measured: step 0, the last step, and the first checkpoint at or after
each event. The events are steps at which the accuracy of a split reaches a level (`EVENTS`). The
rest is filled one by one: the widest gap between chosen steps, on the scale of the square root of
the step, gets the saved checkpoint next to its middle.

Stages of a run: `untrained` is step 0. `memorised` is the first measured checkpoint at or after the
step at which the first training split reaches .99. `half` is the same for the first test split and
.5. `end` is the last checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import xarray as xr

from implicit_reasoning.runs import Run

CHECKPOINTS = 10
EVENTS = {
    "train_ii": (0.5, 0.99),
    "test_ii": (0.25, 0.5, 0.9),
    "train_repeated": (0.99,),
    "test_repeated": (0.1, 0.25, 0.5, 0.75, 0.95),
    "train_names": (0.5, 0.99),
    "test_names": (0.25, 0.5, 0.9),
}
"""Levels of accuracy by split, whose first checkpoints are measured."""

STAGES = {"memorised": ("train", 0.99), "half": ("test", 0.5)}
"""The prefix of the split and the level of accuracy of each stage; its first split counts."""


def reached(run: Run, split: str, level: float) -> int | None:
    """Return the first checkpoint at or after the step at which a split reaches an accuracy."""
    name = f"accuracy/{split}"
    first = next((row["step"] for row in run.metrics if row.get(name, -1.0) >= level), None)
    if first is None:
        return None
    return next((step for step in run.steps if step >= first), None)


def chosen_steps(run: Run) -> list[int]:
    """Return the checkpoints to measure; the docstring of the module says how they are chosen."""
    events = [reached(run, split, level) for split, levels in EVENTS.items() for level in levels]
    chosen = {run.steps[0], run.steps[-1], *(step for step in events if step is not None)}
    return fill_gaps(run.steps, chosen, CHECKPOINTS)


def fill_gaps(saved: Sequence[int], chosen: set[int], count: int) -> list[int]:
    """Add saved steps in the widest gaps until there are `count` steps, or no saved steps are left.

    Args:
      saved: the saved steps, ascending.
      chosen: some of them, with the first and the last one.
      count: the wanted number of steps.
    """
    found = sorted(chosen)
    while len(found) < min(count, len(saved)):
        gaps = sorted(pairwise(found), key=lambda gap: gap[0] ** 0.5 - gap[1] ** 0.5)
        for low, high in gaps:
            middle = (low**0.5 + high**0.5) / 2
            inside = [step for step in saved if low < step < high]
            if inside:
                found.append(min(inside, key=lambda step: abs(step**0.5 - middle)))
                break
        found.sort()
    return found


def stages(run: Run, steps: list[int]) -> xr.Dataset:
    """Return the checkpoint of each stage; nan if the run does not reach it."""
    at: dict[str, float] = {"untrained": steps[0]}
    for stage, (prefix, level) in STAGES.items():
        split = next(name for name in run.dataset.splits if name.startswith(prefix))
        step = reached(run, split, level)
        at[stage] = np.nan if step is None else next(s for s in steps if s >= step)
    at["end"] = steps[-1]
    return xr.Dataset({"reached": ("stage", list(at.values()))}, {"stage": list(at)})


def steps_of_stages(run: Run, steps: list[int]) -> list[int]:
    """Return the measured checkpoints that are a stage of the run."""
    found = stages(run, steps)["reached"].values
    return sorted({int(step) for step in found if np.isfinite(step)})
