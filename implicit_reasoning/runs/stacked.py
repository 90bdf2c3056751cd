"""A trial of a population: which row of which stacked checkpoints is its own, and reading it.

`stacked.json` lists the populations that a trial was part of, in order: one as a rule, more where
it was stopped and went on among others.
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

_HELD_BYTES = 2**30  # of a population's checkpoints: its trials are read one after the other


class PopulationSegment(NamedTuple):
    """A stay in a population.

    Attributes:
      folder: of the population; its `checkpoints/` and `resume/` are laid out as a run's.
      row: along the leading axis of what it saves.
      last: the last step that counts; None while it goes on.
    """

    folder: Path
    row: int
    last: int | None


def read_segments(files: Layout) -> list[PopulationSegment]:
    """The populations of a trial, in order; none for a run that was trained alone."""
    if not files.stacked.exists():
        return []
    try:
        return [
            # Resolved: what is read of a population for one trial is known again for the next.
            PopulationSegment(
                (files.workdir / part["folder"]).resolve(), int(part["row"]), part["last"]
            )
            for part in read_json(files.stacked)["parts"]
        ]
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"{files.stacked} does not say which rows of which populations are this trial's"
        ) from None


def begin_segment(files: Layout, population: Path, row: int, step: int) -> None:
    """Note that a trial goes on at `step` as a row of a population; the parts before end there."""
    ended = [
        part._replace(last=step if part.last is None else min(step, part.last))
        for part in read_segments(files)
    ]
    _write(files, [*ended, PopulationSegment(population, row, None)])


def end_segment(files: Layout, step: int) -> None:
    """Note that no later checkpoint counts; nothing for a run that was trained alone."""
    if parts := read_segments(files):
        _write(files, [*parts[:-1], parts[-1]._replace(last=step)])


def _write(files: Layout, parts: Sequence[PopulationSegment]) -> None:
    kept = [
        # Relative, so that a sweep's directory can be moved.
        {**part._asdict(), "folder": _relative(part.folder, files.workdir)}
        for part in parts
    ]
    write_json(files.stacked, {"parts": kept})


def _relative(folder: Path, workdir: Path) -> str:
    return os.path.relpath(folder.resolve(), workdir.resolve())


def open_store(files: Layout, model: Transformer) -> Store:
    """Where the parameters of a run directory are."""
    own = FolderStore(files.checkpoints, model)
    parts = read_segments(files)
    return SegmentsStore(parts, own, model) if parts else own


class SegmentsStore:
    """A trial's rows of the checkpoints of its populations, and what it has of its own."""

    def __init__(self, parts: Sequence[PopulationSegment], own: Store, model: Transformer):
        """Nothing is read yet."""
        self._parts, self._own = parts, own
        self._like = jax.eval_shape(model.init, jax.random.key(0))

    @property
    def steps(self) -> tuple[int, ...]:
        """Of all populations as far as they count, ascending."""
        found = {step for part in self._parts for step in self._steps_of(part)}
        return tuple(sorted({*found, *self._own.steps}))

    def params(self, step: int) -> Params:
        """Parameters of one step, as numpy arrays.

        Raises:
          DamagedCheckpoint: they cannot be read.
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
    """What was read last of a population's checkpoints, as far as `_HELD_BYTES` go."""

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
