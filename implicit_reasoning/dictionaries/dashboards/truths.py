"""Truth about states: what features are held against, and what it is called."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from implicit_reasoning.dictionaries.measures import Asked
from implicit_reasoning.dictionaries.measures.concepts import FACT, Concept, Concepts
from implicit_reasoning.dictionaries.states import Places
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.dataset import world_of

OTHER = 2**30
"""In place of a value: another than those that are asked for."""


def choose_truth(asked: Asked) -> list[Concepts]:
    """Concepts, those of one size together; empty where the task is not one of chains.

    Of facts, of which only some are asked for, states of all others are there, too: a feature that
    speaks of an entity would else pass for one of the only fact of that entity among the some.
    """
    found = Concepts.choose(asked)
    if not isinstance(found, Concepts):
        return []
    facts = [one for one in found.concepts if one.variable == FACT]
    rest = [one for one in found.concepts if one.variable != FACT]
    places, dataset = asked.split.places, asked.run.dataset
    groups = rest, [_with_others(one, dataset, places) for one in facts]
    return [Concepts(group) for group in groups if group]


def _with_others(concept: Concept, dataset: Dataset, places: Places) -> Concept:
    """The same values beside states of all others, which are dealt out one by one, too."""
    pos = list(dataset.positions).index(concept.pos)
    there = (places.pos == pos) & (dataset.truth[concept.variable][places.rows[places.row]] >= 0)
    there[concept.chosen] = False
    others = np.flatnonzero(there)
    return concept._replace(
        chosen=np.concatenate([concept.chosen, others]),
        values=np.concatenate([concept.values, np.full(len(others), OTHER, concept.values.dtype)]),
        second=np.concatenate([concept.second, np.arange(len(others)) % 2 == 1]),
    )


class Truth:
    """Truth about states, in the vocabulary's words."""

    def __init__(self, dataset: Dataset, places: Places, concepts: Sequence[Concept]):
        """Every concept's column of truth, and what its values are called there."""
        self.concepts, self._dataset = concepts, dataset
        self._where = [list(dataset.positions).index(one.pos) for one in concepts]
        rows = places.rows[places.row]
        self._columns = [
            np.where(places.pos == where, dataset.truth[one.variable][rows], -1)
            for one, where in zip(concepts, self._where, strict=True)
        ]
        self._pos = places.pos

    def value(self, concept: int, value: int) -> str:
        """What a value of a concept is called, such as `<e_12>`."""
        return self._name(concept, self._true(concept, value))

    def label(self, concept: int, value: int) -> str:
        """Such as `e2 @ r1 = <e_12>`."""
        one = self.concepts[concept]
        return f"{one.variable} @ {one.pos} = {self.value(concept, value)}"

    def at(self, concept: int, value: int, state: int) -> tuple[bool | None, str]:
        """Whether a state has a value, and which it has; None and "" where it can have none."""
        true = int(self._columns[concept][state])
        if true < 0:
            return None, ""
        return true == self._true(concept, value), self._name(concept, true)

    def _true(self, concept: int, value: int) -> int:
        """The number in the column of truth: of facts, which are renumbered, another one."""
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
