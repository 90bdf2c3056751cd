"""Progress of a sweep: events for the journal, and a progress bar with the estimated end."""

from __future__ import annotations

import collections
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from implicit_reasoning.runtime.progress import ProgressBar, write
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

_SECONDS = 1.0  # seconds between checks of the trials' metrics
_TAIL = 65_536  # bytes to read at the end of a metrics file; a row is shorter


class Progress:
    """Recorder of trial events, and counter of the steps that other processes train."""

    def __init__(
        self, files: SweepLayout, journal: Journal, stops: Mapping[str, int], *, bar: bool
    ):
        """Create the progress bar from the state of the journal.

        Args:
          files: files of the sweep.
          journal: journal to write to.
          stops: final step of each trial that the launcher trains, by trial name.
          bar: whether to show a progress bar; its unit is one step of any trial.
        """
        self._files, self._journal = files, journal
        self._steps = {trial: journal.status(trial).step for trial in stops}
        self._state: dict[str, str] = {}
        self._submitted: dict[str, float] = {}
        self._looked, self._count = 0.0, len(stops)
        total, there = sum(stops.values()), sum(self._steps.values())
        self._bar = ProgressBar(total, done=there, shown=bar)
        self._show()

    def note(self, trial: str, state: str, *, step: int | None = None, why: str = "") -> None:
        """Record an event of a trial.

        A failure or a divergence is also printed immediately.

        Args:
          trial: name of the trial.
          state: the new state, such as `directory.DONE`.
          step: the training step that the trial has reached; by default the step of its last event.
          why: reason for a failure or a stop.
        """
        if state != RUNNING and self._submitted.pop(trial, None) is not None:
            # The trial began and ended between two calls of `look`.
            self._journal.note(trial, RUNNING)
        self._state[trial] = state
        status = self._journal.note(trial, state, step=step, why=why)
        if state in (FAILED, DIVERGED):
            write(f"{trial} {state} at step {status.step:,}: {why}")
        if step is not None:
            self._reach(trial, step)
        self._show()

    def submitted(self, trial: str) -> None:
        """Record that a trial was queued. `look` detects when the trial begins."""
        self._submitted[trial] = _changed(self._files.trial(trial).provenance)

    def look(self) -> None:
        """Update the progress of the running trials, at most once per second."""
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
        """Close the progress bar."""
        self._bar.close()

    def _reach(self, trial: str, step: int) -> None:
        before = self._steps.get(trial, 0)
        self._steps[trial] = max(before, step)
        self._bar.advance(self._steps[trial] - before)

    def _show(self) -> None:
        seen = collections.Counter(self._state.values())
        said = {"done": f"{seen[DONE]}/{self._count}", "running": str(seen[RUNNING])}
        said |= {state: str(seen[state]) for state in (FAILED, DIVERGED, PRUNED) if seen[state]}
        self._bar.show_values(said)


def _changed(path: Path) -> float:
    """Return the modification time of a file, or 0 if it does not exist."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def last_step(metrics: Path) -> int:
    """Return the step of the last complete row of `metrics.jsonl`; 0 if there is no row."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL))
            lines = file.read().split(b"\n")
        return int(json.loads(lines[-2])["step"]) if len(lines) > 1 else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def table(statuses: dict[str, Status]) -> str:
    """Return a text with the number of trials in each state, and the reason for each failure."""
    seen: collections.Counter[Any] = collections.Counter(
        status.state for status in statuses.values()
    )
    lines = [f"{count} {state}" for state, count in seen.most_common()]
    for trial, status in statuses.items():
        if status.why and status.state in (FAILED, DIVERGED):
            lines.append(f"  {trial}: {status.state} at step {status.step:,}: {status.why}")
    return "\n".join(lines)
