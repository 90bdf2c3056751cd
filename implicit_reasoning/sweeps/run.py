"""`run_sweep` trains the trials of a sweep that are not done, with a launcher."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

from implicit_reasoning import imports
from implicit_reasoning.config import flatten, to_json
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import FORMAT_VERSION, read_json
from implicit_reasoning.paths import local_folder
from implicit_reasoning.runs import check_path
from implicit_reasoning.runs.config import CONFIG_FORMAT
from implicit_reasoning.runtime import distributed
from implicit_reasoning.runtime.shutdown import shutdown_requests, signal_name
from implicit_reasoning.sweeps.definition import Sweep
from implicit_reasoning.sweeps.directory import (
    DIVERGED,
    DONE,
    FAILED,
    PRUNED,
    Journal,
    Status,
    SweepLayout,
    begin,
    exclusive,
    load,
)
from implicit_reasoning.sweeps.launchers.base import Launcher, LaunchRequest, last_saved_step
from implicit_reasoning.sweeps.progress import Progress
from implicit_reasoning.training import Interrupted
from implicit_reasoning.training.directory import check_same

LAUNCHERS = {
    "vmap": "implicit_reasoning.sweeps.launchers.vmap:vmap",
    "local": "implicit_reasoning.sweeps.launchers.local:local",
    "ray": "implicit_reasoning.sweeps.launchers.on_ray:on_ray",
    "slurm": "implicit_reasoning.sweeps.launchers.on_slurm:on_slurm",
}
"""Launchers of this package. A user's own launcher is specified by its import path."""

_OWN_BAR = ("vmap",)  # launchers that train in this process and show their own progress bar


class SweepInterrupted(Interrupted):
    """A signal interrupted a sweep. The states of its trials are saved."""

    def __init__(self, signal: str, done: int, count: int):
        Exception.__init__(
            self,
            f"{signal}: {done} of {count} trials are done, and the states of the other trials are "
            "saved; rerun the same command to continue",
        )


class TrialsLost(Exception):
    """Some trials of a sweep diverged or failed."""


def check_all_done(statuses: Mapping[str, Status]) -> None:
    """Check that no trial diverged or failed.

    Args:
      statuses: the status of every trial.

    Raises:
      TrialsLost: at least one trial diverged or failed.
    """
    lost = sum(status.state in (DIVERGED, FAILED) for status in statuses.values())
    if lost:
        raise TrialsLost(
            f"{lost} of {len(statuses)} trials diverged or failed (the report lists "
            "them); rerun the same command to retry the failed trials"
        )


