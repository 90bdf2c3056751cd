"""Shortcuts: what can be answered from training rows alone, without the reasoning in question.

A model that answers held-out chains need not compose: completing rows of a table does as well. Hold
every accuracy on test chains against these. No rule here ever looks at an atomic fact.

Rules read a row's truth, never its tokens, so that they hold for every spelling. Of a chain they
see (prefix, last relation): (e1, r1) and r2 for two hops. An answer is one number, also where it is
spelt in several tokens. All ties go to the smallest number, so that a prediction never depends on
the order of the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from implicit_reasoning.worlds.chains import expand, training_roles
from implicit_reasoning.worlds.dataset import Dataset, columns, prefix_keys, world_of
from implicit_reasoning.worlds.world import NONE, ROLES

Rows = Int[np.ndarray, " row"]


def answer_numbers(dataset: Dataset) -> Rows:
    """int64 [row]: a number for each row's whole answer, its token where it is a single one."""
    answers = dataset.answers.astype(np.int64)
    number, bound = answers[:, 0], dataset.n_vocab
    for token in answers.T[1:]:
        if bound * (dataset.n_vocab + 1) >= 2**63:  # would overflow: number them anew, in order
            number, bound = np.unique(number, return_inverse=True)[1], len(number)
        number = number * (dataset.n_vocab + 1) + token + 1  # -1: a shorter answer
        bound *= dataset.n_vocab + 1
    return number


def modal_given_last(dataset: Dataset, rows: Rows) -> Rows:
    """The most frequent answer among the training chains with the same last relation.

    Args:
      dataset: a task of chains.
      rows: [row], rows of chains (not of atomic facts) to answer.

    Returns:
      [row], the predicted answers as numbers (see `answer_numbers`). A relation that no training
      chain ends in gets the answer most frequent over all.
    """
    return _modal(dataset, _last(dataset), rows, _modal_overall(dataset, rows))


def modal_given_first_and_last(dataset: Dataset, rows: Rows) -> Rows:
    """The most frequent answer among the training chains with the same e1 and last relation.

    Arguments and result as `modal_given_last`, which answers where no training chain has the pair.
    """
    pair = _pair(dataset.truth["e1"], _last(dataset))
    return _modal(dataset, pair, rows, modal_given_last(dataset, rows))


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


def modal_given_attribute(dataset: Dataset, rows: Rows) -> Rows:
    """The most frequent label among the training comparisons of the same attribute.

    Arguments and result as `modal_given_last`, for a task of comparisons.
    """
    return _modal(dataset, dataset.truth["attribute"], rows, _modal_overall(dataset, rows))


def win_rate(dataset: Dataset, rows: Rows) -> Rows:
    """Compare how often either entity came out above others in training comparisons.

    An entity's score for an attribute is the mean of +1 (above), 0 (equal) and -1 (below) over its
    training comparisons. With values spread evenly, neighbouring ones differ in score by twice the
    share of equal pairs: scores nearer to each other than half of that count as equal. Where an
    entity was never compared, the answer is that of `modal_given_attribute`.
    """
    truth, train = dataset.truth, _training_rows(dataset)
    first = _pair(truth["attribute"], truth["entity1"])
    second = _pair(truth["attribute"], truth["entity2"], like=truth["entity1"])
    label = truth["label"][train] - 1
    size = int(max(first.max(), second.max())) + 1
    players = np.concatenate([first[train], second[train]])
    games = np.bincount(players, minlength=size)
    wins = np.bincount(players, np.concatenate([label, -label]), minlength=size)
    score = wins / np.maximum(games, 1)

    lead = score[first[rows]] - score[second[rows]]
    equal = float((label == 0).mean()) if len(label) else 0.0
    nearest = np.where(np.abs(lead) < equal, 0, np.sign(lead)).astype(np.int64)
    # A label is another token for every attribute: read which from the training rows.
    token = np.full((int(truth["attribute"].max()) + 1, 3), NONE, np.int64)
    token[truth["attribute"][train], truth["label"][train]] = truth["answer"][train]
    answer = token[truth["attribute"][rows], nearest + 1]
    known = (games[first[rows]] > 0) & (games[second[rows]] > 0) & (answer >= 0)
    return np.where(known, answer, modal_given_attribute(dataset, rows))


