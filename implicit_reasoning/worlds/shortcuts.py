"""Shortcuts: what can be answered from training chains alone, without composing two facts.

A model that answers held-out chains need not compose: completing rows of a table does as well. Hold
every accuracy on test chains against these. No rule here ever looks at an atomic fact.

A prompt is split as (prefix, last relation): (e1, r1) and r2 for two hops. All ties go to the
answer with the smallest token, so that a prediction never depends on the order of the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from implicit_reasoning.worlds.chains import expand
from implicit_reasoning.worlds.dataset import Dataset, prefix_keys, world_of
from implicit_reasoning.worlds.world import NONE, ROLES

Rows = Int[np.ndarray, "row"]


def modal_given_last(dataset: Dataset, rows: Rows) -> Rows:
    """The most frequent answer among the training chains with the same last relation.

    Args:
      dataset: a task of chains.
      rows: [row], rows of chains (not of atomic facts) to answer.

    Returns:
      [row], the predicted tokens. A relation that no training chain ends in gets the answer most
      frequent over all.
    """
    train = _training_chains(dataset)
    last, everything = _last(dataset), np.zeros(len(dataset), np.int64)
    overall = _modal(dataset, everything, train, rows, fallback=np.zeros(len(rows), np.int32))
    return _modal(dataset, last, train, rows, fallback=overall)


def modal_given_first_and_last(dataset: Dataset, rows: Rows) -> Rows:
    """The most frequent answer among the training chains with the same e1 and last relation.

    Arguments and result as `modal_given_last`, which answers where no training chain has the pair.
    """
    pair = dataset.tokens[:, 0].astype(np.int64) * dataset.n_vocab + _last(dataset)
    fallback = modal_given_last(dataset, rows)
    return _modal(dataset, pair, _training_chains(dataset), rows, fallback)


def row_completion(dataset: Dataset, rows: Rows) -> Rows:
    """Complete the table [prefix, last relation] from rows that agree with the one in question.

    To answer (prefix, r): every training prefix that gives the same answer at one last relation at
    least, and another answer at none, votes for its own answer at r, with as many votes as there
    are agreements. Prefixes that lead to the same entity agree everywhere, hence the rule's success
    - but it uses no fact, and has no notion of the entity between.

    Arguments and result as `modal_given_last`, which answers where nobody votes.
    """
    table = _answer_table(dataset)
    asked, inverse = np.unique(table.prefix[rows], return_inverse=True)
    pairs = _agreeing_prefixes(table, asked)
    pairs = pairs.only(~_disagree(table, pairs))

    # Each question meets the peers of its prefix; `pairs` is sorted by prefix.
    first, end = (np.searchsorted(pairs.prefix, asked, side) for side in ("left", "right"))
    question, pair = expand(first[inverse], (end - first)[inverse])
    answer = table.answer[pairs.peer[pair], table.last[rows[question]]]
    votes = answer >= 0
    question, winner = _elect(question[votes], answer[votes], pairs.weight[pair[votes]])
    prediction = modal_given_last(dataset, rows)
    prediction[question] = winner
    return prediction


RULES: dict[str, Callable[[Dataset, Rows], Rows]] = {
    "modal_r2": modal_given_last,
    "modal_e1_r2": modal_given_first_and_last,
    "row_completion": row_completion,
}
"""Rules by name (r2 stands for the last relation, whatever the number of hops)."""


def shortcuts(dataset: Dataset) -> dict[str, dict[str, float]]:
    """Accuracy of every rule on the probes of every test split: `{rule: {split: 0 to 1}}`.

    A split without chains to ask is left out. For single predictions call the rules themselves.
    """
    asked = {split: _test_chains(dataset, split) for split in dataset.splits}
    asked = {split: rows for split, rows in asked.items() if len(rows)}
    if not asked:
        return {name: {} for name in RULES}
    rows = np.concatenate(list(asked.values()))
    ends = np.cumsum([len(part) for part in asked.values()])[:-1]
    table = {}
    for name, rule in RULES.items():
        correct = np.split(rule(dataset, rows) == dataset.truth["answer"][rows], ends)
        table[name] = {split: float(c.mean()) for split, c in zip(asked, correct, strict=True)}
    return table


def coverage(dataset: Dataset) -> float:
    """Share of all chains of `I` facts that are trained on; about phi / ((1 - ood) * degree)."""
    world = world_of(dataset)
    facts = world.facts
    inside = facts.role == ROLES.index("I")
    continuations: np.ndarray = np.ones(world.n_entities)
    for _ in range(dataset.hops):  # chains that start at each entity, one hop longer each time
        through = continuations[facts.tail[inside]]
        continuations = np.bincount(facts.head[inside], through, world.n_entities)
    return len(_training_chains(dataset)) / max(1.0, float(continuations.sum()))


def distinct_states(dataset: Dataset) -> dict[str, int]:
    """Number of distinct prefixes over all rows, by the prompt's position: `{"e1": .., "r1": ..}`.

    In a causal model a state depends on nothing else, so this is the n of any claim about states.
    """
    keys, position = prefix_keys(dataset.tokens, dataset.n_vocab), dataset.truth["position"]
    names = ["e1", *(f"r{hop + 1}" for hop in range(position.max()))]
    return {
        name: len(np.unique(keys[position >= place, place])) for place, name in enumerate(names)
    }


class _AnswerTable(NamedTuple):
    """The training chains as a table of answers, and every row's place in it."""

    answer: Int[np.ndarray, "prefix last"]  # -1 where no training chain is
    train: Int[np.ndarray, "chain"]  # rows of the training chains
    prefix: Int[np.ndarray, "row"]  # of all rows; -1 for rows that are no chains
    last: Int[np.ndarray, "row"]


