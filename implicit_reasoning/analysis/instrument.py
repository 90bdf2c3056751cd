"""Base classes of instruments.

An instrument has three methods:

- `examples` chooses the examples to measure. It runs on the host, once for each dataset.
- `measure` computes the outcomes of one model. It is a pure function of the parameters and the
  examples. The runner maps it over checkpoints on the device.
- `claims` interprets the results. Its thresholds are constants in the file of the instrument, so
  `truth` can score the instrument on models whose mechanism is known.
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
    """The instrument cannot be used for this task. The message gives the reason."""


@dataclass(frozen=True)
class Examples:
    """The examples that an instrument measures.

    Attributes:
      inputs: a pytree of arrays, which is the argument `inputs` of `measure`.
      groups: names of the groups, such as "train_ii". Means are computed for each group.
      group: int [example], the group of each example, as an index into `groups`.
      clusters: int [example], the cluster of each example. Examples in the same cluster are
        dependent, for example because their chains have the same bridge. Confidence intervals use
        the spread between clusters. If `cluster_dim` is given, the shape is [size of cluster_dim,
        example]. An example with cluster -1 is excluded.
      cluster_dim: a dimension of the outcomes, such as "pos", along which the cluster of an example
        varies. None means that each example has only one cluster.
      coords: labels of dimensions whose labels depend on the chosen examples, such as names of
        variables. `Instrument.coords` returns the labels of all other dimensions.
    """

    inputs: Any
    groups: tuple[str, ...]
    group: Int[np.ndarray, " example"]
    clusters: Int[np.ndarray, "*dim example"]
    cluster_dim: str | None = None
    coords: Mapping[str, Sequence[Any]] = field(default_factory=dict)


class BaseInstrument(abc.ABC):
    """Base class of all instruments.

    Attributes:
      name: name of the instrument. Results are saved in `<name>.nc`.
      definition: text that defines the outputs and cites their source.
      version: version of the instrument. Increase the version if new results cannot be compared
        with old results. Results of different versions are never merged.
      outputs: for each output of `measure`, by name, the names of the dimensions. If the last
        dimension is "example", the result contains the mean over each group, and the ends of the
        confidence interval as `<name>_low` and `<name>_high`. All other outputs are saved
        unchanged.
      given: for some outputs, by name, the name of a bool output that selects examples. Only the
        selected examples contribute to the mean of the output. For example, a bool output can
        select the examples that the model answers correctly without a patch. The bool output has
        some or all of the dimensions of the averaged output. The result also contains `<name>_n`,
        the number of clusters with a selected example.
      nulls: for each null control, by name, either the labels that select the control, or the name
        of an output. `{"shuffled truth": {"truth": "shuffled"}}` is an example of labels. If step 0
        is measured, the untrained model is an additional control.
      default: whether `analyze_all` runs the instrument if the user names no instruments.
      found_at: import path of the class, which the report uses to load the class again. It is empty
        if the user passed an instance.
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
        """Return the settings that change the results, such as a rank; default: none.

        The values of the dict must be JSON values, numpy numbers or numpy arrays. Results with
        different options are never merged.
        """
        return {}

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Draw the result of all measured checkpoints; default: no figures."""
        return []

    def claims(self, result: xr.Dataset) -> set[Claim]:
        """Return the claims that the result of one checkpoint supports; default: no claims.

        Args:
          result: the result of one checkpoint, without the dimension `step`.
        """
        return set()

    def check_nulls(self, coords: Mapping[str, Sequence[Any]]) -> None:
        """Check that every null control in `nulls` exists.

        Args:
          coords: the labels of each dimension.

        Raises:
          InputError: a null control refers to an output or a label that does not exist.
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
        """Return a mask of the examples that contribute to the means of an output.

        `given` declares which examples contribute. The mask broadcasts to the shape of the output.

        Args:
          outputs: the outputs of `measure`, by name.
          name: name of the output.
          lead: names of the axes that all arrays have in front of the declared dimensions.

        Returns:
          A bool array; None if all examples contribute.
        """
        if name not in self.given:
            return None
        condition = self.given[name]
        there, dims = ((*lead, *self.outputs[one]) for one in (condition, name))
        expanded = [slice(None) if dim in there else None for dim in dims]
        return outputs[condition].astype(bool)[*expanded]

    def check(self, outputs: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
        """Check that the outputs of `measure` have the declared names and shapes.

        Args:
          outputs: the output arrays of one checkpoint, by name.
          sizes: size of each dimension that has labels.

        Raises:
          InputError: an output is missing or not declared, a declared dimension has no labels, or
            the shape of an output differs from the sizes of its dimensions.
        """
        if outputs.keys() != self.outputs.keys():
            raise InputError(
                f"instrument {self.name!r} declares the outputs {sorted(self.outputs)}, but "
                f"measure returned {sorted(outputs)}; correct the attribute `outputs` or the "
                "method `measure`"
            )
        for name, dims in self.outputs.items():
            unknown = [dim for dim in dims if dim not in sizes]
            if unknown:
                raise InputError(
                    f"instrument {self.name!r}: output {name!r} has the dimension "
                    f"{unknown[0]!r}, which has no labels; add labels to `coords`, or choose from "
                    f"the dimensions {', '.join(sizes)}"
                )
            wanted = tuple(sizes[dim] for dim in dims)
            if outputs[name].shape != wanted:
                raise InputError(
                    f"instrument {self.name!r}: output {name!r} has shape {outputs[name].shape}, "
                    f"but the declared dimensions {dims} have the sizes {wanted}; correct the "
                    "attribute `outputs` or the method `measure`"
                )


class Instrument(BaseInstrument):
    """Base class of instruments that measure a transformer.

    To add an instrument, write a subclass in your own file.

    The result for a run is saved in `analysis/<name>.nc`, and has the dimension `step`.

    Attributes:
      reference: whether `measure` compares each checkpoint with the last checkpoint. If true,
        `inputs` must be a dict, and `inputs["reference"]` contains the parameters of the last
        checkpoint.
    """

    reference: ClassVar[bool] = False

    @abc.abstractmethod
    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Choose the examples to measure. All checkpoints are measured on these examples.

        Raises:
          NotApplicable: the instrument cannot be used for this task.
        """

    @abc.abstractmethod
    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Compute the outputs for one checkpoint. JAX traces this method, so it must be pure.

        Args:
          model: the model without parameters; static under tracing.
          params: parameters of one checkpoint.
          inputs: the attribute `Examples.inputs` of the chosen examples.
          key: random key. All checkpoints get the same key.

        Returns:
          One array for each name in `outputs`, with the declared dimensions.
        """

    def coords(self, model: Transformer, dataset: Dataset) -> dict[str, Sequence[Any]]:
        """Return the labels of each dimension.

        By default, the labels of `layer` are 0 to `depth`, and the labels of `pos` are the names of
        the positions of the prompt. The labels of one dimension must be all strings, all numbers or
        all bools.
        """
        return {"layer": range(model.spec.depth + 1), "pos": dataset.positions}

    def sites(self, model: Transformer) -> tuple[str, ...]:
        """Return the names of the sites that the instrument uses; default: the residual stream.

        The names are saved in the result, as information only.
        """
        return model.resid_sites
