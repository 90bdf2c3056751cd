"""Populations: trials of one shape are trained by one program, on all devices of this process.

Trials that differ in shape make several populations, one after the other. On a pod every host runs
the same command; the axis of trials is dealt out to the devices of all.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from implicit_reasoning.config import to_json
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import read_json, write_json
from implicit_reasoning.machine import program_memory
from implicit_reasoning.runs import Layout
from implicit_reasoning.sweeps.directory import (
    DIVERGED,
    DONE,
    FAILED,
    RUNNING,
    STOPPED,
    SweepLayout,
    describe,
)
from implicit_reasoning.sweeps.launchers.base import Board, Work, reached
from implicit_reasoning.training import directory, distributed, setup, states
from implicit_reasoning.training.cost import row_shape, step_cost
from implicit_reasoning.training.interruption import Interrupted, Wish
from implicit_reasoning.training.loop import NonFiniteLoss
from implicit_reasoning.training.population import Trial, make_mesh, shape_of, train_population
from implicit_reasoning.worlds import Dataset

_COPIES = 4  # of a trial's state that a step may take: itself, gradients, what is on the way


@dataclass(frozen=True)
class _Group:
    """Trials that are to be one population, and where."""

    names: tuple[str, ...]
    trials: tuple[Trial, ...]
    files: Layout


def vmap(work: Work, board: Board, wish: Wish) -> None:
    """Train population after population; a trial that cannot be opened fails alone."""
    groups = _groups(work, board)
    if distributed.many():
        distributed.check_alike(json.dumps([[g.names, str(g.files.workdir)] for g in groups]))
    for number, group in enumerate(groups, start=1):
        if wish:
            return
        title = f"population {number} of {len(groups)}, {len(group.names)} trials"
        _train(work, group, board, wish, title)


def _train(work: Work, group: _Group, board: Board, wish: Wish, title: str) -> None:
    if distributed.writes():
        write_json(_members(group.files), list(group.names))
    for name in group.names:
        if distributed.writes():
            describe(work.files, name, work.sweep.trials[name])
        board.note(name, RUNNING)

    def note_all(state: str, why: str = "") -> None:
        for name in group.names:
            board.note(name, state, step=reached(work.files.trial(name)), why=why)

    stop = work.stops[group.names[0]]  # they are of one shape, and so of equally many steps
    try:
        records = train_population(group.trials, group.files, stop, wish, title=title)
    except Interrupted as stopped:
        note_all(STOPPED, str(stopped))
        return
    except Exception as error:
        note_all(FAILED, str(error) or type(error).__name__)
        raise
    for name, record in zip(group.names, records, strict=True):
        if record.diverged is None:
            board.note(name, DONE, step=stop)
        else:
            board.note(
                name, DIVERGED, step=record.diverged, why=str(NonFiniteLoss(record.diverged))
            )


def _groups(work: Work, board: Board) -> list[_Group]:
    """All trials, in populations of one shape and at one step, as large as memory allows."""
    found: dict[tuple[str, int], list[tuple[str, Trial]]] = {}
    built: dict[str, Dataset] = {}
    for name in work.stops:
        files, config = work.files.trial(name), work.sweep.config(name)
        try:
            setup.check_config(config)
            task = json.dumps(to_json(config)["task"], sort_keys=True)
            if task not in built:  # one for all who share it: its rows lie on the device once
                built[task] = directory.open_dataset(files, config)
            elif files.config.exists():
                directory.check_same(files, config)
        except InputError as error:
            board.note(name, FAILED, why=str(error))
            continue
        trial = Trial(config, built[task], files)
        found.setdefault((shape_of(config), reached(files)), []).append((name, trial))
    taken: list[SweepLayout | Layout] = []
    groups = []
    for members in found.values():
        most = work.options.get("population") or _most_at_once(members[0][1])
        for start in range(0, len(members), most):
            names, trials = zip(*members[start : start + most], strict=True)
            files = _place(work.files, names, trials, taken)
            taken.append(files)
            groups.append(_Group(names, trials, files))
    return groups


def _most_at_once(trial: Trial) -> int:
    """As many trials as the memory of all devices holds."""
    config = trial.config
    spec = setup.make_model(config, trial.dataset).spec
    cost = step_cost(spec, batch_size=config.batch_size, **row_shape(trial.dataset))
    each = max(1, program_memory() // (_COPIES * cost.state_bytes))
    return int(each * make_mesh(config.mesh).shape["trial"])


def _place(
    files: SweepLayout,
    names: Sequence[str],
    trials: Sequence[Trial],
    taken: Sequence[SweepLayout | Layout],
) -> Layout:
    """The population that these trials already are, or a new one."""
    saved = [states.newest(trial.files) for trial in trials]
    here = sorted(int(path.name) for path in files.populations.glob("*") if path.name.isdecimal())
    for number in here:
        old = Layout(files.populations / f"{number:03d}")
        rows = [(old.resume, row) for row in range(len(names))]
        same = _members(old).exists() and read_json(_members(old)) == list(names)
        if same and ([s and (s.folder, s.row) for s in saved] == rows or not any(saved)):
            return old
    number = max(here, default=-1) + 1 + len([each for each in taken if not each.workdir.exists()])
    return Layout(files.populations / f"{number:03d}")


def _members(files: Layout) -> Path:
    return files.workdir / "members.json"
