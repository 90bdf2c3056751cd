"""What a launcher says happens: into the journal, and as a bar with an ETA for people."""

from __future__ import annotations

import collections
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from implicit_reasoning.sweeps.directory import (
    DIVERGED,
    DONE,
    FAILED,
    PRUNED,
    RUNNING,
    Journal,
    Status,
    SweepLayout,
)

_SECONDS = 1.0  # between looks at the rows of trials
_TAIL = 65_536  # bytes of a file of rows, at its end: more than a row has


class Progress:
    """Notes events; counts the steps of trials that run in other processes."""

    def __init__(
        self, files: SweepLayout, journal: Journal, stops: Mapping[str, int], *, bar: bool
    ):
        """Begin.

        Args:
          files: of the sweep.
          journal: to write into.
          stops: the trials that a launcher was given, and the step at which each is to stop.
          bar: show one; its unit is a step of any trial.
        """
        self._files, self._journal = files, journal
        self._steps = {trial: journal.status(trial).step for trial in stops}
        self._state: dict[str, str] = {}
        self._submitted: dict[str, float] = {}
        self._looked, self._count = 0.0, len(stops)
        total, there = sum(stops.values()), sum(self._steps.values())
        self._bar = tqdm(
            total=total, initial=there, unit="step", disable=not bar, dynamic_ncols=True
        )
        self._show()

    def note(self, trial: str, state: str, *, step: int | None = None, why: str = "") -> None:
        """Something happened to a trial; what went wrong is said at once."""
        if state != RUNNING and self._submitted.pop(trial, None) is not None:
            self._journal.note(trial, RUNNING)  # it began and ended between two looks
        self._state[trial] = state
        status = self._journal.note(trial, state, step=step, why=why)
        if state in (FAILED, DIVERGED):
            tqdm.write(f"{trial} {state} at step {status.step:,}: {why}", file=sys.stderr)
        if step is not None:
            self._reach(trial, step)
        self._show()

    def submitted(self, trial: str) -> None:
        """A trial was handed to somebody who will start it; `look` sees when it has begun."""
        self._submitted[trial] = _changed(self._files.trial(trial).provenance)

    def look(self) -> None:
        """See how far the running trials are, not more often than once a second."""
        if time.monotonic() - self._looked < _SECONDS:
            return
        self._looked = time.monotonic()
        for trial, before in list(self._submitted.items()):
            if _changed(self._files.trial(trial).provenance) != before:
                del self._submitted[trial]
                self.note(trial, RUNNING)
        for trial, state in self._state.items():
            if state == RUNNING:
                self._reach(trial, last_step(self._files.trial(trial).metrics))

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()

    def _reach(self, trial: str, step: int) -> None:
        before = self._steps.get(trial, 0)
        self._steps[trial] = max(before, step)
        self._bar.update(self._steps[trial] - before)

    def _show(self) -> None:
        seen = collections.Counter(self._state.values())
        said = {"done": f"{seen[DONE]}/{self._count}", "running": str(seen[RUNNING])}
        said |= {state: str(seen[state]) for state in (FAILED, DIVERGED, PRUNED) if seen[state]}
        self._bar.set_postfix(said)


def _changed(path: Path) -> float:
    """When a file was last written; 0 where there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def last_step(metrics: Path) -> int:
    """The step of the last whole row of a `metrics.jsonl`; 0 where there is none."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL))
            lines = file.read().split(b"\n")
        return int(json.loads(lines[-2])["step"]) if len(lines) > 1 else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def table(statuses: dict[str, Status]) -> str:
    """What became of all trials, and of each that did not end well, for a person."""
    seen: collections.Counter[Any] = collections.Counter(
        status.state for status in statuses.values()
    )
    lines = [f"{count} {state}" for state, count in seen.most_common()]
    for trial, status in statuses.items():
        if status.why and status.state in (FAILED, DIVERGED):
            lines.append(f"  {trial}: {status.state} at step {status.step:,}: {status.why}")
    return "\n".join(lines)