def commuted(dataset: Dataset, rows: Rows) -> Rows:
    """The answer of the training row with a and b exchanged.

    Arguments and result as `modal_given_last`, for a task of sums; where no such row was trained
    on, the answer most frequent in training.
    """
    a, b = dataset.truth["a"], dataset.truth["b"]
    size = int(max(a.max(initial=0), b.max(initial=0))) + 1
    train = _training_rows(dataset)
    answer = np.full((size, size), NONE, np.int64)
    answer[b[train], a[train]] = answer_numbers(dataset)[train]
    found = answer[a[rows], b[rows]]
    return np.where(found >= 0, found, _modal_overall(dataset, rows))


class Rule(NamedTuple):
    """A shortcut, and the truth columns without which it makes no sense."""

    predict: Callable[[Dataset, Rows], Rows]
    needs: tuple[str, ...]


RULES = {
    "modal_r2": Rule(modal_given_last, ("e1", "r2")),
    "modal_e1_r2": Rule(modal_given_first_and_last, ("e1", "r2")),
    "row_completion": Rule(row_completion, ("e1", "r2")),
    "modal_attribute": Rule(modal_given_attribute, ("attribute", "label")),
    "win_rate": Rule(win_rate, ("attribute", "label", "entity1", "entity2")),
    "commuted": Rule(commuted, ("a", "b")),
}
"""Rules by name (r2 stands for the last relation, whatever the number of hops)."""


def shortcuts(dataset: Dataset) -> dict[str, dict[str, float]]:
    """Accuracy of every rule on the probes of every test split: `{rule: {split: 0 to 1}}`.

    Only rules that make sense in the task are there; in some tasks that is none. A split without
    chains (or comparisons, ...) to ask is left out. For single predictions call the rules.
    """
    return {
        name: {split: float(right.mean()) for split, right in by_split.items()}
        for name, by_split in shortcut_correctness(dataset, dataset.splits).items()
    }


def shortcut_correctness(
    dataset: Dataset, splits: Sequence[str]
) -> dict[str, dict[str, Bool[np.ndarray, " probe"]]]:
    """Which probes of each of some test splits every rule answers correctly.

    Rules and splits are left out as by `shortcuts`.
    """
    rules = {name: rule for name, rule in RULES.items() if set(rule.needs) <= dataset.truth.keys()}
    asked = {split: scored_probes(dataset, split) for split in splits}
    asked = {split: rows for split, rows in asked.items() if len(rows)}
    if not asked:
        return {name: {} for name in rules}
    rows = np.concatenate(list(asked.values()))
    ends = np.cumsum([len(part) for part in asked.values()])[:-1]
    answers, found = answer_numbers(dataset)[rows], {}
    for name, rule in rules.items():
        right = np.split(rule.predict(dataset, rows) == answers, ends)
        found[name] = dict(zip(asked, right, strict=True))
    return found


def coverage(dataset: Dataset) -> float | None:
    """Share of all all-`I` chains that are trained on; about phi / ((1 - ood) * degree).

    None where the task is not one of chains.
    """
    if "r2" not in dataset.truth:
        return None
    world = world_of(dataset)
    facts = world.facts
    continuations: np.ndarray = np.ones(world.n_entities)
    for hop in reversed(range(dataset.hops)):  # chains that start at each entity, by their length
        allowed = np.isin(facts.role, [ROLES.index(letter) for letter in training_roles(hop)])
        through = continuations[facts.tail[allowed]]
        continuations = np.bincount(facts.head[allowed], through, world.n_entities)
    return len(_training_rows(dataset)) / max(1.0, float(continuations.sum()))


def distinct_states(dataset: Dataset) -> dict[str, int]:
    """Number of distinct prefixes over all rows, by the prompt's position: `{"e1": .., "r1": ..}`.

    In a causal model a state depends on nothing else, so this is the n of any claim about states. A
    row with a shorter prompt counts at the places it has, whatever its own tokens there are called.
    """
    keys, position = prefix_keys(dataset.tokens, dataset.n_vocab), dataset.truth["position"]
    return {
        name: len(np.unique(keys[position >= place, place]))
        for place, name in enumerate(dataset.positions)
    }


class _AnswerTable(NamedTuple):
    """The training chains as a table of answers, and every row's place in it."""

    answer: Int[np.ndarray, "prefix last"]  # -1 where no training chain is
    train: Int[np.ndarray, " chain"]  # rows of the training chains
    prefix: Int[np.ndarray, " row"]  # of all rows; -1 for rows that are no chains
    last: Int[np.ndarray, " row"]


