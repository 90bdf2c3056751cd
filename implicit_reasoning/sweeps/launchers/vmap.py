"""Launcher `vmap`: trains trials of the same shape in one program, on all devices.

Trials of the same shape form a population. If they do not fit into memory together, they form
several populations. Populations are trained one after another. On a pod, every host runs the same
command, and the trial axis is sharded over the devices of all hosts.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from implicit_reasoning.config import to_json
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import read_json, write_json
from implicit_reasoning.runs import DamagedCheckpoint, Layout
from implicit_reasoning.runtime import distributed
from implicit_reasoning.runtime.machine import max_open_files, memory_per_program
from implicit_reasoning.runtime.shutdown import Interrupted, ShutdownRequest
from implicit_reasoning.sweeps.directory import (
    DIVERGED,
    DONE,
    FAILED,
    RUNNING,
    STOPPED,
    SweepLayout,
    describe,
)
from implicit_reasoning.sweeps.launchers.base import (
    LaunchRequest,
    ProgressReporter,
    last_saved_step,
)
from implicit_reasoning.training import directory, saved_states, setup
from implicit_reasoning.training.cost import row_shape, step_cost
from implicit_reasoning.training.loop import NonFiniteLoss
from implicit_reasoning.training.population import make_mesh, shape_of, train_population
from implicit_reasoning.training.settings import Trial
from implicit_reasoning.worlds import Dataset

_COPIES = 4  # copies of a trial's state that a step may need: state, gradients and temporaries
_FILES = 3  # open files per trial in the process that writes the files of the trials
_OTHER_FILES = 128


@dataclass(frozen=True)
class _Group:
    """Trials that form one population, and the population's directory."""

    names: tuple[str, ...]
    trials: tuple[Trial, ...]
    files: Layout


def vmap(work: LaunchRequest, board: ProgressReporter, shutdown: ShutdownRequest) -> None:
    """Train the trials as populations, one population after another.

    If the run of a trial cannot be opened, the trial is recorded as failed.
    """
    left = list(work.stops)
    while left:
        groups, left = _groups(work, board, left), []
        if distributed.is_distributed():
            alike = [[group.names, str(group.files.workdir)] for group in groups]
            distributed.assert_same_across_processes(json.dumps(alike))
        for number, group in enumerate(groups, start=1):
            if _agree(shutdown):
                return
            title = f"population {number} of {len(groups)}, {len(group.names)} trials"
            left += _train(work, group, board, shutdown, title)
            _drop_old_states(work.files)


def _agree(shutdown: ShutdownRequest) -> bool:
    """Return whether any process received a signal; if so, all processes stop."""
    asked = distributed.allgather(np.array([shutdown.number], np.float32))
    shutdown.number = int(asked.max())
    return bool(shutdown)


def _train(
    work: LaunchRequest,
    group: _Group,
    board: ProgressReporter,
    shutdown: ShutdownRequest,
    title: str,
) -> Sequence[str]:
    """Train one population; return the names of the trials that must be grouped again."""
    if distributed.is_primary():
        write_json(_members(group.files), list(group.names))
    for name in group.names:
        if distributed.is_primary():
            describe(work.files, work.sweep, name)
        board.note(name, RUNNING)
    lost: set[str] = set()

    def lose(number: int, step: int) -> None:
        lost.add(group.names[number])
        board.note(group.names[number], DIVERGED, step=step, why=str(NonFiniteLoss(step)))

    def note_all(state: str, why: str = "", step: int | None = None) -> None:
        for name in group.names:
            if name not in lost:
                at = last_saved_step(work.files.trial(name)) if step is None else step
                board.note(name, state, step=at, why=why)

    stop = work.stops[group.names[0]]  # trials of one shape have the same number of steps
    try:
        train_population(group.trials, group.files, stop, shutdown, lost=lose, title=title)
    except Interrupted as stopped:
        note_all(STOPPED, str(stopped))
        # The signal may have reached another process.
        shutdown.number = shutdown.number or signal.SIGTERM
    except DamagedCheckpoint as damage:
        print(f"implicit_reasoning: {damage}; trying the previous state", file=sys.stderr)
        note_all(STOPPED, str(damage))
        return group.names
    except InputError as error:
        note_all(FAILED, str(error))
        if distributed.is_distributed():  # the other processes may be waiting for this one
            raise
    except distributed.PeerLost as error:
        note_all(STOPPED, str(error))
        raise
    except Exception as error:
        note_all(FAILED, str(error) or type(error).__name__)
        raise
    else:
        note_all(DONE, step=stop)
    return ()


def _groups(work: LaunchRequest, board: ProgressReporter, names: Sequence[str]) -> list[_Group]:
    """Group trials into populations that fit into memory, by shape, saved step and final step."""
    found: dict[tuple[str, int, int], list[tuple[str, Trial]]] = {}
    built: dict[str, Dataset] = {}
    sizes: dict[str, int] = {}
    for name in names:
        files, config = work.files.trial(name), work.sweep.config(name)
        shape = shape_of(config)
        try:
            setup.check_config(config)
            task = json.dumps(to_json(config)["task"], sort_keys=True)
            # Trials of one task share a dataset, so its rows are on the device only once.
            if task not in built:
                built[task] = directory.open_dataset(files, config)
            elif files.config.exists():
                directory.check_same(files, config)
            trial = Trial(config, built[task], files)
            if shape not in sizes:
                sizes[shape] = work.options.get("population") or _most_at_once(trial)
        except InputError as error:
            board.note(name, FAILED, why=str(error))
            continue
        at = (shape, last_saved_step(files), work.stops[name])
        found.setdefault(at, []).append((name, trial))
    number = _next(work.files)
    groups: list[_Group] = []
    for (shape, *_), members in found.items():
        for start in range(0, len(members), sizes[shape]):
            chosen, trials = zip(*members[start : start + sizes[shape]], strict=True)
            place = Layout(work.files.populations / f"{number + len(groups):03d}")
            groups.append(_Group(chosen, trials, place))
    return groups


def _most_at_once(trial: Trial) -> int:
    """Return the largest number of trials that the limits on memory and open files allow."""
    settings = trial.settings
    spec = setup.make_model(settings.model, trial.dataset).spec
    cost = step_cost(spec, batch_size=settings.batch_size, **row_shape(trial.dataset))
    each = max(1, memory_per_program() // (_COPIES * cost.state_bytes))
    by_files = (max_open_files() - _OTHER_FILES) // _FILES
    return max(1, min(int(each * make_mesh(settings.mesh).shape["trial"]), by_files))


def _next(files: SweepLayout) -> int:
    """Return the number of the next population; each start of a sweep creates new populations."""
    here = [int(path.name) for path in files.populations.glob("*") if path.name.isdecimal()]
    return max(here, default=-1) + 1


def _drop_old_states(files: SweepLayout) -> None:
    """Remove the states of populations whose members all have newer states elsewhere."""
    if not distributed.is_primary():
        return
    for resume in files.populations.glob("*/resume"):
        members = read_json(_members(Layout(resume.parent)))
        saved = [saved_states.newest(files.trial(name)) for name in members]
        if all(each and each.folder != resume.resolve() for each in saved):
            shutil.rmtree(resume)


def _members(files: Layout) -> Path:
    """Return the path of the file with the names of a population's trials, in order of rows."""
    return files.workdir / "members.json"
