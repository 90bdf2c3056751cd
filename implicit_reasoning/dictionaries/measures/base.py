"""What a measure of dictionaries is: inputs chosen on the host, arrays on the device, labels.

A measure is made of a run (`choose`), or is not, where the run has nothing for it. In the one
compiled program for all dictionaries of a source it says once what they share (`shared`), and then
of each what it finds (`of_one`); what comes back, stacked, it names (`labelled`).
"""

from __future__ import annotations

import abc
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float

from implicit_reasoning.dictionaries.dictionary import Finished
from implicit_reasoning.dictionaries.splice import Sites
from implicit_reasoning.dictionaries.states import Split
from implicit_reasoning.dictionaries.store import Member
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.runs import Run

Found = tuple[dict[str, Any], dict[str, Any]]
"""Variables and coordinates of a dataset, with `member` as their first dimension."""


class Asked(NamedTuple):
    """What is to be measured, as far as measures choose by it.

    Attributes:
      run: that it is of.
      split: distinct states, of which some were held out.
      members: the dictionaries.
      where: bool [pos], positions whose states they were made for.
    """

    run: Run
    split: Split
    members: tuple[Member, ...]
    where: Bool[np.ndarray, " pos"]


class Subject(NamedTuple):
    """Where the states of some dictionaries are from; arrays are traced.

    Attributes:
      model: static.
      params: of its checkpoint (of a crosscoder's the first).
      sites: that dictionaries read and write; static.
      x: what is read, of all places of the split.
      y: what is to be written.
    """

    model: Transformer
    params: Params
    sites: Sites
    x: Float[Array, "state d_in"]
    y: Float[Array, "state d_out"]


class Coded(NamedTuple):
    """A dictionary and what it makes of the states.

    Attributes:
      finished: static.
      params: its parameters.
      acts: activations, of all places.
    """

    finished: Finished
    params: Params
    acts: Float[Array, "state d_sae"]

    @property
    def rows(self) -> Float[Array, "d_sae d_out"]:
        """What each feature writes."""
        return self.finished.kind.rows(self.params)


class Measure(abc.ABC):
    """See the module."""

    name: ClassVar[str]
    needs_model: ClassVar[bool] = False
    """Whether it runs the model with a dictionary in it, which one of all checkpoints has not."""

    @classmethod
    @abc.abstractmethod
    def choose(cls, asked: Asked) -> Measure | None:
        """The measure for a run; None where it does not apply."""

    def shared(self, subject: Subject) -> dict[str, Any]:
        """What all dictionaries of a source need; traced."""
        return {}

    @abc.abstractmethod
    def of_one(self, subject: Subject, shared: dict[str, Any], coded: Coded) -> dict[str, Array]:
        """What is found of one dictionary; traced."""

    @abc.abstractmethod
    def labelled(self, outputs: dict[str, np.ndarray]) -> Found:
        """Names for what was found, [member, ...] each."""
