"""One chain for each fact: the distinct states that can be read, and how to hold some of them out.

Whatever the number of queries, a state depends on its prefix only: 100 states at e1 and 1,000 at r1
in a world of 100 entities with 10 facts each. So instruments look at one chain for each first fact,
count equal prefixes once, and hold out whole prefixes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from implicit_reasoning.analysis.states import need_chains, state_keys
from implicit_reasoning.worlds import ROLES, Dataset

GROUPS = {"I": "id", "R": "restricted", "H": "held_out", "O": "ood"}
"""What a group of facts is called, by the role of its facts; the first that exists leads."""


class FactRows(NamedTuple):
    """Rows of a dataset, each the only one with its first fact.

    Attributes:
      rows: int [row], whole chains.
      groups: names of the groups, of `GROUPS`; the first is the one that claims are about.
      group: int [row].
    """

    rows: Int[np.ndarray, " row"]
    groups: tuple[str, ...]
    group: Int[np.ndarray, " row"]


def fact_rows(dataset: Dataset, most: int, seed: int = 0) -> FactRows:
    """One chain, at random, for each fact that is a first hop somewhere.

    Where there are more than `most` facts, those of some bridges (e2) are left out and those of
    the others are all kept, so that a bridge still has enough facts for a probe to learn it.

    Raises:
      InputError: the task is not one of chains.
    """
    need_chains(dataset)
    truth, random = dataset.truth, np.random.default_rng(seed)
    chains = random.permutation(np.flatnonzero(truth[f"fact{dataset.hops}"] >= 0))
    rows = chains[np.unique(truth["fact1"][chains], return_index=True)[1]]
    if len(rows) > most:
        bridges, size = np.unique(truth["e2"][rows], return_counts=True)
        order = random.permutation(len(bridges))
        kept = bridges[order[: max(1, np.count_nonzero(np.cumsum(size[order]) <= most))]]
        rows = rows[np.isin(truth["e2"][rows], kept)]
    rows = random.permutation(rows)  # or the first of an e1 would always be its first relation's
    letters = np.array(ROLES)[truth["role1"][rows]]
    there = [letter for letter in GROUPS if (letters == letter).any()]
    group = np.array([there.index(letter) for letter in letters], np.int64)
    return FactRows(rows, tuple(GROUPS[letter] for letter in there), group)


def is_taught_atomic(
    dataset: Dataset, rows: Int[np.ndarray, " row"], values: Int[np.ndarray, " row"]
) -> Bool[np.ndarray, " row"]:
    """Whether training teaches `values` as the answer to the first fact's own prompt (e1, r1)."""
    truth = dataset.truth
    alone = np.flatnonzero(truth["fact2"][: dataset.n_train] < 0)
    answer = np.full(max(truth["fact1"].max() + 1, 1), -1, np.int64)
    answer[truth["fact1"][alone]] = truth["answer"][alone]
    found: np.ndarray = answer[truth["fact1"][rows]] == values
    return found


def is_training_prefix(
    dataset: Dataset, rows: Int[np.ndarray, " row"]
) -> Bool[np.ndarray, "pos row"]:
    """Whether each row's prefix, by position, is also one of a row that is trained on."""
    # One numbering for all rows: keys of different calls need not be comparable.
    keys = state_keys(dataset, np.arange(len(dataset)))
    return np.stack([np.isin(line[rows], line[: dataset.n_train]) for line in keys])


def first_known_position(variable: str, positions: Sequence[str]) -> str:
    """The first position whose prefix determines a variable: r1 for e2, where e1 is before it."""
    if variable in positions:
        return variable
    variable = "e2" if variable == "decoy" else variable  # where the first fact leads, as taught
    if not variable.startswith("e"):  # the answer and what else is known at the end only
        return positions[-1]
    needed = ["e1", *(f"r{hop}" for hop in range(1, int(variable[1:])))]
    return max(needed, key=list(positions).index)


def first_occurrences(keys: Int[np.ndarray, "*dim row"]) -> Bool[np.ndarray, "*dim row"]:
    """Where a number occurs for the first time in its line."""
    first = np.zeros(keys.shape, bool)
    lines, there = keys.reshape(-1, keys.shape[-1]), first.reshape(-1, keys.shape[-1])
    for line, found in zip(lines, there, strict=True):
        found[np.unique(line, return_index=True)[1]] = True
    return first


def assign_folds(
    keys: Int[np.ndarray, " row"], n_folds: int, seed: int = 0
) -> Int[np.ndarray, " row"]:
    """A fold for each row: equal keys share one, distinct keys are dealt out evenly at random."""
    distinct, index = np.unique(keys, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(distinct))
    folds: np.ndarray = (order % n_folds)[index]
    return folds


def state_folds(
    tokens: Int[np.ndarray, "pos row"],
    prefixes: Int[np.ndarray, "pos row"],
    n_layers: int,
    n_folds: int,
    together: Int[np.ndarray, " row"] | None = None,
) -> Int[np.ndarray, "layer pos row"]:
    """Folds by (layer, position) such that no state is in two of them.

    A state is a prefix, but at layer 0 it is the embedding of its own token: there folds are of
    tokens. Rows of one number in `together` stay in one fold, too, from layer 1 on; prefixes that
    rows of several numbers share (in prompts that begin with relations) stay together regardless.
    """
    folds = np.empty((n_layers, *prefixes.shape), np.int64)
    for pos, (token, prefix) in enumerate(zip(tokens, prefixes, strict=True)):
        deeper = assign_folds(prefix if together is None else together, n_folds)
        if together is not None and (_first_value(prefix, together) != together).any():
            deeper = assign_folds(prefix, n_folds)
        folds[:, pos] = deeper
        folds[0, pos] = assign_folds(token, n_folds)
    return folds


def _first_value(
    keys: Int[np.ndarray, " row"], values: Int[np.ndarray, " row"]
) -> Int[np.ndarray, " row"]:
    """For each row the value of the first row with its key."""
    _, first, index = np.unique(keys, return_index=True, return_inverse=True)
    found: np.ndarray = values[first][index]
    return found
