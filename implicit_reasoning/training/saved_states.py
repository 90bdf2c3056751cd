"""Saved full states of a run or trial.

The states of a trial are in the directory of the trial, and in the directories of its populations
(groups of jointly trained trials). The trial resumes from the newest state, alone or in a new
population.
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
    """The location of a saved full state.

    Attributes:
      folder: the `resume/` folder.
      row: index of the trial along the leading axis of a population's state. None for a state of a
        single run.
      step: the step of the state.
    """

    folder: Path
    row: int | None
    step: int


class StartingPoint(NamedTuple):
    """The state from which a run or a population resumes.

    Attributes:
      state: the state as numpy arrays, with a leading trial axis for a population.
      first_correct: one array per trial, with the step at which each probe row was first answered
        correctly.
      step: the step of the state; all trials are at this step.
    """

    state: TrainState
    first_correct: list[np.ndarray]
    step: int


def newest(files: Layout) -> SavedState | None:
    """Return the newest saved state of a run or trial, or None if no state is saved."""
    return max(all_states(files), key=lambda saved: saved.step, default=None)


def all_states(files: Layout) -> list[SavedState]:
    """List all saved states of a run or trial, including the states in folders of populations."""
    # The paths of populations and of `DamagedCheckpoint` are resolved. Resolve this path too, so
    # that paths of the same folder compare equal.
    own = files.resume.resolve()
    found = [SavedState(own, None, step) for step in finished_steps(own)]
    for part in read_segments(files):
        steps = finished_steps(part.folder / "resume")
        counted = [step for step in steps if part.last is None or step <= part.last]
        found += [SavedState(part.folder / "resume", part.row, step) for step in counted]
    return found


def set_aside(state: Path) -> None:
    """Move a damaged state from `resume/` to the sibling folder `resume.damaged/`."""
    damaged = state.parent.with_name(f"{state.parent.name}.damaged")
    damaged.mkdir(exist_ok=True)
    state.rename(damaged / state.name)


def read(saved: Sequence[SavedState], like: TrainState, *, stacked: bool) -> StartingPoint:
    """Read the states of trials that were saved at the same step.

    Args:
      saved: the locations of the states.
      like: a pytree with the structure of a state. Its leaves are arrays or `jax.ShapeDtypeStruct`.
      stacked: whether to stack the states along a leading trial axis. If False, `saved` must
        contain exactly one location.

    Raises:
      DamagedCheckpoint: a state cannot be read.
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
    """Move a state from host memory to the devices.

    Args:
      state: the whole state as numpy arrays, which every process must pass.
      like: the shapes and shardings of the result.
    """

    def put(leaf: Any, where: jax.ShapeDtypeStruct) -> jax.Array:
        # The trial axis of a population may be padded; the padding is copies of the first trial.
        whole = np.asarray(leaf)
        if missing := where.shape[0] - whole.shape[0] if whole.ndim else 0:
            whole = np.concatenate([whole, *[whole[:1]] * missing])
        return jax.make_array_from_callback(where.shape, where.sharding, lambda index: whole[index])

    return jax.tree.map(put, state, like)
