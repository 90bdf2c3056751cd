"""Checkpoints of a trial that was trained together with other trials, in a population.

The parameters of all trials of a population are stacked along a leading axis, and a row of this
axis contains one trial. `stacked.json` lists the populations of a trial in order. A trial has
several populations if it was stopped and then continued in a new population.
"""

from __future__ import annotations

import collections
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from implicit_reasoning.errors import InputError
from implicit_reasoning.files import read_json, write_json
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.runs.layout import Layout
from implicit_reasoning.runs.stores import FolderStore, Store, finished_steps, read_tree

# Size of the cache of a population's checkpoints. Trials of a population are often read one after
# the other, and each checkpoint then has to be read from disk only once.
_HELD_BYTES = 2**30


class PopulationSegment(NamedTuple):
    """The part of a trial's training that ran in one population (jointly trained trials).

    Attributes:
      folder: the folder of the population, with `checkpoints/` and `resume/` as in a run directory.
      row: index of the trial along the leading axis of the population's checkpoints.
      last: the last step of the segment; None if the segment has not ended.
    """

    folder: Path
    row: int
    last: int | None


def read_segments(files: Layout) -> list[PopulationSegment]:
    """Return the segments of a trial, in order; empty for a run outside populations.

    Raises:
      InputError: `stacked.json` is damaged.
    """
    if not files.stacked.exists():
        return []
    try:
        return [
            # The resolved path is a cache key, so that all trials of a population share the cache.
            PopulationSegment(
                (files.workdir / part["folder"]).resolve(), int(part["row"]), part["last"]
            )
            for part in read_json(files.stacked)["parts"]
        ]
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"{files.stacked} is damaged; it must list a folder, a row and a last step for each "
            "population in which this trial was trained"
        ) from None


def begin_segment(files: Layout, population: Path, row: int, step: int) -> None:
    """Record that a trial continues in a population (jointly trained trials).

    Args:
      files: the paths of the trial.
      population: the folder of the population.
      row: the index of the trial in the population.
      step: the step from which the trial continues. Earlier segments of the trial end at this step.
    """
    ended = [
        part._replace(last=step if part.last is None else min(step, part.last))
        for part in read_segments(files)
    ]
    _write(files, [*ended, PopulationSegment(population, row, None)])


def end_segment(files: Layout, step: int) -> None:
    """Record that the trial leaves its population after `step`.

    Later checkpoints of the population do not belong to the trial. For a run outside populations,
    do nothing.
    """
    if parts := read_segments(files):
        _write(files, [*parts[:-1], parts[-1]._replace(last=step)])


def _write(files: Layout, parts: Sequence[PopulationSegment]) -> None:
    kept = [
        # The path is relative, so that the directory of a sweep can be moved.
        {**part._asdict(), "folder": _relative(part.folder, files.workdir)}
        for part in parts
    ]
    write_json(files.stacked, {"parts": kept})


def _relative(folder: Path, workdir: Path) -> str:
    return os.path.relpath(folder.resolve(), workdir.resolve())


def open_store(files: Layout, model: Transformer) -> Store:
    """Return the object that reads the parameters of a run directory."""
    own = FolderStore(files.checkpoints, model)
    parts = read_segments(files)
    return SegmentsStore(parts, own, model) if parts else own


class SegmentsStore:
    """A store that reads the parameters of one trial from checkpoints of populations.

    The store also reads checkpoints that contain only this trial.
    """

    def __init__(self, parts: Sequence[PopulationSegment], own: Store, model: Transformer):
        """Create the store; nothing is read yet."""
        self._parts, self._own = parts, own
        self._like = jax.eval_shape(model.init, jax.random.key(0))

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps of all checkpoints that contain the trial, ascending."""
        found = {step for part in self._parts for step in self._steps_of(part)}
        return tuple(sorted({*found, *self._own.steps}))

    def params(self, step: int) -> Params:
        """Return the parameters of one step, as numpy arrays.

        Raises:
          DamagedCheckpoint: the checkpoint cannot be read.
        """
        for part in self._parts:
            if step in self._steps_of(part):
                stacked = _held(part.folder).read(step, self._like)
                params: Params = _row(stacked, part.row)
                return params
        return self._own.params(step)

    def _steps_of(self, part: PopulationSegment) -> list[int]:
        steps = finished_steps(part.folder / "checkpoints")
        return [step for step in steps if part.last is None or step <= part.last]


def _row(stacked: Any, row: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[row], stacked)


class _Held:
    """A cache of about `_HELD_BYTES` for the most recently read checkpoints of a population."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._held: collections.OrderedDict[int, Any] = collections.OrderedDict()

    def read(self, step: int, like: Any) -> Any:
        if step not in self._held:
            self._held[step] = read_tree(self._folder / "checkpoints", step, like)
        self._held.move_to_end(step)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(self._held[step]))
        while len(self._held) > 1 and size * len(self._held) > _HELD_BYTES:
            self._held.popitem(last=False)
        return self._held[step]


@functools.lru_cache(maxsize=4)
def _held(folder: Path) -> _Held:
    return _Held(folder)
