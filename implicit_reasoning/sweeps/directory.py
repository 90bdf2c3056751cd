"""Files in the directory of a sweep, and the lock against a second launcher.

    sweep.json       the base configuration, and the overrides of each trial
    journal.jsonl    one line for each event of a trial, in order
    trials/<name>/   one run directory per trial, created when the trial starts
    populations/<n>/ stacked checkpoints and states of trials that were trained together
    report/          the report

`sweep.json` and `journal.jsonl` cover all trials, so a sweep of many trials does not need many
files. The process of a trial writes only in the directory of that trial. The process of the
launcher writes all other files.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from ml_collections import ConfigDict

from implicit_reasoning.config import changed_keys, from_json, listed, to_json
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import FORMAT_VERSION, check_format, read_json, write_json
from implicit_reasoning.runs import Layout, completed
from implicit_reasoning.runs.fields import is_field
from implicit_reasoning.runtime.locks import exclusive_lock
from implicit_reasoning.sweeps.definition import Sweep

SWEEP_FORMAT = 1
"""Version of `sweep.json`; it does not change when the configuration gets a new field."""

WAITING, RUNNING, DONE = "waiting", "running", "done"
STOPPED, FAILED, DIVERGED, PRUNED = "stopped", "failed", "diverged", "pruned"
ENDED = (DONE, DIVERGED, PRUNED)
"""States in which a trial has ended. A DONE trial continues only if a later step is requested."""


class Status(NamedTuple):
    """Status of a trial.

    Attributes:
      state: WAITING, RUNNING, DONE, STOPPED, FAILED, DIVERGED or PRUNED.
      step: the training step that the trial had reached at its last event.
      attempts: number of times that the trial was started.
      why: reason for a failure or a stop.
      seconds: total duration of the attempts.
    """

    state: str = WAITING
    step: int = 0
    attempts: int = 0
    why: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class SweepLayout:
    """Paths of the files in the directory of a sweep."""

    workdir: Path

    @property
    def sweep(self) -> Path:
        """Path of the definition of the sweep. Every directory of a sweep contains this file."""
        return self.workdir / "sweep.json"

    @property
    def journal(self) -> Path:
        """Path of the journal of events."""
        return self.workdir / "journal.jsonl"

    @property
    def trials(self) -> Path:
        """Path of the folder that contains the run directories.

        TensorBoard accepts this folder as its `--logdir`.
        """
        return self.workdir / "trials"

    @property
    def populations(self) -> Path:
        """Path of the stacked checkpoints and states."""
        return self.workdir / "populations"

    @property
    def report(self) -> Path:
        """Path of the report."""
        return self.workdir / "report" / "index.html"

    def trial(self, name: str) -> Layout:
        """Return the layout of the run directory of a trial."""
        return Layout(self.trials / name)


def exclusive(files: SweepLayout) -> AbstractContextManager[None]:
    """Lock the directory of a sweep, so that no second launcher uses it.

    Raises:
      InputError: a different launcher holds the lock.
    """
    return exclusive_lock(
        files.workdir,
        f"another launcher is running the sweep in {files.workdir}; wait for it, or choose another "
        "--workdir",
    )


def begin(files: SweepLayout, sweep: Sweep) -> Sweep:
    """Write the definition of a sweep, or merge it with the definition in the directory.

    Returns:
      The merged sweep, with the trials of both definitions.

    Raises:
      InputError: the configuration of a started trial would change, or the directory contains a run
        instead of a sweep.
    """
    trials = dict(sweep.trials)
    if files.sweep.exists():
        old = load(files)
        _check_same(files, old, sweep)
        trials = {**old.trials, **trials}
    elif files.workdir.exists() and (files.workdir / "config.json").exists():
        raise InputError(f"{files.workdir} contains a run, not a sweep; choose another --workdir")
    grown = Sweep(sweep.base, trials)
    kept = {FORMAT_VERSION: SWEEP_FORMAT, "base": to_json(sweep.base), "trials": trials}
    if not files.sweep.exists() or read_json(files.sweep) != json.loads(json.dumps(kept)):
        write_json(files.sweep, kept, indent=None)
    return grown


def load(files: SweepLayout) -> Sweep:
    """Load the sweep of a directory.

    Raises:
      InputError: the directory does not contain a valid sweep.
    """
    if not files.sweep.exists():
        raise InputError(
            f"{files.workdir} is not a sweep directory: it does not contain sweep.json, "
            "which the command `sweep` writes"
        )
    kept = read_json(files.sweep)
    if isinstance(kept, dict):
        check_format(files.sweep, kept.get(FORMAT_VERSION, 1), SWEEP_FORMAT)
    try:
        trials = {
            name: {key: _tuples(value) for key, value in overrides.items()}
            for name, overrides in kept["trials"].items()
        }
        return Sweep(completed(from_json(kept["base"])), trials)
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{files.sweep} does not contain a valid list of trials") from None


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _check_same(files: SweepLayout, old: Sweep, new: Sweep) -> None:
    changes = changed_keys(old.base, completed(new.base))
    changes = [change for change in changes if is_field(new.base, change.key)]
    statuses = read_journal(files)
    for name, overrides in {**old.trials, **new.trials}.items():
        status = statuses.get(name)
        if status is None or status.state == WAITING:
            continue
        if (before := old.trials.get(name, overrides)) != overrides:
            raise InputError(
                f"trial {name} in {files.workdir} started with the overrides {dict(before)}, but "
                f"the new sweep gives it the overrides {dict(overrides)}; choose another --workdir"
            )
        own = [change for change in changes if change.key not in overrides]
        if own:
            raise InputError(
                f"trial {name} in {files.workdir} started with a configuration that "
                f"differs from the new configuration ({listed(own)}); use the old "
                "configuration, or choose another --workdir"
            )


class Journal:
    """The events of all trials, and the statuses that follow from the events."""

    def __init__(self, files: SweepLayout, *, writes: bool = True):
        """Open the journal.

        Args:
          files: files of the sweep.
          writes: whether to append events to the file. If so, a last line that is incomplete
            because of a crash is removed first.
        """
        self.statuses = read_journal(files)
        self._began: dict[str, float] = {}
        self._file: IO[str] | None = None
        if writes:
            drop_torn_line(files.journal)
            self._file = files.journal.open("a", encoding="utf-8")

    def status(self, trial: str) -> Status:
        """Return the current status of a trial."""
        return self.statuses.get(trial, Status())

    def note(self, trial: str, state: str, *, step: int | None = None, why: str = "") -> Status:
        """Append one event to the journal, and write it to disk before returning.

        Args:
          trial: name of the trial.
          state: the new state.
          step: the training step that the trial has reached; by default the step of its last event.
          why: reason for a failure or a stop.

        Returns:
          The new status of the trial.
        """
        # Use a monotonic clock: durations must not be negative if the system clock is set back.
        now, before = time.monotonic(), self.status(trial)
        if state == RUNNING:
            self._began[trial] = now
        event = {
            "time": time.time(),
            "trial": trial,
            "state": state,
            "step": before.step if step is None else step,
            "why": why,
            "seconds": 0.0 if state == RUNNING else now - self._began.pop(trial, now),
        }
        if self._file:
            self._file.write(json.dumps(event) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        self.statuses[trial] = _after(before, event)
        return self.statuses[trial]

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()


def read_journal(files: SweepLayout) -> dict[str, Status]:
    """Return the status of every trial that has events, by trial name.

    Raises:
      InputError: a line is not a valid event. The message gives the line.
    """
    statuses: dict[str, Status] = {}
    if not files.journal.exists():
        return statuses
    lines = files.journal.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            event = json.loads(line)
            statuses[event["trial"]] = _after(statuses.get(event["trial"], Status()), event)
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{files.journal}, line {number}, is not a valid event: {line[:60]!r}; remove the "
                "line to continue"
            ) from None
    return statuses


def _after(status: Status, event: Mapping[str, Any]) -> Status:
    return Status(
        state=str(event["state"]),
        step=int(event["step"]),
        attempts=status.attempts + (event["state"] == RUNNING),
        why=str(event["why"]),
        seconds=status.seconds + float(event["seconds"]),
    )


def drop_torn_line(path: Path) -> None:
    """Remove an incomplete last line of a file, which a crash can leave."""
    if not path.exists():
        return
    whole = path.read_bytes()
    kept = whole[: whole.rfind(b"\n") + 1]
    if len(kept) < len(whole):
        with path.open("r+b") as file:
            file.truncate(len(kept))


def describe(files: SweepLayout, sweep: Sweep, name: str) -> None:
    """Write a file with the name of a trial, its overrides, and the names of all overridden fields.

    The third entry lists every field that at least one trial of the sweep overrides.
    """
    about = {"name": name, "overrides": dict(sweep.trials[name]), "keys": list(sweep.keys)}
    write_json(files.trial(name).trial, about)


def trial_config(sweep: Sweep, name: str) -> ConfigDict:
    """Return the configuration of a trial.

    Raises:
      InputError: there is no trial with this name.
    """
    if name not in sweep.trials:
        raise InputError(f"there is no trial {name!r} in this sweep")
    return sweep.config(name)
