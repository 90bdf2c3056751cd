"""The states in which a chain's bridge is first known, which several instruments measure.

There is one state for each first fact (e1, r1), at the first position that determines the bridge.
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
    """Distinct states and their bridges.

    Attributes:
      chosen: int [state], indices into the split's places.
      values: int [state], the bridge, an entity.
      second: bool [state], whether the state is in the second half.
      in_distribution: bool [state], whether chains of the training set use the first fact.
      n_values: number of entities.
    """

    chosen: Int[np.ndarray, " state"]
    values: Int[np.ndarray, " state"]
    second: Bool[np.ndarray, " state"]
    in_distribution: Bool[np.ndarray, " state"]
    n_values: int


def bridge_position(dataset: Dataset) -> int:
    """Return the number of the first position at which the bridge is known."""
    return list(dataset.positions).index(first_known_position("e2", dataset.positions))


def choose_bridges(source: ExampleSource) -> Bridges:
    """Choose the states in which the bridge is first known.

    Raises:
      NotApplicable: the task has no chains, no bridge follows from several facts, or the
        dictionaries do not read the position.
    """
    dataset, places = source.run.dataset, source.split.places
    need_chains(dataset)
    concepts = {one.name: one for one in choose_concepts(dataset, places)}
    pos = bridge_position(dataset)
    found = concepts.get(f"e2@{dataset.positions[pos]}")
    if found is None or not source.where[pos]:
        raise NotApplicable(
            f"the dictionaries read no states at position {dataset.positions[pos]!r}, or no "
            "bridge there belongs to several facts"
        )
    role = dataset.truth["role1"][places.rows[places.row[found.chosen]]]
    in_distribution = np.asarray(role == ROLES.index("I"))
    return Bridges(found.chosen, found.values, found.second, in_distribution, found.n_values)
