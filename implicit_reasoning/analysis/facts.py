"""Choose chains with distinct first facts, and assign states to cross-validation folds.

A state depends only on its prefix, the tokens up to and including its position. A world of 100
entities with 10 facts each therefore has 100 distinct states at position e1 and 1,000 at position
r1. More queries do not add distinct states. Instruments use one chain for each first fact, count
equal prefixes once, and assign rows with equal prefixes to the same fold.
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
      rows: int [row], indices of dataset rows. The prompts are full chains, such as (e1, r1, r2).
      groups: names of the groups of rows, in the order of `GROUPS`. The role of the first fact
        determines the group of a row. Claims are about the first group.
      group: int [row], the group of each row, as an index into `groups`.
    """

    rows: Int[np.ndarray, " row"]
    groups: tuple[str, ...]
    group: Int[np.ndarray, " row"]


def fact_rows(dataset: Dataset, most: int) -> FactRows:
    """Choose one random chain for each fact that occurs as the first fact of a chain.

    If there are more than `most` first facts, bridges (e2) are drawn at random. The first facts
    that lead to a drawn bridge are kept, and all remaining first facts are dropped. Each drawn
    bridge therefore keeps all its first facts, which are the examples for training a probe.

    Args:
      dataset: a dataset of a chain task.
      most: maximum number of facts. More facts are returned only if more than `most` facts lead to
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
    """Return whether each row's value is the training target of the atomic prompt (e1, r1).

    Args:
      dataset: a dataset of a chain task.
      rows: indices of dataset rows. The head and relation of the first fact of a row are e1 and r1.
      values: the entity to compare with the training target, for each row.
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
    """Return whether the prefix of each row at each position is also the prefix of a training row.

    The prefix at a position consists of the tokens up to and including the position.
    """
    # Compute the keys of all rows at once: keys from different calls are not comparable.
    keys = state_keys(dataset, np.arange(len(dataset)))
    return np.stack([np.isin(line[rows], line[: dataset.n_train]) for line in keys])


def first_known_position(variable: str, positions: Sequence[str]) -> str:
    """Return the first position whose prefix determines a variable.

    The prefix of a position consists of the tokens up to and including the position. For e2, the
    returned position is r1 if e1 precedes r1. For `answer`, it is the last position.
    """
    if variable in positions:
        return variable
    variable = "e2" if variable == "decoy" else variable  # the decoy depends on the first fact
    if not variable.startswith("e"):  # such as `answer`
        return positions[-1]
    needed = ["e1", *(f"r{hop}" for hop in range(1, int(variable[1:])))]
    return max(needed, key=list(positions).index)


def first_occurrences(keys: Int[np.ndarray, "*dim row"]) -> Bool[np.ndarray, "*dim row"]:
    """Return a mask that is true where a number occurs for the first time along the last axis."""
    first = np.zeros(keys.shape, bool)
    lines, there = keys.reshape(-1, keys.shape[-1]), first.reshape(-1, keys.shape[-1])
    for line, found in zip(lines, there, strict=True):
        found[np.unique(line, return_index=True)[1]] = True
    return first


def assign_folds(keys: Int[np.ndarray, " row"], n_folds: int) -> Int[np.ndarray, " row"]:
    """Assign rows to folds at random. Rows with equal keys are in the same fold.

    Each fold has about the same number of distinct keys.
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
    """Assign states to folds, separately for each layer and position. Equal states share a fold.

    At layer 0, a state is the embedding of one token, so rows with equal tokens have equal states.
    From layer 1 on, rows with equal prefixes have equal states.

    Args:
      tokens: the tokens of the prompts.
      prefixes: a number that identifies the prefix of each row at each position, from `state_keys`.
      n_layers: number of layers, including layer 0.
      n_folds: number of folds.
      together: a number for each row, such as e1. From layer 1 on, rows with equal numbers share a
        fold. The numbers are ignored at a position where rows with different numbers have equal
        prefixes. For example, prompts that begin with relations have such positions.
    """
    folds = np.empty((n_layers, *prefixes.shape), np.int64)
    for pos, (token, prefix) in enumerate(zip(tokens, prefixes, strict=True)):
        deeper = assign_folds(prefix if together is None else together, n_folds)
        if together is not None and not determines(prefix, together):
            deeper = assign_folds(prefix, n_folds)
        folds[:, pos] = deeper
        folds[0, pos] = assign_folds(token, n_folds)
    return folds