class _Pairs(NamedTuple):
    """Prefixes and their peers, sorted by prefix, with the number of agreements."""

    prefix: Int[np.ndarray, " pair"]
    peer: Int[np.ndarray, " pair"]
    weight: Int[np.ndarray, " pair"]

    def only(self, keep: np.ndarray) -> _Pairs:
        return _Pairs(*(column[keep] for column in self))


def _answer_table(dataset: Dataset) -> _AnswerTable:
    train, chain = _training_rows(dataset), _is_longest(dataset)
    steps = np.column_stack([dataset.truth["e1"], *columns(dataset.truth, "r")[:-1]])
    keys = prefix_keys(steps[chain], int(steps.max(initial=0)) + 1)[:, -1]
    prefix = np.full(len(dataset), NONE)
    prefix[chain] = np.unique(keys, return_inverse=True)[1]
    last = np.full(len(dataset), NONE)
    last[chain] = np.unique(_last(dataset)[chain], return_inverse=True)[1]
    answer = np.full((prefix.max() + 1, last.max() + 1), NONE, np.int64)
    answer[prefix[train], last[train]] = answer_numbers(dataset)[train]
    return _AnswerTable(answer, train, prefix, last)


def _agreeing_prefixes(table: _AnswerTable, asked: np.ndarray) -> _Pairs:
    """Pairs (asked prefix, training prefix) with an equal answer at one last relation or more."""
    n_prefix, n_last = table.answer.shape
    prefix, last = table.prefix[table.train], table.last[table.train]
    # Chains that agree are neighbours once sorted by (answer, last): a join, never prefix x prefix.
    cell = table.answer[prefix, last] * n_last + last
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
    # Numbers anew, in order: the product of the numbers themselves may overflow.
    groups, group = np.unique(group, return_inverse=True)
    answers, answer = np.unique(answer, return_inverse=True)
    width = len(answers)
    ballots, inverse = np.unique(group.astype(np.int64) * width + answer, return_inverse=True)
    total = np.bincount(inverse, votes)
    group, answer = groups[ballots // width], answers[ballots % width]
    best_first = np.lexsort((answer, -total, group))
    groups, first = np.unique(group[best_first], return_index=True)
    return groups, answer[best_first[first]]


def _modal(dataset: Dataset, key: np.ndarray, rows: np.ndarray, fallback: np.ndarray) -> np.ndarray:
    """The modal answer of the training rows with the same key; `fallback` where there are none."""
    train = _training_rows(dataset)
    groups, winners = _elect(key[train], answer_numbers(dataset)[train], np.ones(len(train)))
    if not len(groups):
        return fallback
    place = np.minimum(np.searchsorted(groups, key[rows]), len(groups) - 1)
    found = groups[place] == key[rows]
    return np.where(found, winners[place], fallback)


def _modal_overall(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    nothing = np.zeros(len(rows), np.int64)
    return _modal(dataset, np.zeros(len(dataset), np.int64), rows, fallback=nothing)


def _pair(one: np.ndarray, other: np.ndarray, like: np.ndarray | None = None) -> np.ndarray:
    """A number for two columns, which for rows that lack them (-1) may be any from 0 on.

    `like` is a column of the same kind as `other`, for numbers that can be compared between them.
    """
    largest = (
        other.max(initial=0) if like is None else max(other.max(initial=0), like.max(initial=0))
    )
    return np.maximum(one, 0).astype(np.int64) * (int(largest) + 1) + np.maximum(other, 0)


def _is_longest(dataset: Dataset) -> np.ndarray:
    """Which rows are chains, comparisons, ..., rather than the atomic facts they are made of."""
    return dataset.truth["position"] == dataset.truth["position"].max(initial=0)


def _last(dataset: Dataset) -> Rows:
    return columns(dataset.truth, "r")[-1]


def _training_rows(dataset: Dataset) -> Rows:
    return np.flatnonzero(_is_longest(dataset)[: dataset.n_train])


def scored_probes(dataset: Dataset, split: str) -> Rows:
    """The probes of a test split that rules are asked: no atomic facts, nothing trained on."""
    rows = dataset.probes(split)
    return rows[(rows >= dataset.n_train) & _is_longest(dataset)[rows]]
