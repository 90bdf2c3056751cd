"""Choose chains to steer towards another bridge, and unrelated chains for side effects.

A case is a training chain with bridge b and last relations r2, ..., and a new bridge b' that has a
fact with r2. The chain is steered towards b', so its answer should become the answer of (b', r2,
...). Directions are fitted to chains whose first facts differ from those of the cases.

A case also has an unrelated chain, to measure side effects. The vector of the case is added at the
same place. The vector is unrelated to this chain: its bridge is neither b nor b', and b' has no
fact with its r2. Its answer should therefore not change. Two other choices would be wrong. The
prompt (e1, r1) of a single fact has the same state as the chain, and its right answer changes with
the bridge. The chain of the case with a relation that b' lacks has no right answer without b.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from implicit_reasoning.analysis.instrument import NotApplicable
from implicit_reasoning.analysis.states import chain_splits
from implicit_reasoning.analysis.variables.counterfactuals import (
    follow_relations,
    held_out_probes,
    round_robin,
)
from implicit_reasoning.worlds import ROLES, Dataset
from implicit_reasoning.worlds.dataset import columns, world_of

GROUPS = ("relation in training", "relation held out")
"""Groups of cases: whether a training chain uses the fact (new bridge, r2) at the second hop.

The facts of the second group are taught as single facts.
"""

_MAX_CASES = 128  # maximum number of cases per group
_TRIES = 64  # number of rows that are tried for each new bridge and relation
_SEED = 0


class SteeringCases(NamedTuple):
    """Chains to steer, and unrelated chains.

    Attributes:
      row: the dataset row of each case.
      new: the new bridge.
      expected: the right answer for the new bridge.
      wrong: a third bridge, for a null control, which has no fact with the r2 of the unrelated
        chain, and another answer or no answer in the chain of the case; -1 if there is none.
      unrelated: the dataset row of the unrelated chain; -1 if there is none.
      group: the group of each case, as an index into `GROUPS`.
    """

    row: Int[np.ndarray, " case"]
    new: Int[np.ndarray, " case"]
    expected: Int[np.ndarray, " case"]
    wrong: Int[np.ndarray, " case"]
    unrelated: Int[np.ndarray, " case"]
    group: Int[np.ndarray, " case"]


def choose_steering_cases(dataset: Dataset, fitted: Int[np.ndarray, " row"]) -> SteeringCases:
    """Choose cases for as many facts (new bridge, r2) as possible.

    All relations of a new bridge take part. New bridges alternate, so each has about the same
    number of cases.

    Args:
      dataset: a dataset of a chain task.
      fitted: the rows of the training chains to which directions are fitted.

    Raises:
      NotApplicable: the task is not a chain task, or there are no cases.
    """
    world, truth, random = world_of(dataset), dataset.truth, np.random.default_rng(_SEED)
    splits = [name for name in chain_splits(dataset) if dataset.rows(name)[0] < dataset.n_train]
    pool, _ = held_out_probes(dataset, splits, len(dataset), truth["fact1"][fitted])
    pool = random.permutation(pool)
    known = np.unique(truth["e2"][fitted])
    facts = np.flatnonzero(np.isin(world.facts.head, known))
    facts = random.permutation(facts)
    in_training = dataset.exposure[facts, 1] > 0
    single = np.isin(world.facts.role[facts], [ROLES.index(letter) for letter in "IORC"])
    parts = []
    for group, chosen in enumerate((facts[in_training], facts[~in_training & single])):
        ordered = round_robin(chosen, world.facts.head[chosen])
        parts.append(_cases(dataset, pool, ordered, known, group, random))
    found = SteeringCases(*map(np.concatenate, zip(*parts, strict=True)))
    if not len(found.row):
        raise NotApplicable("no chain of this dataset can be steered towards another bridge")
    return found


def _cases(
    dataset: Dataset,
    pool: np.ndarray,
    facts: np.ndarray,
    known: np.ndarray,
    group: int,
    random: np.random.Generator,
) -> SteeringCases:
    """Return at most `_MAX_CASES` cases, at most one for each fact (new bridge, r2)."""
    world, truth = world_of(dataset), dataset.truth
    relations = columns(truth, "r")
    found: list[tuple[int, ...]] = []
    for fact in facts:
        new, relation = world.facts.head[fact], world.facts.relation[fact]
        rows = pool[(relations[1][pool] == relation) & (truth["e2"][pool] != new)]
        rows = random.permutation(rows)[:_TRIES]
        after = np.full(len(rows), world.facts.tail[fact])
        expected = follow_relations(world, [column[rows] for column in relations], after, 2)
        fits = np.flatnonzero((expected >= 0) & (expected != truth["answer"][rows]))
        if not len(fits):
            continue
        row = rows[fits[0]]
        other = _unrelated(dataset, pool, int(row), int(new), random)
        third = _wrong(dataset, known, int(row), int(new), int(expected[fits[0]]), other, random)
        found.append((row, new, expected[fits[0]], third, other, group))
        if len(found) == _MAX_CASES:
            break
    return SteeringCases(*np.array(found, np.int64).reshape(-1, 6).T)


def _unrelated(
    dataset: Dataset, pool: np.ndarray, row: int, new: int, random: np.random.Generator
) -> int:
    truth = dataset.truth
    lacks = world_of(dataset).tail[new, truth["r2"][pool]] < 0
    other = (truth["e2"][pool] != new) & (truth["e2"][pool] != truth["e2"][row])
    fits = pool[lacks & other]
    return int(fits[random.integers(len(fits))]) if len(fits) else -1


def _wrong(
    dataset: Dataset,
    known: np.ndarray,
    row: int,
    new: int,
    expected: int,
    unrelated: int,
    random: np.random.Generator,
) -> int:
    world, truth = world_of(dataset), dataset.truth
    if unrelated < 0:
        return -1
    leads = follow_relations(world, [c[[row] * len(known)] for c in columns(truth, "r")], known, 1)
    fits = (known != new) & (known != truth["e2"][row]) & (leads != expected)
    tails = world.tail[:, truth["r2"][row]]
    fits &= tails[known] != tails[new]
    fits &= known != truth["e2"][unrelated]
    fits &= world.tail[known, truth["r2"][unrelated]] < 0
    chosen = known[fits]
    return int(chosen[random.integers(len(chosen))]) if len(chosen) else -1
