"""Define subjects, the objects that instruments can measure, such as a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.worlds import Dataset


@runtime_checkable
class Subject(Protocol):
    """Interface of objects that instruments can measure.

    `Run` and `InMemory` have this interface.
    """

    @property
    def model(self) -> Transformer:
        """The model of all checkpoints."""
        ...

    @property
    def dataset(self) -> Dataset:
        """The dataset on which the model is measured."""
        ...

    @property
    def steps(self) -> tuple[int, ...]:
        """The training steps of the checkpoints, in ascending order."""
        ...

    def params(
        self, steps: Sequence[int] | None = None, sharding: Sharding | None = None
    ) -> Params:
        """Load the parameters of checkpoints, stacked along a leading axis.

        Args:
          steps: the steps of the checkpoints to load; None means all. A step can occur more than
            once.
          sharding: sharding of the result; None means the default device.

        Returns:
          The parameter pytree. The first axis of every leaf is the checkpoint.
        """
        ...


@dataclass(frozen=True, eq=False)
class InMemory:
    """Weights in memory, such as imported weights, as checkpoints 0, 1, ... of one model.

    Attributes:
      model: the model of all checkpoints.
      dataset: the dataset on which the model is measured.
      checkpoints: the parameters of each checkpoint.
    """

    model: Transformer
    dataset: Dataset
    checkpoints: Sequence[Params]

    @property
    def steps(self) -> tuple[int, ...]:
        """The numbers of the checkpoints, from 0 to `len(checkpoints) - 1`."""
        return tuple(range(len(self.checkpoints)))

    def params(
        self, steps: Sequence[int] | None = None, sharding: Sharding | None = None
    ) -> Params:
        """Return the parameters of checkpoints, stacked along a leading axis.

        Args:
          steps: the numbers of the checkpoints; None means all.
          sharding: sharding of the result; None means the default device.
        """
        chosen = [self.checkpoints[step] for step in (self.steps if steps is None else steps)]
        stacked = stack_trees(*chosen)
        return stacked if sharding is None else jax.device_put(stacked, sharding)


@jax.jit
def stack_trees(*trees: Any) -> Any:
    """Stack pytrees along a new leading axis, in one compiled program.

    Without `jit`, JAX would compile one program for each leaf shape.
    """
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@jax.jit
def tree_rows(tree: Any, number: Any) -> Any:
    """Return one row, or several rows, of every leaf of a stacked pytree, in one compiled program.

    Without `jit`, JAX would compile two programs for each leaf shape.

    Args:
      tree: a pytree of arrays [row, ...].
      number: the index of a row, or an array of indices.
    """
    return jax.tree.map(lambda leaf: leaf[number], tree)
