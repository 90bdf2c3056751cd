"""Concepts: the values of a truth variable at a position, and how well features stand for them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.analysis.facts import known_at
from implicit_reasoning.analysis.states import chain_variables
from implicit_reasoning.dictionaries.matching import match, match_null
from implicit_reasoning.dictionaries.states import Places
from implicit_reasoning.worlds import Dataset

_MOST_STATES = 4000  # at each position
_PERMUTATIONS = 20
_SEED = 0


class Concept(NamedTuple):
    """Values of a truth variable at one position, and the states that have them.

    Attributes:
      variable: its name.
      pos: name of the position.
      chosen: numbers of states, among the places.
      values: int [chosen].
      second: which half they are in.
      n_values: values are below it.
    """

    variable: str
    pos: str
    chosen: Int[np.ndarray, "state"]
    values: Int[np.ndarray, "state"]
    second: Bool[np.ndarray, "state"]
    n_values: int

    @property
    def name(self) -> str:
        """Such as `e2@r1`."""
        return f"{self.variable}@{self.pos}"


def choose_concepts(dataset: Dataset, places: Places) -> list[Concept]:
    """Every variable from the position on where it is first known, in a task of chains.

    Halves are drawn by state: a state is one prefix, and none is in both.

    Raises:
      NotApplicable: the task is not one of chains, or spells an entity in two tokens.
    """
    variables = chain_variables(dataset, places.rows)
    random = np.random.default_rng(_SEED)
    concepts = []
    positions = list(dataset.positions)
    for name, kind in zip(variables.names, variables.kinds, strict=True):
        known = positions.index(known_at(name, positions))
        for pos in range(known, len(positions)):
            values = dataset.truth[name][places.rows[places.row]]
            there = np.flatnonzero((places.pos == pos) & (values >= 0))
            there = np.sort(random.permutation(there)[:_MOST_STATES])
            # Where a value has one state each, there is nothing to generalise over.
            if len(there) < 2 * len(np.unique(values[there])):
                continue
            concepts.append(
                Concept(
                    name,
                    positions[pos],
                    there,
                    values[there],
                    random.permutation(len(there)) % 2 == 1,
                    variables.sizes[kind],
                )
            )
    return concepts


def matched(acts: Float[Array, "state feature"], concept: Concept) -> dict[str, Array]:
    """How well the best features stand for a concept's values, and by chance; traced."""
    values, second = jnp.asarray(concept.values), jnp.asarray(concept.second)
    found = match(acts, values, second, concept.n_values)
    key = jax.random.key(_SEED)
    null = match_null(acts, values, second, concept.n_values, key, _PERMUTATIONS)
    return {
        "f1": found.f1,
        "precision": found.precision,
        "feature": found.feature,
        "null": null,
    }