class _Pairs(NamedTuple):
    """Prefixes and their peers, sorted by prefix, with the number of agreements."""

    prefix: Int[np.ndarray, "pair"]
    peer: Int[np.ndarray, "pair"]
    weight: Int[np.ndarray, "pair"]

    def only(self, keep: np.ndarray) -> _Pairs:
        return _Pairs(*(column[keep] for column in self))


def _answer_table(dataset: Dataset) -> _AnswerTable:
    train = _training_chains(dataset)
    chain = _is_chain(dataset)
    keys = prefix_keys(dataset.tokens[:, : _hops(dataset)], dataset.n_vocab)[:, -1]
    prefix = np.full(len(dataset), NONE)
    prefix[chain] = np.unique(keys[chain], return_inverse=True)[1]
    last = np.full(len(dataset), NONE)
    last[chain] = np.unique(_last(dataset)[chain], return_inverse=True)[1]
    answer = np.full((prefix.max() + 1, last.max() + 1), NONE, np.int32)
    answer[prefix[train], last[train]] = dataset.truth["answer"][train]
    return _AnswerTable(answer, train, prefix, last)


def _agreeing_prefixes(table: _AnswerTable, asked: np.ndarray) -> _Pairs:
    """Pairs (asked prefix, training prefix) with an equal answer at one last relation or more."""
    n_prefix, n_last = table.answer.shape
    prefix, last = table.prefix[table.train], table.last[table.train]
    # Chains that agree are neighbours once sorted by (answer, last): a join, never prefix x prefix.
    cell = table.answer[prefix, last].astype(np.int64) * n_last + last
    order = np.argsort(cell, kind="stable")
    cell, prefix = cell[order], prefix[order]
    wanted = np.flatnonzero(np.isin(prefix, asked))
    first, end = (np.searchsorted(cell, cell[wanted], side) for side in ("left", "right"))
    mine, other = expand(first, end - first)
    both = prefix[wanted[mine]] * n_prefix + prefix[other]
    both, weight = np.unique(both, return_counts=True)
    return _Pairs(both // n_prefix, both % n_prefix, weight)


def _disagree(table: _AnswerTable, pairs: _Pairs) -> np.ndarray:
    """bool [pair]: the two prefixes answer differently at some last relation."""
    prefix = table.prefix[table.train]
    chains = table.train[np.argsort(prefix, kind="stable")]
    count = np.bincount(prefix, minlength=len(table.answer))
    start = np.cumsum(count) - count
    # Go through the few chains of the peer, not through all relations.
    pair, item = expand(start[pairs.peer], count[pairs.peer])
    last = table.last[chains[item]]
    mine, theirs = table.answer[pairs.prefix[pair], last], table.answer[pairs.peer[pair], last]
    conflict = (mine >= 0) & (mine != theirs)
    return np.bincount(pair[conflict], minlength=len(pairs.prefix)) > 0


def _elect(group: np.ndarray, answer: np.ndarray, votes: np.ndarray) -> tuple:
    """The answer with most votes in every group (ties: the smallest): (groups, winners)."""
    if not len(group):
        return group, answer
    width = int(answer.max()) + 1
    ballots, inverse = np.unique(group.astype(np.int64) * width + answer, return_inverse=True)
    total = np.bincount(inverse, votes)
    group, answer = ballots // width, ballots % width
    best_first = np.lexsort((answer, -total, group))
    groups, first = np.unique(group[best_first], return_index=True)
    return groups, answer[best_first[first]]


def _modal(
    dataset: Dataset, key: np.ndarray, train: np.ndarray, rows: np.ndarray, fallback: np.ndarray
) -> np.ndarray:
    """The modal answer of the training rows with the same key; `fallback` where there are none."""
    groups, winners = _elect(key[train], dataset.truth["answer"][train], np.ones(len(train)))
    if not len(groups):
        return fallback
    place = np.minimum(np.searchsorted(groups, key[rows]), len(groups) - 1)
    found = groups[place] == key[rows]
    return np.where(found, winners[place], fallback).astype(np.int32)


def _hops(dataset: Dataset) -> int:
    return int(dataset.truth["position"].max())


def _is_chain(dataset: Dataset) -> np.ndarray:
    return dataset.truth["position"] == _hops(dataset)


def _last(dataset: Dataset) -> np.ndarray:
    return dataset.tokens[:, _hops(dataset)]


def _training_chains(dataset: Dataset) -> np.ndarray:
    return np.flatnonzero(_is_chain(dataset)[: dataset.n_train])


def _test_chains(dataset: Dataset, split: str) -> np.ndarray:
    rows = dataset.probes(split)
    return rows[(rows >= dataset.n_train) & _is_chain(dataset)[rows]]
