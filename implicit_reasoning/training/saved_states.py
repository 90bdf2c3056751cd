"""Saved states of runs, wherever they are: of a run alone, or a row of a population's.

A trial goes on from the newest of them, alone or in whatever population it is put next.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from implicit_reasoning.runs import Layout, read_segments
from implicit_reasoning.runs.stores import finished_steps, read_tree
from implicit_reasoning.training.step import TrainState


class SavedState(NamedTuple):
    """Where a state is: which `resume/`, the row there (None: it is not stacked), the step."""

    folder: Path
    row: int | None
    step: int


class StartingPoint(NamedTuple):
    """What a run, or a population, goes on from.

    Attributes:
      state: numpy; stacked for a population.
      first_correct: by trial.
      step: of all.
    """

    state: TrainState
    first_correct: list[np.ndarray]
    step: int


def newest(files: Layout) -> SavedState | None:
    """The newest state of a run or trial; None where nothing was saved."""
    return max(all_states(files), key=lambda saved: saved.step, default=None)


def all_states(files: Layout) -> list[SavedState]:
    """All states of a run or trial, of whatever company it was in."""
    own = files.resume.resolve()  # as those of populations are, and as damage is named
    found = [SavedState(own, None, step) for step in finished_steps(own)]
    for part in read_segments(files):
        steps = finished_steps(part.folder / "resume")
        counted = [step for step in steps if part.last is None or step <= part.last]
        found += [SavedState(part.folder / "resume", part.row, step) for step in counted]
    return found


def set_aside(state: Path) -> None:
    """Move a state that cannot be read out of the way: into `resume.damaged/`, beside `resume/`."""
    damaged = state.parent.with_name(f"{state.parent.name}.damaged")
    damaged.mkdir(exist_ok=True)
    state.rename(damaged / state.name)


def read(saved: Sequence[SavedState], like: TrainState, *, stacked: bool) -> StartingPoint:
    """The states of trials at one step.

    Args:
      saved: where they are.
      like: the state of one trial, or its shapes.
      stacked: put them together along a leading axis; else there is one, which stays as it is.

    Raises:
      DamagedCheckpoint: one cannot be read.
    """
    tree = {"state": like, "first_correct": 0}
    files = {(each.folder, each.step) for each in saved}
    read_ = {file: read_tree(*file, tree) for file in files}

    def one(each: SavedState) -> Any:
        whole = read_[each.folder, each.step]
        if each.row is None:
            return whole
        row = each.row
        return jax.tree.map(lambda leaf: leaf[row], whole)

    trees = [one(each) for each in saved]
    states = [tree["state"] for tree in trees]
    state = jax.tree.map(lambda *leaves: np.stack(leaves), *states) if stacked else states[0]
    return StartingPoint(state, [tree["first_correct"] for tree in trees], saved[0].step)


def placed(state: Any, like: Any) -> Any:
    """A state on the devices that `like` says; every process has all of it in memory."""

    def put(leaf: Any, where: jax.ShapeDtypeStruct) -> jax.Array:
        # Filled up with the first, where a population has more rows than trials.
        whole = np.asarray(leaf)
        if missing := where.shape[0] - whole.shape[0] if whole.ndim else 0:
            whole = np.concatenate([whole, *[whole[:1]] * missing])
        return jax.make_array_from_callback(where.shape, where.sharding, lambda index: whole[index])

    return jax.tree.map(put, state, like)
