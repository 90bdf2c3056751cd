"""Measure how well single features detect values of ground-truth variables, such as the bridge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Bool, Int

from implicit_reasoning.analysis.facts import assign_folds, first_known_position
from implicit_reasoning.analysis.instrument import Examples, NotApplicable
from implicit_reasoning.analysis.states import chain_variables
from implicit_reasoning.dictionaries.instrument import (
    DictionaryInstrument,
    DictionarySubject,
    EncodedStates,
    ExampleSource,
    without_examples,
)
from implicit_reasoning.dictionaries.measures.matching import (
    MAX_JOINED,
    both_halves,
    joined,
    match,
    match_null,
    ranked,
)
from implicit_reasoning.dictionaries.states import Places, first_fact_keys
from implicit_reasoning.worlds import Dataset

FACT = "fact1"
"""Name of the variable "first fact of the chain". Its values correspond to prefixes (e1, r1)."""
_MAX_STATES = 3000  # per position
_MAX_FACTS = 100
_PERMUTATIONS = 20
_SEED = 0


class Concept(NamedTuple):
    """A ground-truth variable at one position, with the values in each state.

    Attributes:
      variable: name of the variable, such as `e2`.
      pos: name of the position, such as `r1`.
      chosen: int [state], indices of the states in `Split.places`.
      values: int [state], the variable's value in each state, or -1 if the variable has no value.
      second: bool [state], whether the state belongs to the half on which features are scored.
      n_values: number of possible values, which are numbered from 0.
    """

    variable: str
    pos: str
    chosen: Int[np.ndarray, " state"]
    values: Int[np.ndarray, " state"]
    second: Bool[np.ndarray, " state"]
    n_values: int

    @property
    def name(self) -> str:
        """The name of the concept, such as `e2@r1`."""
        return f"{self.variable}@{self.pos}"


def choose_concepts(dataset: Dataset, places: Places) -> list[Concept]:
    """Choose the concepts, which are pairs of a variable and a position.

    A variable is known at a position if the tokens up to the position determine the variable. Each
    variable has one concept per position at which the variable is known. `FACT`, the first fact of
    a chain, has one concept per position after the position at which the bridge becomes known.

    The states of a concept are divided into two halves that share no first facts. Features can
    therefore be chosen and scored on different facts. For the concepts of `FACT`, both halves
    contain the same facts but different states.

    Args:
      dataset: the run's dataset.
      places: locations of the states.

    Raises:
      NotApplicable: the task has no chains, or an entity has two tokens.
    """
    variables = chain_variables(dataset, places.rows)
    positions = list(dataset.positions)
    halves = assign_folds(first_fact_keys(dataset, places), 2) == 1
    random = np.random.default_rng(_SEED)
    concepts = []
    for name, kind in zip(variables.names, variables.kinds, strict=True):
        for pos in range(positions.index(first_known_position(name, positions)), len(positions)):
            values = dataset.truth[name][places.rows[places.row]]
            there = np.flatnonzero((places.pos == pos) & (values >= 0))
            there = np.sort(random.permutation(there)[:_MAX_STATES])
            # With fewer than two states per value, a feature cannot be tested on new states.
            if len(there) >= 2 * len(np.unique(values[there])):
                found = there, values[there], halves[there], variables.sizes[kind]
                concepts.append(Concept(name, positions[pos], *found))
    return concepts + _facts(dataset, places, positions, random)


def _facts(
    dataset: Dataset, places: Places, positions: list[str], random: np.random.Generator
) -> list[Concept]:
    """Make the concepts of the first fact, at the positions after the fact is known.

    A random sample of the facts is chosen and renumbered from 0. Some states of facts that are not
    in the sample are included, without a value. Otherwise a feature of an entity would seem to
    stand for the only fact of this entity that is in the sample.
    """
    known, values = positions.index(first_known_position("e2", positions)), dataset.truth[FACT]
    found = []
    for pos in range(known + 1, len(positions)):
        of_state = values[places.rows[places.row]]
        there = np.flatnonzero((places.pos == pos) & (of_state >= 0))
        facts = np.sort(random.permutation(np.unique(of_state[there]))[:_MAX_FACTS])
        inside = np.isin(of_state[there], facts)
        others = random.permutation(there[~inside])[: max(0, _MAX_STATES - inside.sum())]
        there = np.sort(np.concatenate([there[inside], others]))
        number = np.searchsorted(facts, of_state[there])
        number = np.where(np.isin(of_state[there], facts), number, -1)
        second = _alternating(of_state[there])
        found.append(Concept(FACT, positions[pos], there, number, second, len(facts)))
    return found


def _alternating(values: Int[np.ndarray, " state"]) -> Bool[np.ndarray, " state"]:
    """Return a mask that contains every second state of each value."""
    order = np.argsort(values, kind="stable")
    first = np.searchsorted(values[order], values[order])
    second = np.empty(len(values), bool)
    second[order] = (np.arange(len(values)) - first) % 2 == 1
    return second


@dataclass(frozen=True, eq=False)
class ConceptStates:
    """All concepts of a run, with the states of the concepts in padded arrays.

    A concept is a variable at a position, such as the bridge e2 at r1.
    """

    concepts: Sequence[Concept]

    @classmethod
    def choose(cls, source: ExampleSource) -> ConceptStates:
        """Choose all concepts of a run.

        Raises:
          NotApplicable: the task has no chains, or no variable has values that occur in several
            states.
        """
        concepts = choose_concepts(source.run.dataset, source.split.places)
        if not concepts:
            raise NotApplicable(
                "this instrument needs a variable whose values occur in at least two distinct "
                "states on average; there is no such variable"
            )
        return cls(concepts)

    @cached_property
    def n_values(self) -> int:
        """The largest number of values of any concept."""
        return max(concept.n_values for concept in self.concepts)

    @cached_property
    def halves(self) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """For each half of the states, an array of state indices and an array of values.

        All arrays have the dimensions [concept, state]. Concepts with few states are padded with
        -1, so one program measures all concepts.
        """
        return tuple(self._half(second) for second in (False, True))

    def _half(self, second: bool) -> tuple[np.ndarray, np.ndarray]:
        kept = [one.second == second for one in self.concepts]
        most = max(int(part.sum()) for part in kept)
        numbers = np.full((len(kept), most), -1, np.int32)
        values = np.full_like(numbers, -1)
        for row, (one, part) in enumerate(zip(self.concepts, kept, strict=True)):
            numbers[row, : part.sum()] = one.chosen[part]
            values[row, : part.sum()] = one.values[part]
        return numbers, values


class Concepts(DictionaryInstrument):
    """Finds the best feature for each value, and computes F1 and average precision."""

    name = "concepts"
    definition = (
        "For each variable and position (concept) and value: the feature whose activity matches "
        "the value best (best_feature), chosen by F1 on one half of first facts; on the other "
        "half, its F1, the average precision of its activation, and the F1 of the best one, two "
        "or three features together (f1_joined). nan: a half has fewer than two states with the "
        "value. Nulls: means over values when values are permuted among the states."
    )
    outputs = {
        "f1": ("concept", "value"),
        "average_precision": ("concept", "value"),
        "f1_joined": ("concept", "value", "joined"),
        "best_feature": ("concept", "value"),
        "f1_null": ("concept", "draw"),
        "average_precision_null": ("concept", "draw"),
    }
    nulls = {
        "permuted values, F1": "f1_null",
        "permuted values, average precision": "average_precision_null",
    }

    def examples(self, source: ExampleSource) -> Examples:
        """Choose the states on which every concept is measured."""
        states = ConceptStates.choose(source)
        coords = {
            "concept": [concept.name for concept in states.concepts],
            "value": range(states.n_values),
            "joined": range(1, MAX_JOINED + 1),
            "draw": range(_PERMUTATIONS),
        }
        return without_examples(states, coords)

    def measure(
        self,
        subject: DictionarySubject,
        shared: Mapping[str, Any],
        encoded: EncodedStates,
        inputs: ConceptStates,
    ) -> dict[str, Array]:
        """Find and score the best feature for each value of each concept, with `matching.match`.

        The null control permutes the values among the states.
        """

        def one(halves: Any) -> dict[str, Array]:
            first, second = both_halves(encoded.acts, halves)
            order = ranked(second.acts)
            key = jax.random.key(_SEED)
            found = match(first, second, inputs.n_values, order)
            null = match_null(first, second, inputs.n_values, key, _PERMUTATIONS, order)
            return {
                "f1": found.f1,
                "average_precision": found.precision,
                "f1_joined": joined(first, second, inputs.n_values),
                "best_feature": found.feature,
                "f1_null": null[:, 0],
                "average_precision_null": null[:, 1],
            }

        found: dict[str, Array] = jax.lax.map(one, jax.tree.map(jnp.asarray, inputs.halves))
        return found

    def derived(self, result: xr.Dataset, examples: Examples) -> xr.Dataset:
        """Add the coordinate `concept_states`, the number of states of each concept."""
        counts = [len(concept.chosen) for concept in examples.inputs.concepts]
        return result.assign_coords(concept_states=("concept", counts))
