"""Find the true values of the variables in each state, and the names of the values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from implicit_reasoning.dictionaries.measures.concepts import FACT, Concept
from implicit_reasoning.dictionaries.states import Places
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.dataset import world_of


class StateTruth:
    """The true values of the concepts in each state, with names from the vocabulary."""

    def __init__(self, dataset: Dataset, places: Places, concepts: Sequence[Concept]):
        """Read the true values of every concept at every state.

        Args:
          dataset: the run's dataset.
          places: locations of the states.
          concepts: the concepts.
        """
        self.concepts, self._dataset = concepts, dataset
        self._where = [list(dataset.positions).index(one.pos) for one in concepts]
        rows = places.rows[places.row]
        self._columns = [
            np.where(places.pos == where, dataset.truth[one.variable][rows], -1)
            for one, where in zip(concepts, self._where, strict=True)
        ]
        self._pos = places.pos

    def value(self, concept: int, value: int) -> str:
        """Return the name of a concept's value, such as `<e_12>`."""
        return self._name(concept, self._true(concept, value))

    def label(self, concept: int, value: int) -> str:
        """Return the label of a concept's value, such as `e2 @ r1 = <e_12>`."""
        one = self.concepts[concept]
        return f"{one.variable} @ {one.pos} = {self.value(concept, value)}"

    def at(self, concept: int, value: int, state: int) -> tuple[bool | None, str]:
        """Return whether a state has the given value, and the name of the true value.

        The result is `(None, "")` if the concept has no value in the state.

        Args:
          concept: number of the concept.
          value: number of the value within the concept.
          state: index of the state in `places`.
        """
        true = int(self._columns[concept][state])
        if true < 0:
            return None, ""
        return true == self._true(concept, value), self._name(concept, true)

    def _true(self, concept: int, value: int) -> int:
        """Return the dataset's number of a concept's value. Concepts renumber facts."""
        one = self.concepts[concept]
        there = one.chosen[one.values == value]
        return int(self._columns[concept][there[0]]) if len(there) else -1

    def _name(self, concept: int, true: int) -> str:
        vocab, variable = self._dataset.vocab, self.concepts[concept].variable
        if true < 0:
            return "none"
        first_relation = world_of(self._dataset).n_entities
        if variable == FACT:
            facts = world_of(self._dataset).facts
            return f"{vocab[facts.head[true]]} {vocab[first_relation + facts.relation[true]]}"
        return vocab[true + first_relation * variable.startswith("r")]
