"""When things happen: at which steps a run evaluates, logs, keeps a checkpoint, can be resumed.

All of it follows from the configuration alone, so that a resumed run does the same things at the
same steps as one that was never stopped.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_INTERVALS = ("log_every", "resume_every", "evaluation.every", "checkpoints.every")
_MAX_EVENTS = 1_000_000  # times that anything happens in a run: the steps are listed beforehand


def log_spaced(horizon: int, per_doubling: int, every: int) -> tuple[int, ...]:
    """Step 0, then log-spaced steps below `every`, then each `every`, and the last.

    Args:
      horizon: the last step.
      per_doubling: log-spaced steps in each doubling; 0 for none.
      every: the interval after them.
    """
    steps = {0, horizon, *range(every, horizon + 1, every)}
    if per_doubling:
        exponent, step = 0, 1
        while step < min(every, horizon):
            steps.add(step)
            exponent += 1
            step = round(2 ** (exponent / per_doubling))
    return tuple(sorted(steps))


def faults(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with the intervals of a configuration, by dotted name, in words."""
    steps = values["steps"]
    least = max(1, -(-steps // _MAX_EVENTS))
    return [
        f"{key} is {values[key]}; it must be at least {least}, for events of {steps:,} "
        f"steps that one can wait for (at most {_MAX_EVENTS:,})"
        for key in _INTERVALS
        if values[key] < least
    ]


@dataclass(frozen=True)
class Schedule:
    """The steps at which a run of `horizon` steps does something; each tuple ascends.

    Attributes:
      log_every: steps between rows; other rows are of evaluations.
      rows: a row of `metrics.jsonl` is written (multiples of `log_every`, and evaluations).
      evaluations: all splits are evaluated.
      checkpoints: parameters are kept.
      resumes: the full state is saved, so that a killed run loses little.
    """

    horizon: int
    log_every: int
    rows: tuple[int, ...]
    evaluations: tuple[int, ...]
    checkpoints: tuple[int, ...]
    resumes: tuple[int, ...]

    @classmethod
    def from_config(cls, config: Any) -> Schedule:
        """The schedule of a configuration in which `faults` finds none."""
        horizon, evaluation, kept = config.steps, config.evaluation, config.checkpoints
        evaluations = log_spaced(horizon, evaluation.per_doubling, evaluation.every)
        return cls(
            horizon=horizon,
            log_every=config.log_every,
            rows=tuple(sorted({*log_spaced(horizon, 0, config.log_every), *evaluations})),
            evaluations=evaluations,
            checkpoints=log_spaced(horizon, kept.per_doubling, kept.every),
            resumes=log_spaced(horizon, 0, config.resume_every)[1:],
        )

    def next_event(self, step: int) -> int:
        """The first step after `step` at which anything happens."""
        later = [
            steps[index]
            for steps in (self.rows, self.checkpoints, self.resumes)
            if (index := bisect.bisect_right(steps, step)) < len(steps)
        ]
        return min(later, default=self.horizon)

    def previous_row(self, step: int) -> int:
        """The last step before `step` that has a row, or 0."""
        return self.rows[max(bisect.bisect_left(self.rows, step) - 1, 0)]
