"""Choose the states at the first position at which the prefix determines the bridge.

A bridge is the intermediate entity e2 of a chain, which follows from the first fact (e1, r1).
Several instruments measure these states. There is one state per first fact.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from implicit_reasoning.analysis.facts import first_known_position
from implicit_reasoning.analysis.instrument import NotApplicable
from implicit_reasoning.analysis.states import need_chains
from implicit_reasoning.dictionaries.instrument import ExampleSource
from implicit_reasoning.dictionaries.measures.concepts import choose_concepts
from implicit_reasoning.worlds import ROLES, Dataset


class Bridges(NamedTuple):
    """Distinct states, with the bridge (intermediate entity) of each state.

    Attributes:
      chosen: int [state], indices of the states in `Split.places`.
      values: int [state], the entity number of the state's bridge.
      second: bool [state], whether the state's first fact is in the second half of the facts.
        Features are chosen on the first half and measured on the second half.
      in_distribution: bool [state], whether training chains use the state's first fact (role `I`).
      n_values: number of entities in the world.
    """

    chosen: Int[np.ndarray, " state"]
    values: Int[np.ndarray, " state"]
    second: Bool[np.ndarray, " state"]
    in_distribution: Bool[np.ndarray, " state"]
    n_values: int


def bridge_position(dataset: Dataset) -> int:
    """Return the index of the first position at which the prefix determines the bridge.

    A bridge is the intermediate entity e2 of a chain, which follows from (e1, r1).
    """
    return list(dataset.positions).index(first_known_position("e2", dataset.positions))


def choose_bridges(source: ExampleSource) -> Bridges:
    """Choose the states at the first position at which the prefix determines the bridge.

    Raises:
      NotApplicable: the task has no chains, bridges have fewer than two first facts on average, or
        the dictionaries do not read states at the position.
    """
    dataset, places = source.run.dataset, source.split.places
    need_chains(dataset)
    concepts = {one.name: one for one in choose_concepts(dataset, places)}
    pos = bridge_position(dataset)
    found = concepts.get(f"e2@{dataset.positions[pos]}")
    if found is None or not source.where[pos]:
        raise NotApplicable(
            f"this instrument needs states at position {dataset.positions[pos]!r} and at least two "
            "first facts per bridge on average; the dictionaries do not read this position, or "
            "bridges have fewer first facts"
        )
    role = dataset.truth["role1"][places.rows[places.row[found.chosen]]]
    in_distribution = np.asarray(role == ROLES.index("I"))
    return Bridges(found.chosen, found.values, found.second, in_distribution, found.n_values)