def run_sweep(
    sweep: Sweep,
    workdir: str | os.PathLike[str],
    *,
    launcher: str | None = None,
    stop_at: int | None = None,
    only: Collection[str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Status]:
    """Train all trials of a sweep that are not done.

    Trials that diverged or were pruned are not trained again. Failed trials are tried again.

    Args:
      sweep: the sweep, as returned by `define`.
      workdir: directory of the sweep; created if it is missing.
      launcher: a name in `LAUNCHERS`, or `package.module:function`. The default is `vmap` if this
        process is one of several hosts, if some trials can form a population, or if there is only
        one trial. Otherwise, the default is `local`.
      stop_at: step at which to stop every trial that does not end earlier. A later call can resume
        the trials.
      only: names of the trials to train; by default all.
      options: options of the launcher. The module of the launcher describes them.

    Returns:
      The status of every trial, by trial name.

    Raises:
      InputError: no trial was started, for one of these reasons: the configuration of a started
        trial has changed, a name in `only` is unknown, a different launcher uses the directory, or
        `launcher` cannot be used here.
      SweepInterrupted: a signal interrupted the sweep. The same call continues the sweep.
      OSError: files cannot be written. The files of finished trials are complete.
    """
    files = SweepLayout(local_folder(workdir, "workdir"))
    check_path(files.workdir)
    if stop_at is not None and stop_at < 0:
        raise InputError(f"stop_at is {stop_at}; it must be at least 0")
    if unknown := sorted(set(only or ()) - set(sweep.trials)):
        raise InputError(f"this sweep has no trial named {', '.join(unknown)}")
    distributed.initialize(sweep.base.distributed)
    name = launcher or ("vmap" if distributed.is_distributed() else default_launcher(sweep))
    launch = find_launcher(name)
    if distributed.is_distributed() and name != "vmap":
        raise InputError(
            f"--launcher={name} cannot be used with distributed.mode; on many hosts, use "
            "--launcher=vmap"
        )
    with contextlib.ExitStack() as stack:
        stack.enter_context(distributed.exit_if_peer_lost())
        given = json.dumps([list(sweep.trials), stop_at, None if only is None else sorted(only)])
        if distributed.is_primary():
            stack.enter_context(exclusive(files))
            sweep = begin(files, sweep)
        # All processes wait until the primary process has written the files.
        if distributed.is_distributed():
            distributed.assert_same_across_processes(given)
            sweep = load(files)
        journal = Journal(files, writes=distributed.is_primary())
        stack.callback(journal.close)
        stops = pending_trials(files, sweep, journal, stop_at, only)
        shown = bool(sweep.base.writers.progress) and name not in _OWN_BAR
        board = Progress(files, journal, stops, bar=shown)
        stack.callback(board.close)
        shutdown = stack.enter_context(shutdown_requests())
        if stops:
            launch(LaunchRequest(files, sweep, stops, options or {}), board, shutdown)
        statuses = {trial: journal.status(trial) for trial in sweep.trials}
        if shutdown:
            done = sum(status.state == DONE for status in statuses.values())
            raise SweepInterrupted(signal_name(shutdown.number) or "", done, len(statuses))
    return statuses


def pending_trials(
    files: SweepLayout,
    sweep: Sweep,
    journal: Journal,
    stop_at: int | None = None,
    only: Collection[str] | None = None,
) -> dict[str, int]:
    """Return the final step of each trial that must be trained, by trial name.

    If a trial has saved its final step but is not done according to the journal, the journal is
    updated.

    Args:
      files: files of the sweep.
      sweep: the sweep.
      journal: the journal.
      stop_at: as for `run_sweep`.
      only: as for `run_sweep`.

    Raises:
      InputError: the directory of a trial contains a run with a different configuration.
    """
    found = {}
    chosen = sweep.trials if only is None else set(only)
    same = _sameness(files, sweep)
    for trial, overrides in sweep.trials.items():
        if trial not in chosen:
            continue
        status, steps = journal.status(trial), int(overrides.get("steps", sweep.base.steps))
        stop = steps if stop_at is None else min(stop_at, steps)
        if status.state in (DIVERGED, PRUNED) or (status.state == DONE and status.step >= stop):
            continue
        if files.trial(trial).config.exists():
            if not same(trial):
                check_same(files.trial(trial), sweep.config(trial))
            # The journal may lack the end of the trial: the launcher stopped before the trial
            # ended, or another launcher trained the trial.
            if (step := last_saved_step(files.trial(trial))) >= stop:
                journal.note(trial, DONE, step=step)
                continue
        found[trial] = stop
    return found


def _sameness(files: SweepLayout, sweep: Sweep) -> Callable[[str], bool]:
    """Return a function that compares a trial's saved configuration with the one of this sweep.

    The function compares JSON and does not build the configuration of the trial, because there may
    be thousands of trials. It returns True if the two are identical. If it returns False,
    `check_same` may still find that the two configurations are equivalent.
    """
    base = {FORMAT_VERSION: CONFIG_FORMAT, **flatten(to_json(sweep.base))}

    def same(trial: str) -> bool:
        own = json.loads(json.dumps(sweep.trials[trial]))  # tuples are lists in JSON
        return flatten(read_json(files.trial(trial).config)) == {**base, **own}

    return same


def default_launcher(sweep: Sweep) -> str:
    """Return the name of the default launcher for a sweep, on one host.

    The default is `vmap` if some trials have the same shape or there is only one trial. Otherwise,
    the default is `local`.
    """
    return "vmap" if len(sweep.shapes) < len(sweep.trials) or len(sweep.trials) == 1 else "local"


def find_launcher(name: str) -> Launcher:
    """Return the launcher with a name or import path.

    Args:
      name: a key of `LAUNCHERS`, `package.module:function` or `file.py:function`.

    Raises:
      InputError: there is no such launcher.
    """
    launcher: Launcher = imports.find(name, LAUNCHERS, "launcher")
    return launcher
