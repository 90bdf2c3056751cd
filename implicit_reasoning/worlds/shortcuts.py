"""Shortcuts: baseline rules that answer test rows from training rows without the tested reasoning.

A model that answers held-out chains does not necessarily compose facts: it may complete a table of
answers (`row_completion`). Compare every accuracy on test chains with the accuracies of these
rules. No rule uses an atomic fact.

The rules read a row's truth, not its tokens, so they apply to every spelling. For a chain, they use
the prefix and the last relation: (e1, r1) and r2 for two hops. An answer is represented by one
number, also if the answer has several tokens. If answers have equally many votes, a rule predicts
the answer with the smallest number, so that predictions do not depend on the order of the rows.
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
    """Return a number that identifies the answer of each row, int64 [row].

    If every answer of the dataset is one token, the number is the token id.
    """
    answers = dataset.answers.astype(np.int64)
    number, bound = answers[:, 0], dataset.n_vocab
    for token in answers.T[1:]:
        if bound * (dataset.n_vocab + 1) >= 2**63:  # would overflow: renumber them in order
            number, bound = np.unique(number, return_inverse=True)[1], len(number)
        number = number * (dataset.n_vocab + 1) + token + 1  # -1 marks a shorter answer
        bound *= dataset.n_vocab + 1
    return number


def modal_given_last(dataset: Dataset, rows: Rows) -> Rows:
    """Predict the most frequent answer among the training chains with the same last relation.

    Args:
      dataset: a dataset of chains.
      rows: [row], numbers of the rows to answer; they must be chains, not atomic facts.

    Returns:
      [row], the predicted answers as numbers (see `answer_numbers`). If no training chain has the
      last relation, the prediction is the most frequent answer of all training chains.
    """
    return _modal(dataset, _last(dataset), rows, _modal_overall(dataset, rows))


def modal_given_first_and_last(dataset: Dataset, rows: Rows) -> Rows:
    """Predict the most frequent answer of the training chains with the same e1 and last relation.

    Arguments and result are those of `modal_given_last`. If no training chain has the same e1 and
    last relation, the prediction is that of `modal_given_last`.
    """
    pair = _pair(dataset.truth["e1"], _last(dataset))
    return _modal(dataset, pair, rows, modal_given_last(dataset, rows))


def row_completion(dataset: Dataset, rows: Rows) -> Rows:
    """Complete the table of answers [prefix, last relation] from prefixes with the same answers.

    To answer (prefix, r), the rule compares the prefix with every prefix of a training chain. A
    training prefix votes if both prefixes have the same answer for at least one last relation, and
    different answers for no last relation. The vote is the training prefix's answer for r, with the
    number of equal answers as its weight. Prefixes that lead to the same bridge entity have equal
    answers for all last relations, which explains the success of the rule. The rule uses no atomic
    fact and does not represent the bridge entity.

    Arguments and result are those of `modal_given_last`. If no training prefix votes, the
    prediction is that of `modal_given_last`.
    """
    table = _answer_table(dataset)
    asked, inverse = np.unique(table.prefix[rows], return_inverse=True)
    pairs = _agreeing_prefixes(table, asked)
    pairs = pairs.only(~_disagree(table, pairs))

    # Join each question with the peers of its prefix; `pairs` is sorted by prefix.
    first, end = (np.searchsorted(pairs.prefix, asked, side) for side in ("left", "right"))
    question, pair = expand(first[inverse], (end - first)[inverse])
    answer = table.answer[pairs.peer[pair], table.last[rows[question]]]
    votes = answer >= 0
    question, winner = _elect(question[votes], answer[votes], pairs.weight[pair[votes]])
    prediction = modal_given_last(dataset, rows)
    prediction[question] = winner
    return prediction


def modal_given_attribute(dataset: Dataset, rows: Rows) -> Rows:
    """Predict the most frequent label among the training comparisons of the same attribute.

    Arguments and result are those of `modal_given_last`, for a task of comparisons.
    """
    return _modal(dataset, dataset.truth["attribute"], rows, _modal_overall(dataset, rows))


def win_rate(dataset: Dataset, rows: Rows) -> Rows:
    """Predict comparisons from the mean result of each entity in training comparisons.

    An entity's score for an attribute is the mean of +1 (larger), 0 (equal) and -1 (smaller) over
    the training comparisons of the entity. Two scores count as equal if they differ by less than
    the fraction of training comparisons whose label is "equal". This is half the difference between
    the scores of adjacent values if values are spread evenly. If one of the two entities is in no
    training comparison, the prediction is that of `modal_given_attribute`. Arguments and result are
    those of `modal_given_last`.
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
    # Each attribute has its own label tokens, which are taken from the training rows.
    token = np.full((int(truth["attribute"].max()) + 1, 3), NONE, np.int64)
    token[truth["attribute"][train], truth["label"][train]] = truth["answer"][train]
    answer = token[truth["attribute"][rows], nearest + 1]
    known = (games[first[rows]] > 0) & (games[second[rows]] > 0) & (answer >= 0)
    return np.where(known, answer, modal_given_attribute(dataset, rows))


