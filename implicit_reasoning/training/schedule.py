"""The schedule of a run: the steps of evaluations, metrics rows, checkpoints and saved states.

The configuration alone determines the schedule, so a resumed run has the same events at the same
steps as an uninterrupted run.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_INTERVALS = ("log_every", "resume_every", "evaluation.every", "checkpoints.every")
_MAX_EVENTS = 1_000_000  # A limit is needed, because the steps of all events are kept in memory.


def log_spaced(horizon: int, per_doubling: int, every: int) -> tuple[int, ...]:
    """Return step 0, log-spaced steps below `every`, the multiples of `every`, and the last step.

    Args:
      horizon: the last step.
      per_doubling: the number of log-spaced steps per doubling; 0 for no log-spaced steps.
      every: the distance between the remaining steps.

    Returns:
      The steps in ascending order.
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
    """Return an error message for each interval that causes too many events.

    Args:
      values: dict from dotted names of configuration fields to values.
    """
    steps = values["steps"]
    least = max(1, -(-steps // _MAX_EVENTS))
    return [
        f"{key} is {values[key]}; it must be at least {least}, because a run of {steps:,} steps "
        f"can have at most {_MAX_EVENTS:,} such events"
        for key in _INTERVALS
        if values[key] < least
    ]


@dataclass(frozen=True)
class Schedule:
    """The steps of the events of a run. All tuples are in ascending order.

    Attributes:
      horizon: the last step.
      log_every: number of steps between metrics rows. Evaluations add rows.
      rows: steps at which a row of `metrics.jsonl` is written: step 0, the multiples of
        `log_every`, the evaluations, and the last step.
      evaluations: steps at which all splits are evaluated.
      checkpoints: steps at which the parameters are saved.
      resumes: steps at which the full state is saved for resuming.
    """

    horizon: int
    log_every: int
    rows: tuple[int, ...]
    evaluations: tuple[int, ...]
    checkpoints: tuple[int, ...]
    resumes: tuple[int, ...]

    @classmethod
    def from_config(cls, config: Any) -> Schedule:
        """Create the schedule of a configuration. The configuration must pass `faults`."""
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
        """Return the step of the first event after `step`."""
        later = [
            steps[index]
            for steps in (self.rows, self.checkpoints, self.resumes)
            if (index := bisect.bisect_right(steps, step)) < len(steps)
        ]
        return min(later, default=self.horizon)

    def previous_row(self, step: int) -> int:
        """Return the last step before `step` that has a metrics row, or 0."""
        return self.rows[max(bisect.bisect_left(self.rows, step) - 1, 0)]
