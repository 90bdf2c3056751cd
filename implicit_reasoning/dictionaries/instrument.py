"""Define the base class of instruments that measure dictionaries.

An instrument has four methods. `examples` chooses the examples on the host, once for a set of
dictionaries. `shared` computes values that all dictionaries of a checkpoint share. `measure`
measures one dictionary. One compiled program calls `shared` and `measure` of all instruments. The
outcomes of examples are then averaged within groups, with clustered confidence intervals. `derived`
adds variables that are computed from the means.
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
    """The run, states and dictionaries from which instruments choose examples.

    Attributes:
      run: the run whose model the dictionaries were trained on.
      split: the distinct states of the run, divided into training states and held-out states.
      members: checkpoint, sites, sparsity and seed of each dictionary.
      where: bool [pos], whether the dictionaries were trained on states at each position.
    """

    run: Run
    split: Split
    members: tuple[Member, ...]
    where: Bool[np.ndarray, " pos"]


class DictionarySubject(NamedTuple):
    """A model and its states, which several dictionaries share.

    JAX traces the arrays.

    Attributes:
      model: the model, which is static under `jax.jit`.
      params: the model's parameters at the dictionaries' checkpoint. For a crosscoder, these are
        the parameters at the first checkpoint.
      sites: names of the hook sites that the dictionaries read and write.
      x: [state, d_in] inputs of the dictionaries, in the order of `Split.places`.
      y: [state, d_out] targets of the dictionaries, in the order of `Split.places`.
    """

    model: Transformer
    params: Params
    sites: Sites
    x: Float[Array, "state d_in"]
    y: Float[Array, "state d_out"]


class EncodedStates(NamedTuple):
    """A dictionary and its feature activations on all states.

    Attributes:
      dictionary: the encoder and decoder, which are static under `jax.jit`.
      params: the dictionary's parameters.
      acts: [state, d_sae] feature activations, in the order of `Split.places`.
    """

    dictionary: InferenceDictionary
    params: Params
    acts: Float[Array, "state d_sae"]

    @property
    def rows(self) -> Float[Array, "d_sae d_out"]:
        """The decoder rows of the dictionary, [d_sae, d_out]."""
        return self.dictionary.architecture.rows(self.params)


class DictionaryInstrument(BaseInstrument):
    """Base class of instruments that measure dictionaries. Users can define subclasses.

    Results are saved in `dictionaries/<set>/measured/<name>.nc`. Results have the dimension
    `member`. A member is a dictionary or a baseline and has the coordinates `step`, `site`,
    `sparsity`, `seed` and `what`. `what` is "trained" or the name of the baseline. Baselines are
    null controls for every instrument.

    The dimension "feature" needs no entry in `coords`. The length of this dimension is the largest
    number of features of any member. Results of members with fewer features are padded with nan.

    Attributes:
      group: name of the dimension `group` in the table of all instruments, such as "split". The
        default "" removes the dimension from the table. Use the default if there is only one group.
      needs_model: whether the instrument runs the model with the dictionary spliced in. If true,
        the instrument does not apply to crosscoders, which read several checkpoints of the model.
    """

    group: ClassVar[str] = ""
    needs_model: ClassVar[bool] = False

    @abc.abstractmethod
    def examples(self, source: ExampleSource) -> Examples:
        """Choose the examples on which all dictionaries of a set are measured.

        The attribute `inputs` of the result may be any object. Numpy arrays in `inputs` become
        constants of the compiled program. The attribute `coords` must label all dimensions except
        "feature". Instruments without per-example outcomes return `without_examples(...)`.

        Raises:
          NotApplicable: the instrument does not apply to the task or to the dictionaries.
        """

    def shared(self, subject: DictionarySubject, inputs: Any) -> dict[str, Any]:
        """Compute values that all dictionaries of `subject` share.

        JAX traces this method, so the method must be pure.
        """
        return {}

    @abc.abstractmethod
    def measure(
        self,
        subject: DictionarySubject,
        shared: Mapping[str, Any],
        encoded: EncodedStates,
        inputs: Any,
    ) -> dict[str, Array]:
        """Measure one dictionary.

        JAX traces this method, so the method must be pure.

        Args:
          subject: the model and its states.
          shared: the values that the method `shared` returned for the subject.
          encoded: the dictionary to measure, with its activations on the subject's states.
          inputs: the attribute `inputs` of the result of `examples`.

        Returns:
          The outputs, keyed by name. Each output has the dimensions that the class attribute
          `outputs` declares.
        """

    def derived(self, result: xr.Dataset, examples: Examples) -> xr.Dataset:
        """Add variables that are computed from the means, such as ratios.

        The base class adds no variables.

        Args:
          result: means of the outputs, with the dimension `member`. If an output has one outcome
            per example, the mean also has the dimension `group`.
          examples: the result of the method `examples`.
        """
        return result


def without_examples(inputs: Any, coords: Mapping[str, Sequence[Any]] | None = None) -> Examples:
    """Return examples for an instrument without per-example outcomes.

    `inputs` and `coords` become attributes of the result.
    """
    nothing = np.zeros(0, np.int64)
    return Examples(inputs, (), nothing, nothing, coords=coords or {})
