"""What can be measured: a run, or weights in memory, from wherever they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.worlds import Dataset


@runtime_checkable
class Subject(Protocol):
    """What can be measured: a `Run`, or anything with a model, its data and its checkpoints."""

    @property
    def model(self) -> Transformer:
        """The model."""
        ...

    @property
    def dataset(self) -> Dataset:
        """What it was trained on, with its truth."""
        ...

    @property
    def steps(self) -> tuple[int, ...]:
        """Checkpoints, ascending."""
        ...

    def params(
        self, steps: Sequence[int] | None = None, sharding: Sharding | None = None
    ) -> Params:
        """Parameters of some checkpoints, stacked along a leading axis, on the device.

        Args:
          steps: which; one may be asked for more than once.
          sharding: where they are to be; None: on the default device.
        """
        ...


@dataclass(frozen=True, eq=False)
class InMemory:
    """Weights as checkpoints 0, 1, ... of one model: planted, random, or imported."""

    model: Transformer
    dataset: Dataset
    checkpoints: Sequence[Params]

    @property
    def steps(self) -> tuple[int, ...]:
        """Their numbers."""
        return tuple(range(len(self.checkpoints)))

    def params(
        self, steps: Sequence[int] | None = None, sharding: Sharding | None = None
    ) -> Params:
        """Those asked for, stacked; one may be asked for more than once."""
        chosen = [self.checkpoints[step] for step in (self.steps if steps is None else steps)]
        stacked = _stacked(*chosen)
        return stacked if sharding is None else jax.device_put(stacked, sharding)


@jax.jit
def _stacked(*trees: Params) -> Params:
    """One program for all leaves, not one for each shape."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
