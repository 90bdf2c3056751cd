"""Base classes of instruments.

An instrument has three parts. `examples` runs on the host, once for each dataset, and chooses the
examples to measure. `measure` runs on the device. It is a pure function of one model's parameters
and the examples, and the runner maps it over checkpoints. `claims` interprets the numbers. Its
thresholds are fixed in the instrument's file before any measurement, so the instrument can be
scored on models with known mechanisms.
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
"""Name of the dimension of examples.

An output that has one outcome per example has this dimension last. The outcomes of such an output
are averaged over the examples of each group.
"""

SEED = 0
"""Seed of the key that `measure` receives."""


class NotApplicable(InputError):
    """Raised if an instrument cannot be used for a task. The message gives the reason."""


@dataclass(frozen=True)
class Examples:
    """The examples that an instrument measures.

    Attributes:
      inputs: arrays (any pytree) for `measure`.
      groups: names of the groups, such as splits. Outcomes are averaged over each group.
      group: int [example], the index in `groups` of each example's group.
      clusters: int [example], the cluster of each example. Confidence intervals use the spread
        between clusters. A cluster is a bridge (for chains; see `worlds.clusters`), a fact, or a
        prefix. If `cluster_dim` is given, the shape is [size of cluster_dim, example], because
        states at different positions have different clusters. An example whose cluster is -1 at a
        position does not count at that position.
      cluster_dim: a dimension of the outcomes, such as "pos". An example has one cluster for each
        index along this dimension. None means that each example has only one cluster.
      coords: labels of the dimensions whose labels are known only after the examples are chosen,
        such as the names of variables.
    """

    inputs: Any
    groups: tuple[str, ...]
    group: Int[np.ndarray, " example"]
    clusters: Int[np.ndarray, "*dim example"]
    cluster_dim: str | None = None
    coords: Mapping[str, Sequence[Any]] = field(default_factory=dict)


class BaseInstrument(abc.ABC):
    """Base class of all instruments. It declares names, outputs and null controls.

    Attributes:
      name: name of the instrument, used in figures and in the file name `<name>.nc`.
      definition: text that defines the numbers and names their source.
      version: version number. It is increased when a change makes new numbers incomparable with old
        numbers. Results of different versions are never merged.
      outputs: name of each output of `measure`, with the names of its dimensions. If the last
        dimension is "example", the result has the mean over each group, and the ends of the mean's
        confidence interval as `<name>_low` and `<name>_high`. All other outputs are stored
        unchanged.
      given: conditions on outputs. A key is the name of an output with one outcome per example. Its
        value is the name of a bool output that says which examples count, such as the examples that
        the model answers correctly without a patch. The bool output has some or all dimensions of
        the first output. The result then also has `<name>_n`, the number of clusters with an
        example that counts.
      nulls: null controls, by name. The value is either the labels that select the control from the
        outputs, such as `{"shuffled truth": {"truth": "shuffled"}}`, or the name of an output. If
        step 0 is measured, the untrained model is an additional control.
      default: whether the instrument runs when the user names no instrument.
      found_at: import path from which the class was loaded; empty if an instance was given. The
        report uses the path to load the class again.
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
        """Return the settings that change the numbers, such as a rank; default: none.

        Values must be JSON values, numpy numbers or numpy arrays. Results with different options
        are never merged.
        """
        return {}

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Return the figures of a result; default: no figures."""
        return []

    def claims(self, result: xr.Dataset) -> set[Claim]:
        """Return the claims that the numbers of one checkpoint support; default: no claims.

        Args:
          result: the result of one checkpoint, without the dimension `step`.
        """
        return set()

    def check_nulls(self, coords: Mapping[str, Sequence[Any]]) -> None:
        """Check that every declared null control exists.

        Args:
          coords: the labels of each dimension.

        Raises:
          InputError: a null control names an output that does not exist, or selects a label that no
            output has.
        """
        for name, null in self.nulls.items():
            if isinstance(null, str):
                there, wanted = null in self.outputs, f"the output {null!r}"
            else:
                there = any(null.keys() <= set(dims) for dims in self.outputs.values()) and all(
                    label in coords.get(dim, ()) for dim, label in null.items()
                )
                wanted = "an output with " + ", ".join(f"{d}={v!r}" for d, v in null.items())
            if not there:
                raise InputError(
                    f"instrument {self.name!r}: the null control {name!r} needs {wanted}, which "
                    "does not exist; correct the attribute `nulls`, or add the missing output to "
                    "`outputs` or the missing label to `coords`"
                )

    def counted(self, outputs: Mapping[str, Any], name: str, lead: tuple[str, ...] = ()) -> Any:
        """Return a mask of the examples that count for an output.

        The mask broadcasts to the shape of the output.

        Args:
          outputs: the outputs of `measure`, by name.
          name: name of the output.
          lead: leading axes of all arrays, in addition to the declared dimensions.

        Returns:
          A bool array; None if all examples count.
        """
        if name not in self.given:
            return None
        condition = self.given[name]
        there, dims = ((*lead, *self.outputs[one]) for one in (condition, name))
        expanded = [slice(None) if dim in there else None for dim in dims]
        return outputs[condition].astype(bool)[*expanded]

    def check(self, outputs: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
        """Check that outputs have the declared names and shapes.

        Args:
          outputs: arrays of one checkpoint, by name.
          sizes: size of each dimension that has labels.

        Raises:
          InputError: the names differ from the declared names, a declared dimension has no labels,
            or the shape of an array differs from the sizes of its dimensions.
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
                    f"{unknown[0]!r}, but coords has no labels for this dimension; the dimensions "
                    f"with labels are {', '.join(sizes)}"
                )
            wanted = tuple(sizes[dim] for dim in dims)
            if outputs[name].shape != wanted:
                raise InputError(
                    f"instrument {self.name!r}: output {name!r} has shape {outputs[name].shape}; "
                    f"it must be {wanted}, because the dimensions {dims} have these sizes"
                )


class Instrument(BaseInstrument):
    """A measurement of a model. To add an instrument, subclass this class in a file of your own.

    The result for a run is stored in `analysis/<name>.nc`. It has the dimension `step`.

    Attributes:
      reference: whether `measure` receives the parameters of the subject's last checkpoint as
        `inputs["reference"]`, to compare other checkpoints with them. `inputs` must then be a dict.
    """

    reference: ClassVar[bool] = False

    @abc.abstractmethod
    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Choose the examples. The choice must not depend on the checkpoint.

        Raises:
          NotApplicable: the instrument cannot be used for this task.
        """

    @abc.abstractmethod
    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Compute the outcomes for one model. JAX traces this method, so it must be pure.

        Args:
          model: the model, which is static under tracing.
          params: parameters of one checkpoint.
          inputs: `Examples.inputs`.
          key: random key; it is the same for every checkpoint.

        Returns:
          One array for each name in `outputs`, with the declared dimensions.
        """

    def coords(self, model: Transformer, dataset: Dataset) -> dict[str, Sequence[Any]]:
        """Return the labels of each dimension.

        By default, the dimension `layer` has the layers of the residual stream as labels, and the
        dimension `pos` has the names of the prompt's positions. The labels of one dimension must be
        all strings, all numbers or all bools.
        """
        return {"layer": range(model.spec.depth + 1), "pos": dataset.positions}

    def sites(self, model: Transformer) -> tuple[str, ...]:
        """Return the sites that the instrument reads or edits; default: the residual sites.

        The names are stored in the result as information only. `measure` does not use them.
        """
        return model.resid_sites
