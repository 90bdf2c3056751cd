"""Stores: objects from which a `Run` reads parameters."""

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
    """The interface of a source of a run's parameters, such as a folder of checkpoints."""

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps that have a checkpoint, ascending."""
        ...

    def params(self, step: int) -> Params:
        """Return the parameters of one step, as numpy arrays."""
        ...


class FolderStore:
    """A store that reads the checkpoint folder of a single run, even while the run is training."""

    def __init__(self, folder: Path, model: Transformer):
        """Create the store. Nothing is read yet, so the folder may be missing."""
        self._folder = folder
        self._like = jax.eval_shape(model.init, jax.random.key(0))

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps that have a checkpoint, ascending."""
        # An unfinished checkpoint has a temporary name, so it is not listed.
        return finished_steps(self._folder)

    def params(self, step: int) -> Params:
        """Return the parameters of one step, as numpy arrays.

        The checkpoint may have been written on any number and kind of devices.

        Raises:
          DamagedCheckpoint: the checkpoint cannot be read.
        """
        params: Params = read_tree(self._folder, step, self._like)
        return params


def finished_steps(folder: Path) -> tuple[int, ...]:
    """Return the steps of the complete checkpoints in a folder, ascending.

    The result is empty if the folder does not exist.
    """
    if not folder.is_dir():
        return ()
    return tuple(sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal()))


def read_tree(folder: Path, step: int, like: Any) -> Any:
    """Read the checkpoint of a step as a pytree of numpy arrays.

    Args:
      folder: the folder of the checkpoints.
      step: the step.
      like: a pytree with the structure of the checkpoint. Its leaves may have any shapes.

    Raises:
      DamagedCheckpoint: the checkpoint cannot be read.
    """
    path = (folder / str(step) / "default").absolute()
    arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
    with readable(path.parent), ocp.PyTreeCheckpointer() as reader:
        return reader.restore(path, item=like, restore_args=arguments)


class CachedStore:
    """A store that keeps parameters in memory, up to a size limit.

    Use this store to run several instruments in sequence on the same checkpoints.
    """

    def __init__(self, store: Store, limit: int):
        """Create the cache. Nothing is read yet.

        Args:
          store: the store to read from.
          limit: maximum size of the cache in bytes. When the cache is full, parameters that are
            read later are not cached.
        """
        self._store, self._left = store, limit
        self._held: dict[int, Params] = {}

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps that currently have a checkpoint in the underlying store, ascending."""
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