def commuted(dataset: Dataset, rows: Rows) -> Rows:
    """Predict the answer of the training row in which a and b are exchanged.

    Arguments and result are those of `modal_given_last`, for a task of sums. If there is no such
    training row, the prediction is the most frequent training answer.
    """
    a, b = dataset.truth["a"], dataset.truth["b"]
    size = int(max(a.max(initial=0), b.max(initial=0))) + 1
    train = _training_rows(dataset)
    answer = np.full((size, size), NONE, np.int64)
    answer[b[train], a[train]] = answer_numbers(dataset)[train]
    found = answer[a[rows], b[rows]]
    return np.where(found >= 0, found, _modal_overall(dataset, rows))


class Rule(NamedTuple):
    """A shortcut rule, and the truth columns that it requires."""

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
"""Rules by name; r2 in a name stands for the last relation, for any number of hops."""


def shortcuts(dataset: Dataset) -> dict[str, dict[str, float]]:
    """Return every rule's accuracy on the probes of every test split: `{rule: {split: 0 to 1}}`.

    The result contains only the rules that apply to the task, and is empty if no rule applies. A
    split is omitted if all its probes are atomic facts or training rows. To get the predictions for
    single rows, call `RULES[name].predict`.
    """
    return {
        name: {split: float(right.mean()) for split, right in by_split.items()}
        for name, by_split in shortcut_correctness(dataset, dataset.splits).items()
    }


