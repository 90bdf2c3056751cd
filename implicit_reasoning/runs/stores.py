"""Where a `Run` reads parameters from; see `stacked.py` for trials of a population."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
import orbax.checkpoint as ocp

from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.runs.checkpoints import readable


@runtime_checkable
class Store(Protocol):
    """Where a `Run` reads parameters from: a folder of checkpoints, or a row of stacked ones."""

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps that have a checkpoint, ascending."""
        ...

    def params(self, step: int) -> Params:
        """Parameters of one step, as numpy arrays."""
        ...


class FolderStore:
    """The checkpoints of a run that was trained alone; only read, also while training writes."""

    def __init__(self, folder: Path, model: Transformer):
        """Nothing is opened yet, and nothing need be there."""
        self._folder = folder
        self._like = jax.eval_shape(model.init, jax.random.key(0))

    @property
    def steps(self) -> tuple[int, ...]:
        """Numbered folders; a save under way has another name."""
        return finished_steps(self._folder)

    def params(self, step: int) -> Params:
        """Parameters of one step, as numpy arrays, whatever devices wrote them.

        Raises:
          DamagedCheckpoint: they cannot be read.
        """
        params: Params = read_tree(self._folder, step, self._like)
        return params


def finished_steps(folder: Path) -> tuple[int, ...]:
    """The steps of finished checkpoints in a folder, ascending; none where it is not there."""
    if not folder.is_dir():
        return ()
    return tuple(sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal()))


def read_tree(folder: Path, step: int, like: Any) -> Any:
    """The tree of a step as numpy arrays, of whatever shapes they have, shaped like `like`.

    Raises:
      DamagedCheckpoint: it cannot be read.
    """
    path = (folder / str(step) / "default").absolute()
    arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
    with readable(path.parent), ocp.PyTreeCheckpointer() as reader:
        return reader.restore(path, item=like, restore_args=arguments)


class CachedStore:
    """A store that keeps in memory what was read, as far as a limit of bytes allows.

    For many instruments on the same checkpoints, one after the other.
    """

    def __init__(self, store: Store, limit: int):
        """Nothing is read yet."""
        self._store, self._left = store, limit
        self._held: dict[int, Params] = {}

    @property
    def steps(self) -> tuple[int, ...]:
        """As the store says now."""
        return self._store.steps

    def params(self, step: int) -> Params:
        """Parameters of one step, as numpy arrays."""
        if step in self._held:
            return self._held[step]
        params = self._store.params(step)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        if size <= self._left:
            self._held[step], self._left = params, self._left - size
        return params
