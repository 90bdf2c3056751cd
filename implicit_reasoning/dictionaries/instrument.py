"""Define the base class of instruments that measure one dictionary in its model.

On the host, `examples` chooses the examples once for a set of dictionaries. On the device, one
compiled program runs all instruments. For each checkpoint, it computes the values that all
dictionaries share (`shared`), and then measures each dictionary (`measure`). Outcomes of examples
are averaged within groups, with clustered confidence intervals. The same code averages the outcomes
of instruments that measure models. `derived` adds variables that are computed from the means.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Array, Bool, Float

from implicit_reasoning.analysis.instrument import BaseInstrument, Examples
from implicit_reasoning.dictionaries.dictionary import InferenceDictionary
from implicit_reasoning.dictionaries.splice import Sites
from implicit_reasoning.dictionaries.states import Split
from implicit_reasoning.dictionaries.store import Member
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.runs import Run


class ExampleSource(NamedTuple):
    """The data from which instruments choose their examples.

    Attributes:
      run: the run whose states the dictionaries read.
      split: the run's distinct states, split into training and held-out states.
      members: the dictionaries.
      where: bool [pos], the positions whose states the dictionaries were trained on.
    """

    run: Run
    split: Split
    members: tuple[Member, ...]
    where: Bool[np.ndarray, " pos"]


class DictionarySubject(NamedTuple):
    """The model and the states that several dictionaries share. JAX traces all arrays.

    Attributes:
      model: the model, which is static under tracing.
      params: parameters of the checkpoint that the dictionaries belong to. For a crosscoder, they
        are the parameters of the first checkpoint.
      sites: the sites that the dictionaries read and write, which are static under tracing.
      x: [state, d_in] the dictionaries' inputs at all places of the split.
      y: [state, d_out] the dictionaries' targets at the same places.
    """

    model: Transformer
    params: Params
    sites: Sites
    x: Float[Array, "state d_in"]
    y: Float[Array, "state d_out"]


class EncodedStates(NamedTuple):
    """One dictionary, and its activations on the subject's states.

    Attributes:
      dictionary: the encoder and decoder, which are static under tracing.
      params: the dictionary's parameters.
      acts: [state, d_sae] activations at all places of the split.
    """

    dictionary: InferenceDictionary
    params: Params
    acts: Float[Array, "state d_sae"]

    @property
    def rows(self) -> Float[Array, "d_sae d_out"]:
        """The decoder rows of the dictionary."""
        return self.dictionary.architecture.rows(self.params)


class DictionaryInstrument(BaseInstrument):
    """Base class of instruments that measure one dictionary. Users can define subclasses.

    Results are saved in `dictionaries/<set>/measured/<name>.nc`, with the dimension `member`. A
    member is a dictionary or a baseline. Members have the coordinates `step`, `site`, `sparsity`,
    `seed` and `what` ("trained", or the name of the baseline). Every
    instrument uses the baselines as null controls.

    The dimension "feature" needs no entry in `coords`. Its length is the number of features of the
    widest member. The results of narrower members are padded with nan.

    Attributes:
      group: the name that the dimension `group` gets in the table of all instruments, such as
        "split". The default "" is for instruments with one group, and removes the dimension from
        the table.
      needs_model: whether the instrument runs the model with the dictionary spliced in. Such an
        instrument does not apply to a dictionary of all checkpoints, which has no single model.
    """

    group: ClassVar[str] = ""
    needs_model: ClassVar[bool] = False

    @abc.abstractmethod
    def examples(self, source: ExampleSource) -> Examples:
        """Choose the examples, once for a set of dictionaries.

        The attribute `inputs` of the returned examples may be any object. The numpy arrays that it
        contains become constants of the compiled program. `coords` must label all dimensions except
        "feature". Instruments without per-example outcomes return `without_examples(...)`.

        Raises:
          NotApplicable: the instrument does not apply to this task or these dictionaries.
        """

    def shared(self, subject: DictionarySubject, inputs: Any) -> dict[str, Any]:
        """Compute values that all dictionaries of a subject share. JAX traces this method."""
        return {}

    @abc.abstractmethod
    def measure(
        self,
        subject: DictionarySubject,
        shared: Mapping[str, Any],
        encoded: EncodedStates,
        inputs: Any,
    ) -> dict[str, Array]:
        """Measure one dictionary. JAX traces this method, so it must be pure.

        Args:
          subject: the model and its states.
          shared: the values that `shared` returned for the subject.
          encoded: the dictionary and its activations on the subject's states.
          inputs: `inputs` of the examples.

        Returns:
          The outputs by name, with the dimensions that `outputs` declares.
        """

    def derived(self, result: xr.Dataset, examples: Examples) -> xr.Dataset:
        """Add variables that are computed from the means, such as ratios. The default adds none.

        Args:
          result: the means, with the dimension `member`. Outputs with one outcome per example also
            have the dimension `group`.
          examples: the examples of the instrument.
        """
        return result


def without_examples(inputs: Any, coords: Mapping[str, Sequence[Any]] | None = None) -> Examples:
    """Return examples for an instrument that has no per-example outcomes."""
    nothing = np.zeros(0, np.int64)
    return Examples(inputs, (), nothing, nothing, coords=coords or {})