def shortcut_correctness(
    dataset: Dataset, splits: Sequence[str]
) -> dict[str, dict[str, Bool[np.ndarray, " probe"]]]:
    """Return, for every rule and test split, which probes the rule answers correctly.

    Rules and splits are omitted as in `shortcuts`.

    Returns:
      `{rule: {split: bool [probe]}}`, for the rows `scored_probes(dataset, split)`.
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
    """Return the fraction of in-distribution chains that are in training; None for other tasks.

    A chain is in distribution if all its facts have roles that training chains may have
    (`training_roles`). With k hops, the fraction is about
    phi / ((1 - ood_fraction) * out_degree) ** (k - 1).
    """
    if "r2" not in dataset.truth:
        return None
    world = world_of(dataset)
    facts = world.facts
    continuations: np.ndarray = np.ones(world.n_entities)
    # Number of chains that start at each entity, by length.
    for hop in reversed(range(dataset.hops)):
        allowed = np.isin(facts.role, [ROLES.index(letter) for letter in training_roles(hop)])
        through = continuations[facts.tail[allowed]]
        continuations = np.bincount(facts.head[allowed], through, world.n_entities)
    return len(_training_rows(dataset)) / max(1.0, float(continuations.sum()))


def distinct_states(dataset: Dataset) -> dict[str, int]:
    """Return the number of distinct prefixes of all rows at each position: `{"e1": .., "r1": ..}`.

    In a causal model, a hidden state depends only on the prefix, so the number of distinct prefixes
    is the sample size of any statement about states. A row with a shorter prompt counts at the
    first positions, whatever the names of these positions.
    """
    keys, position = prefix_keys(dataset.tokens, dataset.n_vocab), dataset.truth["position"]
    return {
        name: len(np.unique(keys[position >= place, place]))
        for place, name in enumerate(dataset.positions)
    }


class _AnswerTable(NamedTuple):
    """A table of the answers of training chains, and the cell of every dataset row in the table."""

    answer: Int[np.ndarray, "prefix last"]  # -1 if there is no training chain
    train: Int[np.ndarray, " chain"]  # dataset rows of the training chains
    prefix: Int[np.ndarray, " row"]  # index of each dataset row's prefix; -1 if it is no chain
    last: Int[np.ndarray, " row"]  # index of each dataset row's last relation; -1 likewise


class _Pairs(NamedTuple):
    """Pairs of a prefix to answer and a training prefix, its peer; sorted by the former.

    `weight` is the number of last relations for which the two prefixes have the same answer.
    """

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
    """Return the pairs of prefixes with the same answer for at least one last relation."""
    n_prefix, n_last = table.answer.shape
    prefix, last = table.prefix[table.train], table.last[table.train]
    # After sorting by (answer, last), chains with the same answer and last relation are adjacent.
    # This join avoids a table of all pairs of prefixes.
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
    """Return which pairs of prefixes have different answers for some last relation, bool [pair]."""
    prefix = table.prefix[table.train]
    chains = table.train[np.argsort(prefix, kind="stable")]
    count = np.bincount(prefix, minlength=len(table.answer))
    start = np.cumsum(count) - count
    # Loop over the few chains of the peer instead of all relations.
    pair, item = expand(start[pairs.peer], count[pairs.peer])
    last = table.last[chains[item]]
    mine, theirs = table.answer[pairs.prefix[pair], last], table.answer[pairs.peer[pair], last]
    conflict = (mine >= 0) & (mine != theirs)
    return np.bincount(pair[conflict], minlength=len(pairs.prefix)) > 0


def _elect(group: np.ndarray, answer: np.ndarray, votes: np.ndarray) -> tuple:
    """Return the groups, and the answer with the most votes in each group.

    If several answers have the most votes, the smallest of them is returned.
    """
    if not len(group):
        return group, answer
    # Renumber in order, because the product of the original numbers may overflow.
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
    """Return the most frequent answer of the training rows with the same key, else `fallback`."""
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
    """Return one number for each pair of values of two columns; missing values (-1) count as 0.

    `like` is a second column with the same kind of values as `other`. It extends the range of
    values, so that `_pair(one, other, like)` and `_pair(one, like, other)` give equal pairs equal
    numbers.
    """
    largest = (
        other.max(initial=0) if like is None else max(other.max(initial=0), like.max(initial=0))
    )
    return np.maximum(one, 0).astype(np.int64) * (int(largest) + 1) + np.maximum(other, 0)


def _is_longest(dataset: Dataset) -> np.ndarray:
    """Return which rows have the longest prompt: chains, comparisons or sums, not atomic facts."""
    return dataset.truth["position"] == dataset.truth["position"].max(initial=0)


def _last(dataset: Dataset) -> Rows:
    return columns(dataset.truth, "r")[-1]


def _training_rows(dataset: Dataset) -> Rows:
    return np.flatnonzero(_is_longest(dataset)[: dataset.n_train])


def scored_probes(dataset: Dataset, split: str) -> Rows:
    """Return the probes of a split that rules answer: no atomic facts and no training rows."""
    rows = dataset.probes(split)
    return rows[(rows >= dataset.n_train) & _is_longest(dataset)[rows]]
