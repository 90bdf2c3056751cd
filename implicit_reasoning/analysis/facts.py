"""Choose one chain for each first fact, and assign cross-validation folds that hold out states.

A state depends on its prefix only. A world of 100 entities with 10 facts each has 100 distinct
states at position e1 and 1,000 at position r1, regardless of the number of queries. Instruments
therefore use one chain for each first fact, count equal prefixes once, and hold out all rows with
the same prefix together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from implicit_reasoning.analysis.states import determines, need_chains, state_keys
from implicit_reasoning.worlds import ROLES, Dataset

GROUPS = {
    "I": "id",
    "R": "restricted",
    "H": "held_out",
    "C": "cold",
    "S": "conflict",
    "E": "identity",
    "O": "ood",
}
"""The group of facts with each role. Claims are about the first group that has facts."""


class FactRows(NamedTuple):
    """Rows of a dataset with distinct first facts.

    Attributes:
      rows: int [row], rows of the dataset. The prompt of each row has all hops of a chain.
      groups: names of the groups that have a row, in the order of `GROUPS`. Claims are about the
        first group.
      group: int [row], the index in `groups` of each row's group.
    """

    rows: Int[np.ndarray, " row"]
    groups: tuple[str, ...]
    group: Int[np.ndarray, " row"]


def fact_rows(dataset: Dataset, most: int) -> FactRows:
    """Choose a random chain for each fact that is the first hop of some chain.

    If there are more than `most` facts, bridges (e2) are drawn at random, and all facts that lead
    to a drawn bridge are kept. Each drawn bridge then has as many facts as before to train a probe.

    Args:
      dataset: a dataset of a chain task.
      most: maximum number of facts. The maximum is exceeded only if more than `most` facts lead to
        the first drawn bridge.

    Raises:
      NotApplicable: the task is not a chain task.
    """
    need_chains(dataset)
    truth, random = dataset.truth, np.random.default_rng(0)
    chains = random.permutation(np.flatnonzero(truth[f"fact{dataset.hops}"] >= 0))
    rows = chains[np.unique(truth["fact1"][chains], return_index=True)[1]]
    if len(rows) > most:
        bridges, size = np.unique(truth["e2"][rows], return_counts=True)
        order = random.permutation(len(bridges))
        kept = bridges[order[: max(1, np.count_nonzero(np.cumsum(size[order]) <= most))]]
        rows = rows[np.isin(truth["e2"][rows], kept)]
    rows = random.permutation(rows)  # else the first row of each e1 would have its first relation
    letters = np.array(ROLES)[truth["role1"][rows]]
    there = [letter for letter in GROUPS if (letters == letter).any()]
    group = np.array([there.index(letter) for letter in letters], np.int64)
    return FactRows(rows, tuple(GROUPS[letter] for letter in there), group)


def is_taught_atomic(
    dataset: Dataset, rows: Int[np.ndarray, " row"], values: Int[np.ndarray, " row"]
) -> Bool[np.ndarray, " row"]:
    """Return for each row whether training teaches `values` as the answer to the prompt (e1, r1).

    Args:
      dataset: a dataset of a chain task.
      rows: rows of the dataset. The prompt (e1, r1) of a row is its first fact's head and relation.
      values: one entity for each row.
    """
    truth = dataset.truth
    fact1, fact2 = (truth[name][: dataset.n_train] for name in ("fact1", "fact2"))
    alone = np.flatnonzero((fact1 >= 0) & (fact2 < 0))  # identity rows have no fact
    answer = np.full(max(truth["fact1"].max() + 1, 1), -1, np.int64)
    answer[truth["fact1"][alone]] = truth["answer"][alone]
    found: np.ndarray = answer[truth["fact1"][rows]] == values
    return found


def is_training_prefix(
    dataset: Dataset, rows: Int[np.ndarray, " row"]
) -> Bool[np.ndarray, "pos row"]:
    """Return, for each position, whether each row's prefix is also the prefix of a training row."""
    # Compute the keys of all rows at once: keys from different calls are not comparable.
    keys = state_keys(dataset, np.arange(len(dataset)))
    return np.stack([np.isin(line[rows], line[: dataset.n_train]) for line in keys])


def first_known_position(variable: str, positions: Sequence[str]) -> str:
    """Return the first position whose prefix determines a variable.

    For e2, this position is r1 if e1 precedes r1. For `answer`, it is the last position.
    """
    if variable in positions:
        return variable
    variable = "e2" if variable == "decoy" else variable  # the decoy depends on the first fact
    if not variable.startswith("e"):  # such as `answer`
        return positions[-1]
    needed = ["e1", *(f"r{hop}" for hop in range(1, int(variable[1:])))]
    return max(needed, key=list(positions).index)


def first_occurrences(keys: Int[np.ndarray, "*dim row"]) -> Bool[np.ndarray, "*dim row"]:
    """Return a mask of the first occurrence of each number along the last axis."""
    first = np.zeros(keys.shape, bool)
    lines, there = keys.reshape(-1, keys.shape[-1]), first.reshape(-1, keys.shape[-1])
    for line, found in zip(lines, there, strict=True):
        found[np.unique(line, return_index=True)[1]] = True
    return first


def assign_folds(keys: Int[np.ndarray, " row"], n_folds: int) -> Int[np.ndarray, " row"]:
    """Assign a fold to each row. Rows with equal keys are in the same fold.

    The distinct keys are distributed evenly over the folds, at random.
    """
    distinct, index = np.unique(keys, return_inverse=True)
    order = np.random.default_rng(0).permutation(len(distinct))
    folds: np.ndarray = (order % n_folds)[index]
    return folds


def state_folds(
    tokens: Int[np.ndarray, "pos row"],
    prefixes: Int[np.ndarray, "pos row"],
    n_layers: int,
    n_folds: int,
    together: Int[np.ndarray, " row"] | None = None,
) -> Int[np.ndarray, "layer pos row"]:
    """Assign a fold to each row at each layer and position. Equal states are in the same fold.

    From layer 1 on, states are treated as equal if their prefixes are equal. At layer 0, a state is
    the embedding of one token, so states are equal if their tokens are equal.

    Args:
      tokens: prompt tokens.
      prefixes: the number of each row's prefix at each position; see `state_keys`.
      n_layers: number of layers, including layer 0.
      n_folds: number of folds.
      together: a number for each row. From layer 1 on, rows with equal numbers share a fold. The
        numbers are ignored at a position where rows with different numbers have the same prefix.
        Prompts that begin with relations have such positions.
    """
    folds = np.empty((n_layers, *prefixes.shape), np.int64)
    for pos, (token, prefix) in enumerate(zip(tokens, prefixes, strict=True)):
        deeper = assign_folds(prefix if together is None else together, n_folds)
        if together is not None and not determines(prefix, together):
            deeper = assign_folds(prefix, n_folds)
        folds[:, pos] = deeper
        folds[0, pos] = assign_folds(token, n_folds)
    return folds
