"""What an instrument is: a measurement written for one model, declared so that it runs on many.

An instrument has three parts. On the host, `examples` chooses what to look at, once for a dataset.
On the device, `measure` is a pure function of one model's parameters and those examples; the runner
maps it over checkpoints. And `claims` says what its numbers mean, by thresholds that are fixed in
its file before anything is measured, so that it can be scored on models whose mechanism is known.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import xarray as xr
from jaxtyping import Array, Int, Key

from implicit_reasoning.analysis.claims import Claim
from implicit_reasoning.errors import InputError
from implicit_reasoning.figures import Figure
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.worlds import Dataset

EXAMPLE = "example"
"""The last dimension of an outcome that there is one of for each example; it is averaged away."""

SEED = 0
"""Of the key that `measure` gets."""


class NotApplicable(InputError):
    """An instrument makes no sense for a task; the message says why."""


@dataclass(frozen=True)
class Examples:
    """What an instrument looks at.

    Attributes:
      inputs: arrays (any pytree) for `measure`.
      groups: names of the groups that outcomes are averaged in, such as splits.
      group: int [example], which group each belongs to.
      clusters: int [example], what an example is a repetition of - a bridge (chains: see
        `worlds.clusters`), a fact, a prefix: the unit of every interval. With `cluster_dim`,
        [its size, example]: states at different positions are repetitions of different things. An
        example of cluster -1 does not count there.
      cluster_dim: a dimension of the outcomes along which `clusters` differ.
      coords: labels of the dimensions that depend on the examples, such as variables.
    """

    inputs: Any
    groups: tuple[str, ...]
    group: Int[np.ndarray, " example"]
    clusters: Int[np.ndarray, "*dim example"]
    cluster_dim: str | None = None
    coords: Mapping[str, Sequence[Any]] = field(default_factory=dict)


class BaseInstrument(abc.ABC):
    """What every instrument declares about its numbers, whatever it measures.

    Attributes:
      name: of the file `<name>.nc`, and in figures.
      definition: in a sentence or two, with the source: what the numbers are.
      version: raised when a change makes old numbers another thing; they are then not mixed.
      outputs: name to dimensions of what `measure` returns. Where the last one is "example", the
        result has means over each group with `<name>_low` and `<name>_high`, the ends of the
        interval; other outputs are kept as they are.
      given: for outputs by example, the output (bool, of some of the same dimensions) that says
        which examples count for these parameters, such as those answered correctly when nothing is
        changed. `<name>_n` then has how many clusters did.
      nulls: its controls, by name: the labels that select one from the outputs, as in
        `{"shuffled truth": {"truth": "shuffled"}}`, or the name of the output that holds it. The
        untrained model is one more wherever step 0 is measured.
      default: whether it is run when no instrument is named.
      found_at: its import path, where it was found by one; the report finds it there again.
    """

    name: ClassVar[str]
    definition: ClassVar[str]
    version: ClassVar[int] = 1
    outputs: ClassVar[dict[str, tuple[str, ...]]]
    given: ClassVar[dict[str, str]] = {}
    nulls: ClassVar[dict[str, Mapping[str, Any] | str]] = {}
    default: ClassVar[bool] = True
    found_at: str = ""

    def options(self) -> dict[str, Any]:
        """What its numbers depend on beyond its definition, such as a rank that one may choose.

        Of what JSON has, and numpy's numbers and arrays; none unless overridden. Results of other
        options are not mixed.
        """
        return {}

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """The instrument's figures; none unless overridden."""
        return []

    def claims(self, result: xr.Dataset) -> set[Claim]:
        """What the numbers of one checkpoint (no `step`) say; nothing unless overridden."""
        return set()

    def check_nulls(self, coords: Mapping[str, Sequence[Any]]) -> None:
        """Raise an `InputError` where a null is declared that no output has."""
        for name, null in self.nulls.items():
            if isinstance(null, str):
                there, wanted = null in self.outputs, f"output {null!r}"
            else:
                there = any(null.keys() <= set(dims) for dims in self.outputs.values()) and all(
                    label in coords.get(dim, ()) for dim, label in null.items()
                )
                wanted = "output with " + ", ".join(f"{d}={v!r}" for d, v in null.items())
            if not there:
                raise InputError(f"instrument {self.name!r}: null {name!r} has no {wanted}")

    def check(self, outputs: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
        """Raise an `InputError` where outcomes do not have the dimensions that are declared."""
        if outputs.keys() != self.outputs.keys():
            raise InputError(
                f"instrument {self.name!r} declares the outputs {sorted(self.outputs)}, but "
                f"measure returned {sorted(outputs)}"
            )
        for name, dims in self.outputs.items():
            unknown = [dim for dim in dims if dim not in sizes]
            if unknown:
                raise InputError(
                    f"instrument {self.name!r}: output {name!r} has the dimension {unknown[0]!r}, "
                    f"which coords does not label; it labels {', '.join(sizes)}"
                )
            wanted = tuple(sizes[dim] for dim in dims)
            if outputs[name].shape != wanted:
                raise InputError(
                    f"instrument {self.name!r}: output {name!r} has shape {outputs[name].shape}; "
                    f"its dimensions {dims} are of sizes {wanted}"
                )


class Instrument(BaseInstrument):
    """A measurement of a model; one of your own is a subclass in a file of its own.

    Its results are kept in `analysis/<name>.nc`, by `step`.

    Attributes:
      reference: whether `inputs`, a dict, gets the parameters of the subject's last checkpoint as
        `inputs["reference"]`: what others are compared with.
    """

    reference: ClassVar[bool] = False

    @abc.abstractmethod
    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Choose what to look at; a fixed choice for a dataset, whatever the checkpoint.

        Raises:
          NotApplicable: the instrument makes no sense for this task.
        """

    @abc.abstractmethod
    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """The outcomes for one model; traced, so it must be a pure function of its arguments.

        Args:
          model: static.
          params: of one checkpoint.
          inputs: of the examples.
          key: for what is drawn at random, the same for every checkpoint.
        """

    def coords(self, model: Transformer, dataset: Dataset) -> dict[str, Sequence[Any]]:
        """Labels of the dimensions; layers (of `residuals`) and positions, unless overridden.

        The labels of a dimension must be all texts, all numbers or all truth values.
        """
        return {"layer": range(model.spec.depth + 1), "pos": dataset.positions}

    def sites(self, model: Transformer) -> tuple[str, ...]:
        """The sites that are read or edited, for the record; the residuals, unless overridden."""
        return model.resid_sites
