"""A sweep's directory: what it is, what became of each trial, and nobody else in it.

    sweep.json       the base configuration, and what each trial changes
    journal.jsonl    a line for everything that happened to a trial, in order
    trials/<name>/   a run directory each, made when the trial begins
    populations/<n>/ stacked checkpoints and states of trials that were trained together
    report/          the page

However many trials there are, planning them writes two files. The launcher's process alone writes
here, but for what trials write in directories of their own.
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
"""Of `sweep.json`. A new field of the configuration does not raise it."""

WAITING, RUNNING, DONE = "waiting", "running", "done"
STOPPED, FAILED, DIVERGED, PRUNED = "stopped", "failed", "diverged", "pruned"
ENDED = (DONE, DIVERGED, PRUNED)
"""States from which a trial does not go on, but to a later step than it was asked for."""


class Status(NamedTuple):
    """What is known of a trial.

    Attributes:
      state: one of the words above.
      step: that it has reached.
      attempts: times that it was started.
      why: it failed, or was stopped.
      seconds: that its attempts took.
    """

    state: str = WAITING
    step: int = 0
    attempts: int = 0
    why: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class SweepLayout:
    """The files of a sweep's directory."""

    workdir: Path

    @property
    def sweep(self) -> Path:
        """What the sweep is; a directory that has it is a sweep's."""
        return self.workdir / "sweep.json"

    @property
    def journal(self) -> Path:
        """What happened."""
        return self.workdir / "journal.jsonl"

    @property
    def trials(self) -> Path:
        """The run directories; TensorBoard's `--logdir`."""
        return self.workdir / "trials"

    @property
    def populations(self) -> Path:
        """Stacked checkpoints and states."""
        return self.workdir / "populations"

    @property
    def report(self) -> Path:
        """The page for people."""
        return self.workdir / "report" / "index.html"

    def trial(self, name: str) -> Layout:
        """The run directory of a trial."""
        return Layout(self.trials / name)


def exclusive(files: SweepLayout) -> AbstractContextManager[None]:
    """Hold the directory; an `InputError` if another launcher does."""
    return exclusive_lock(
        files.workdir,
        f"another launcher is running the sweep in {files.workdir}; wait for it, or choose another "
        "--workdir",
    )


def begin(files: SweepLayout, sweep: Sweep) -> Sweep:
    """Write down what the sweep is, or go on with the one that is there.

    A sweep may grow: trials that are new are added, and those that were there before stay.

    Returns:
      The sweep, with the trials that were there before and are not in the new definition.

    Raises:
      InputError: a trial that has begun would now have another configuration; it is named.
    """
    trials = dict(sweep.trials)
    if files.sweep.exists():
        old = load(files)
        _check_same(files, old, sweep)
        trials = {**old.trials, **trials}
    elif files.workdir.exists() and (files.workdir / "config.json").exists():
        raise InputError(f"{files.workdir} is a run, not a sweep; choose another --workdir")
    grown = Sweep(sweep.base, trials)
    kept = {FORMAT_VERSION: SWEEP_FORMAT, "base": to_json(sweep.base), "trials": trials}
    if not files.sweep.exists() or read_json(files.sweep) != json.loads(json.dumps(kept)):
        write_json(files.sweep, kept, indent=None)
    return grown


def load(files: SweepLayout) -> Sweep:
    """The sweep of a directory; an `InputError` if it is none."""
    if not files.sweep.exists():
        raise InputError(
            f"{files.workdir} is no sweep's directory: it has no sweep.json; `sweep` makes one"
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
        raise InputError(f"{files.sweep} does not say what trials there are") from None


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
                f"trial {name} in {files.workdir} has begun with {dict(before)}; it would now have "
                f"{dict(overrides)}; choose another --workdir"
            )
        own = [change for change in changes if change.key not in overrides]
        if own:
            raise InputError(
                f"trial {name} in {files.workdir} has begun with another configuration "
                f"({listed(own)}); go on with the old one, or choose another --workdir"
            )


class Journal:
    """Writes what happens to trials, and knows what happened."""

    def __init__(self, files: SweepLayout, *, writes: bool = True):
        """Open it; where it `writes`, a line that a crash cut short is dropped."""
        self.statuses = read_journal(files)
        self._began: dict[str, float] = {}
        self._file: IO[str] | None = None
        if writes:
            drop_torn_line(files.journal)
            self._file = files.journal.open("a", encoding="utf-8")

    def status(self, trial: str) -> Status:
        """Of a trial, as of now."""
        return self.statuses.get(trial, Status())

    def note(self, trial: str, state: str, *, step: int | None = None, why: str = "") -> Status:
        """Write one line; it is on disk when this returns."""
        # The time of day may be set back while a trial runs; how long it took may not be negative.
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
    """What is known of every trial to which anything has happened.

    Raises:
      InputError: a line is no event; it is named.
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
                f"{files.journal}, line {number}, is no event: {line[:60]!r}; remove it to go on"
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
    """Remove the end of a file of lines that a crash cut short, before anything is added to it."""
    if not path.exists():
        return
    whole = path.read_bytes()
    kept = whole[: whole.rfind(b"\n") + 1]
    if len(kept) < len(whole):
        with path.open("r+b") as file:
            file.truncate(len(kept))


def describe(files: SweepLayout, sweep: Sweep, name: str) -> None:
    """Write what was chosen for a trial, and the fields that any of the trials sets."""
    about = {"name": name, "overrides": dict(sweep.trials[name]), "keys": list(sweep.keys)}
    write_json(files.trial(name).trial, about)


def trial_config(sweep: Sweep, name: str) -> ConfigDict:
    """The configuration of a trial; an `InputError` if there is none of that name."""
    if name not in sweep.trials:
        raise InputError(f"there is no trial {name!r} in this sweep")
    return sweep.config(name)
