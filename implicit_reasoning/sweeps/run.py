"""`run_sweep`: do what is not done of a sweep, with a launcher."""

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
"""Those that come with the lab; others are found by import path."""

_OWN_BAR = ("vmap",)  # launchers that train here, and show how far they are


class SweepInterrupted(Interrupted):
    """A signal came; what the trials had reached is saved."""

    def __init__(self, signal: str, done: int, count: int):
        Exception.__init__(
            self,
            f"{signal}: {done} of {count} trials are done, what the others reached is saved; the "
            "same command goes on from there",
        )


class TrialsLost(Exception):
    """Some trials diverged or failed; all others are done."""


def check_all_done(statuses: Mapping[str, Status]) -> None:
    """Raise `TrialsLost` if a trial is."""
    lost = sum(status.state in (DIVERGED, FAILED) for status in statuses.values())
    if lost:
        raise TrialsLost(
            f"{lost} of {len(statuses)} trials diverged or failed, see the page; the same command "
            "tries again those that failed"
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
    """Train all trials of a sweep, or go on with those that are not done.

    Trials that diverged or were pruned have ended; those that failed are tried again.

    Args:
      sweep: as `define` makes it.
      workdir: of the sweep; made if missing.
      launcher: a name of `LAUNCHERS`, or `package.module:function`; by default `vmap` where any two
        trials can be one population, else `local`.
      stop_at: stop every trial, resumable, after so many steps in all.
      only: names of the trials to go on with, as where others have done enough; by default all.
      options: of the launcher: see its module.

    Returns:
      What is known of every trial.

    Raises:
      InputError: nothing was started: a trial that began would have another configuration, there is
        no trial of a name, another launcher holds the directory, or this one cannot be used here.
      SweepInterrupted: a signal came; the same call goes on.
      OSError: files cannot be written; what is done is whole.
    """
    files = SweepLayout(local_folder(workdir, "workdir"))
    check_path(files.workdir)
    if stop_at is not None and stop_at < 0:
        raise InputError(f"stop_at is {stop_at}; it is a number of steps, 0 or more")
    if unknown := sorted(set(only or ()) - set(sweep.trials)):
        raise InputError(f"there is no trial {', '.join(unknown)} in this sweep")
    distributed.initialize(sweep.base.distributed)
    name = launcher or ("vmap" if distributed.is_distributed() else default_launcher(sweep))
    launch = find_launcher(name)
    if distributed.is_distributed() and name != "vmap":
        raise InputError(
            f"--launcher={name} starts processes of its own; on many hosts, with "
            "distributed.mode, only vmap trains"
        )
    with contextlib.ExitStack() as stack:
        stack.enter_context(distributed.exit_if_peer_lost())
        given = json.dumps([list(sweep.trials), stop_at, None if only is None else sorted(only)])
        if distributed.is_primary():
            stack.enter_context(exclusive(files))
            sweep = begin(files, sweep)
        if distributed.is_distributed():  # nobody reads on before it is written
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
    """The trials to go on with, and the step at which each stops; what ended unheard of is noted.

    Raises:
      InputError: the directory of one holds a run with another configuration.
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
            # Its launcher was gone when it ended, or another one has trained it.
            if (step := last_saved_step(files.trial(trial))) >= stop:
                journal.note(trial, DONE, step=step)
                continue
        found[trial] = stop
    return found


def _sameness(files: SweepLayout, sweep: Sweep) -> Callable[[str], bool]:
    """Whether a trial's directory has just the configuration that it would have now.

    Without making that configuration, as there may be thousands; where the answer is no, a closer
    look may still find them alike.
    """
    base = {FORMAT_VERSION: CONFIG_FORMAT, **flatten(to_json(sweep.base))}

    def same(trial: str) -> bool:
        own = json.loads(json.dumps(sweep.trials[trial]))  # tuples are lists there
        return flatten(read_json(files.trial(trial).config)) == {**base, **own}

    return same


def default_launcher(sweep: Sweep) -> str:
    """`vmap` where two trials have one shape, or there is one only."""
    return "vmap" if len(sweep.shapes) < len(sweep.trials) or len(sweep.trials) == 1 else "local"


def find_launcher(name: str) -> Launcher:
    """The launcher behind a name; an `InputError` if there is none."""
    launcher: Launcher = imports.find(name, LAUNCHERS, "launcher")
    return launcher
