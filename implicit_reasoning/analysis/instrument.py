"""Base classes of instruments; an instrument measures one model, and the runner maps it over many.

An instrument has three parts. `examples` runs on the host and chooses the examples, once for a
dataset. `measure` runs on the device. It is a pure function of one model's parameters and the
examples, and the runner maps it over checkpoints. `claims` interprets the numbers. Its thresholds
are fixed in the instrument's file before any measurement, so the instrument can be scored on models
with known mechanisms.
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
"""Name of the last dimension of an output with one outcome per example; means are taken over it."""

SEED = 0
"""Seed of the key that `measure` receives."""


class NotApplicable(InputError):
    """Error of an instrument that cannot be used for a task; the message gives the reason."""


@dataclass(frozen=True)
class Examples:
    """The examples that an instrument measures.

    Attributes:
      inputs: arrays (any pytree) for `measure`.
      groups: names of the groups that outcomes are averaged in, such as splits.
      group: int [example], the group of each example.
      clusters: int [example], the cluster of each example, which is the unit of every confidence
        interval: a bridge (for chains; see `worlds.clusters`), a fact, or a prefix. With
        `cluster_dim` it is int [size of cluster_dim, example], because states at different
        positions have different clusters. An example with cluster -1 does not count there.
      cluster_dim: the dimension of the outcomes along which `clusters` differ; None if there is
        none.
      coords: labels of the dimensions that depend on the examples, such as variables.
    """

    inputs: Any
    groups: tuple[str, ...]
    group: Int[np.ndarray, " example"]
    clusters: Int[np.ndarray, "*dim example"]
    cluster_dim: str | None = None
    coords: Mapping[str, Sequence[Any]] = field(default_factory=dict)


class BaseInstrument(abc.ABC):
    """Base class of all instruments: names, outputs and controls.

    Attributes:
      name: name of the instrument, used in figures and in the file name `<name>.nc`.
      definition: definition of the numbers in one or two sentences, with the source.
      version: increased when a change makes old numbers incomparable; different versions are never
        merged.
      outputs: dimensions of each output of `measure`, by name. If the last dimension is "example",
        the result has the mean over each group and the ends of its confidence interval,
        `<name>_low` and `<name>_high`. Other outputs are kept unchanged.
      given: for outputs by example, the name of the bool output that says which examples count,
        such as those answered correctly without a patch. Its dimensions are some of those of the
        output. The result then has `<name>_n`, the number of clusters that count.
      nulls: null controls, by name. The value is either the labels that select the control from the
        outputs, such as `{"shuffled truth": {"truth": "shuffled"}}`, or the name of an output. The
        untrained model is one more control if step 0 is measured.
      default: whether the instrument runs when no instrument is named.
      found_at: import path of the class if it was found by a path; the report uses it to find the
        class again.
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
        """Return the options that the numbers depend on beyond the definition, such as a rank.

        Values must be JSON values, numpy numbers or numpy arrays. The default is no options.
        Results with different options are never merged.
        """
        return {}

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Return the figures of a result; default: none."""
        return []

    def claims(self, result: xr.Dataset) -> set[Claim]:
        """Return the claims that one checkpoint's numbers (no `step`) support; default: none."""
        return set()

    def check_nulls(self, coords: Mapping[str, Sequence[Any]]) -> None:
        """Check that every declared null control exists.

        Args:
          coords: labels by dimension.

        Raises:
          InputError: a null control selects a label or names an output that does not exist.
        """
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
        """Check that outputs have the declared names and shapes.

        Args:
          outputs: arrays of one checkpoint, by name.
          sizes: size of each dimension.

        Raises:
          InputError: the names differ, a dimension has no labels, or a shape differs.
        """
        if outputs.keys() != self.outputs.keys():
            raise InputError(
                f"instrument {self.name!r} declares the outputs {sorted(self.outputs)}, but "
                f"measure returned {sorted(outputs)}"
            )
        for name, dims in self.outputs.items():
            unknown = [dim for dim in dims if dim not in sizes]
            if unknown:
                raise InputError(
                    f"instrument {self.name!r}: output {name!r} has the dimension "
                    f"{unknown[0]!r}, which has no labels in coords; the labelled dimensions are "
                    f"{', '.join(sizes)}"
                )
            wanted = tuple(sizes[dim] for dim in dims)
            if outputs[name].shape != wanted:
                raise InputError(
                    f"instrument {self.name!r}: output {name!r} has shape {outputs[name].shape}; "
                    f"it must be {wanted}, the sizes of its dimensions {dims}"
                )


class Instrument(BaseInstrument):
    """A measurement of a model; subclass it in your own file to add an instrument.

    Results are kept in `analysis/<name>.nc`, by `step`.

    Attributes:
      reference: whether `inputs`, a dict, receives the parameters of the subject's last checkpoint
        as `inputs["reference"]`, for comparison.
    """

    reference: ClassVar[bool] = False

    @abc.abstractmethod
    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Choose the examples; the choice depends on the dataset only, not on the checkpoint.

        Raises:
          NotApplicable: the instrument cannot be used for this task.
        """

    @abc.abstractmethod
    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Compute the outcomes for one model; it is traced, so it must be a pure function.

        Args:
          model: the model; static.
          params: parameters of one checkpoint.
          inputs: `Examples.inputs`.
          key: random key; it is the same for every checkpoint.

        Returns:
          One array for each name in `outputs`, with the declared dimensions.
        """

    def coords(self, model: Transformer, dataset: Dataset) -> dict[str, Sequence[Any]]:
        """Return labels by dimension; the default is the layers of `residuals` and the positions.

        The labels of one dimension must be all strings, all numbers or all bools.
        """
        return {"layer": range(model.spec.depth + 1), "pos": dataset.positions}

    def sites(self, model: Transformer) -> tuple[str, ...]:
        """Return the sites that are read or edited, for the record; default: the residual sites."""
        return model.resid_sites
