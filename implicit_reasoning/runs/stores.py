"""Stores, from which a `Run` reads parameters; for trials of a population, see `stacked.py`."""

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
    """Source of a run's parameters: a folder of checkpoints, or a row of stacked checkpoints."""

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps with a checkpoint, ascending."""
        ...

    def params(self, step: int) -> Params:
        """Return the parameters of one step, as numpy arrays."""
        ...


class FolderStore:
    """Store of a run that was trained alone; read-only, can be used while training writes."""

    def __init__(self, folder: Path, model: Transformer):
        """Create the store; nothing is opened yet, and the folder need not exist."""
        self._folder = folder
        self._like = jax.eval_shape(model.init, jax.random.key(0))

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps with a checkpoint, ascending."""
        # An unfinished save has a temporary name, so it is not listed.
        return finished_steps(self._folder)

    def params(self, step: int) -> Params:
        """Return the parameters of one step, as numpy arrays, whatever devices wrote them.

        Raises:
          DamagedCheckpoint: the checkpoint cannot be read.
        """
        params: Params = read_tree(self._folder, step, self._like)
        return params


def finished_steps(folder: Path) -> tuple[int, ...]:
    """Return the steps of complete checkpoints, ascending; empty if the folder does not exist."""
    if not folder.is_dir():
        return ()
    return tuple(sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal()))


def read_tree(folder: Path, step: int, like: Any) -> Any:
    """Return the tree of a step as numpy arrays, with the structure of `like`.

    Args:
      folder: the folder of the checkpoints.
      step: the step.
      like: a tree with the same structure. The shapes of its leaves may differ.

    Raises:
      DamagedCheckpoint: the checkpoint cannot be read.
    """
    path = (folder / str(step) / "default").absolute()
    arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
    with readable(path.parent), ocp.PyTreeCheckpointer() as reader:
        return reader.restore(path, item=like, restore_args=arguments)


class CachedStore:
    """Store that keeps the parameters that it reads in memory, up to a limit.

    It is meant for many instruments that run one after the other on the same checkpoints.
    """

    def __init__(self, store: Store, limit: int):
        """Create the cache; nothing is read yet.

        Args:
          store: the store to read from.
          limit: maximum size of the cache in bytes. When it is full, further parameters are not
            kept.
        """
        self._store, self._left = store, limit
        self._held: dict[int, Params] = {}

    @property
    def steps(self) -> tuple[int, ...]:
        """Current steps of the underlying store."""
        return self._store.steps

    def params(self, step: int) -> Params:
        """Return the parameters of one step, as numpy arrays."""
        if step in self._held:
            return self._held[step]
        params = self._store.params(step)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        if size <= self._left:
            self._held[step], self._left = params, self._left - size
        return params
