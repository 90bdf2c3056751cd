"""What an instrument of dictionaries is: a measurement of one dictionary in its model.

On the host, `examples` chooses what to look at, once for a set of dictionaries. On the device, one
compiled program computes for every checkpoint what its dictionaries share (`shared`) and then
measures each dictionary (`measure`), with all instruments together. Outcomes by example are
averaged within groups, with clustered intervals, by the code that does so for instruments of
models; `derived` adds numbers that follow from these means.
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
    """What instruments choose their examples from.

    Attributes:
      run: the run whose states the dictionaries read.
      split: its distinct states, of which some were held out from training.
      members: the dictionaries.
      where: bool [pos], the positions whose states the dictionaries were trained on.
    """

    run: Run
    split: Split
    members: tuple[Member, ...]
    where: Bool[np.ndarray, " pos"]


class DictionarySubject(NamedTuple):
    """The model and the states that some dictionaries share; arrays are traced.

    Attributes:
      model: static.
      params: of the dictionaries' checkpoint (of a crosscoder's first checkpoint).
      sites: that the dictionaries read and write; static.
      x: what is read, at all places of the split.
      y: what is to be written there.
    """

    model: Transformer
    params: Params
    sites: Sites
    x: Float[Array, "state d_in"]
    y: Float[Array, "state d_out"]


class EncodedStates(NamedTuple):
    """One dictionary, and its activations on the subject's states.

    Attributes:
      dictionary: how it encodes and decodes; static.
      params: its parameters.
      acts: its activations at all places of the split.
    """

    dictionary: InferenceDictionary
    params: Params
    acts: Float[Array, "state d_sae"]

    @property
    def rows(self) -> Float[Array, "d_sae d_out"]:
        """What each feature writes."""
        return self.dictionary.architecture.rows(self.params)


class DictionaryInstrument(BaseInstrument):
    """A measurement of one dictionary; one of your own is a subclass in a file of its own.

    Results are kept in `dictionaries/<set>/measured/<name>.nc`, by `member`: a dictionary, or a
    baseline in its place. Members have the coordinates `step`, `site`, `sparsity`, `seed` and
    `what` ("trained", or the name of the baseline). Baselines are nulls of every instrument.

    A dimension "feature" is labelled without an entry in `coords`. It is as long as the widest
    dictionary or baseline; narrower ones are filled up with nan.

    Attributes:
      group: the dimension of groups in the table of all instruments, such as "split"; "" where
        there is one group, whose dimension is dropped there.
      needs_model: whether it runs the model with the dictionary in it. A dictionary of all
        checkpoints has no such model.
    """

    group: ClassVar[str] = ""
    needs_model: ClassVar[bool] = False

    @abc.abstractmethod
    def examples(self, source: ExampleSource) -> Examples:
        """Choose what to look at; a fixed choice for a set of dictionaries.

        `inputs` may be any object. Numpy arrays in it are constants of the compiled program.
        `coords` has the labels of all dimensions but "feature"; see also `without_examples`.

        Raises:
          NotApplicable: the instrument makes no sense for this task or these dictionaries.
        """

    def shared(self, subject: DictionarySubject, inputs: Any) -> dict[str, Any]:
        """What all dictionaries of a subject need, computed once; traced."""
        return {}

    @abc.abstractmethod
    def measure(
        self,
        subject: DictionarySubject,
        shared: Mapping[str, Any],
        encoded: EncodedStates,
        inputs: Any,
    ) -> dict[str, Array]:
        """The outcomes for one dictionary; traced, so it must be a pure function.

        Args:
          subject: the model and its states.
          shared: what `shared` returned for the subject.
          encoded: the dictionary and its activations on those states.
          inputs: of the examples.
        """

    def derived(self, result: xr.Dataset, examples: Examples) -> xr.Dataset:
        """Add variables that follow from means, such as ratios of them; none unless overridden.

        Args:
          result: by `member`, with the dimension `group` where there are outcomes by example.
          examples: as they were chosen.
        """
        return result


def without_examples(inputs: Any, coords: Mapping[str, Sequence[Any]] | None = None) -> Examples:
    """For an instrument that has no outcomes by example."""
    nothing = np.zeros(0, np.int64)
    return Examples(inputs, (), nothing, nothing, coords=coords or {})
