"""Define the objects that instruments can measure: a run, or weights in memory."""

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
    """An object that instruments can measure: a `Run`, or a model with data and checkpoints."""

    @property
    def model(self) -> Transformer:
        """The model of all checkpoints."""
        ...

    @property
    def dataset(self) -> Dataset:
        """The dataset that the model was trained on, with its truth columns."""
        ...

    @property
    def steps(self) -> tuple[int, ...]:
        """Training steps of the checkpoints, ascending."""
        ...

    def params(
        self, steps: Sequence[int] | None = None, sharding: Sharding | None = None
    ) -> Params:
        """Load parameters of some checkpoints, stacked along a leading axis, on the device.

        Args:
          steps: the checkpoints to load; a step may occur more than once. None loads all.
          sharding: sharding of the result; None uses the default device.

        Returns:
          The parameter pytree; every leaf has a leading axis of checkpoints.
        """
        ...


@dataclass(frozen=True, eq=False)
class InMemory:
    """Weights in memory (planted, random or imported) as checkpoints 0, 1, ... of one model.

    Attributes:
      model: the model of all checkpoints.
      dataset: the dataset to measure on.
      checkpoints: the parameters of each checkpoint.
    """

    model: Transformer
    dataset: Dataset
    checkpoints: Sequence[Params]

    @property
    def steps(self) -> tuple[int, ...]:
        """The checkpoint numbers, 0 to `len(checkpoints) - 1`."""
        return tuple(range(len(self.checkpoints)))

    def params(
        self, steps: Sequence[int] | None = None, sharding: Sharding | None = None
    ) -> Params:
        """Return the chosen checkpoints, stacked along a leading axis; see `Subject.params`."""
        chosen = [self.checkpoints[step] for step in (self.steps if steps is None else steps)]
        stacked = stack_trees(*chosen)
        return stacked if sharding is None else jax.device_put(stacked, sharding)


@jax.jit
def stack_trees(*trees: Any) -> Any:
    """Stack pytrees along a new leading axis, in one compiled program.

    Without `jit`, JAX would compile a program for each shape of a leaf.
    """
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
