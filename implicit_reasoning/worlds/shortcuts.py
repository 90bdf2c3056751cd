"""Shortcuts: baseline rules that answer test rows from training rows without the tested reasoning.

A model that answers held-out chains does not necessarily compose facts. It may instead complete a
table of answers (`row_completion`). Compare every accuracy on test chains with the accuracies of
these rules. No rule uses an atomic fact. `cluster_oracle` uses more information than a model can
have (see the module `oracle`).

The rules read the truth of a row, not its tokens. They therefore apply to every token format. For a
chain, they use the prefix and the last relation, which are (e1, r1) and r2 for two hops. An answer
of several tokens is represented by one number. If several answers have the most votes, a rule
predicts the smallest number, so predictions do not depend on the order of the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from implicit_reasoning.worlds.chains import Chains, expand, training_roles
from implicit_reasoning.worlds.dataset import Dataset, columns, prefix_keys, world_of
from implicit_reasoning.worlds.oracle import cluster_oracle
from implicit_reasoning.worlds.votes import (
    AnswerTable,
    Rows,
    answer_numbers,
    answer_table,
    elect,
    is_longest,
    last_relation,
    modal,
    modal_given_last,
    modal_overall,
    pair_numbers,
    training_rows,
)
from implicit_reasoning.worlds.world import NONE, ROLES


def modal_given_relations(dataset: Dataset, rows: Rows) -> Rows:
    """Predict the most frequent answer of the training chains with the same r1 and last relation.

    The arguments and the result are those of `modal_given_last`. If no training chain has the same
    r1 and last relation, the prediction is that of `modal_given_last`.
    """
    pair = pair_numbers(dataset.truth["r1"], last_relation(dataset))
    return modal(dataset, pair, rows, modal_given_last(dataset, rows))


def modal_given_first_and_last(dataset: Dataset, rows: Rows) -> Rows:
    """Predict the most frequent answer of the training chains with the same e1 and last relation.

    The arguments and the result are those of `modal_given_last`. If no training chain has the same
    e1 and last relation, the prediction is that of `modal_given_last`.
    """
    pair = pair_numbers(dataset.truth["e1"], last_relation(dataset))
    return modal(dataset, pair, rows, modal_given_last(dataset, rows))


def row_completion(dataset: Dataset, rows: Rows) -> Rows:
    """Complete the table of answers [prefix, last relation] from prefixes with the same answers.

    To answer (prefix, r), the rule compares the prefix with every prefix of a training chain. A
    training prefix votes if both prefixes have the same answer for at least one last relation, and
    different answers for no last relation. The vote is the answer of the training prefix for r. Its
    weight is the number of last relations with the same answer. Prefixes that lead to the same
    bridge entity have equal answers for all last relations, which explains the success of the rule.
    The rule uses no atomic fact and does not represent the bridge entity.

    The arguments and the result are those of `modal_given_last`. If no training prefix votes, the
    prediction is that of `modal_given_last`.
    """
    table = answer_table(dataset)
    asked, inverse = np.unique(table.prefix[rows], return_inverse=True)
    pairs = _agreeing_prefixes(table, asked)
    pairs = pairs.only(~_disagree(table, pairs))

    # Join each question with the peers of its prefix; `pairs` is sorted by prefix.
    first, end = (np.searchsorted(pairs.prefix, asked, side) for side in ("left", "right"))
    question, pair = expand(first[inverse], (end - first)[inverse])
    answer = table.answer[pairs.peer[pair], table.last[rows[question]]]
    votes = answer >= 0
    question, winner = elect(question[votes], answer[votes], pairs.weight[pair[votes]])
    prediction = modal_given_last(dataset, rows)
    prediction[question] = winner
    return prediction


def modal_given_attribute(dataset: Dataset, rows: Rows) -> Rows:
    """Predict the most frequent label among the training comparisons of the same attribute.

    The arguments and the result are those of `modal_given_last`, for a task of comparisons.
    """
    return modal(dataset, dataset.truth["attribute"], rows, modal_overall(dataset, rows))


def win_rate(dataset: Dataset, rows: Rows) -> Rows:
    """Predict comparisons from the mean result of each entity in training comparisons.

    The score of an entity for an attribute is the mean of +1 (larger), 0 (equal) and -1 (smaller)
    over the training comparisons of the entity. Two scores count as equal if they differ by less
    than the fraction of training comparisons whose label is "equal". If values are spread evenly,
    this threshold is half the difference between the scores of adjacent values. If one of the two
    entities is in no training comparison, the prediction is that of `modal_given_attribute`. The
    arguments and the result are those of `modal_given_last`.
    """
    truth, train = dataset.truth, training_rows(dataset)
    first = pair_numbers(truth["attribute"], truth["entity1"], like=truth["entity2"])
    second = pair_numbers(truth["attribute"], truth["entity2"], like=truth["entity1"])
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

    The arguments and the result are those of `modal_given_last`, for a task of sums. If there is no
    such training row, the prediction is the most frequent training answer.
    """
    a, b = dataset.truth["a"], dataset.truth["b"]
    size = int(max(a.max(initial=0), b.max(initial=0))) + 1
    train = training_rows(dataset)
    answer = np.full((size, size), NONE, np.int64)
    answer[b[train], a[train]] = answer_numbers(dataset)[train]
    found = answer[a[rows], b[rows]]
    return np.where(found >= 0, found, modal_overall(dataset, rows))


class Rule(NamedTuple):
    """A shortcut rule.

    Attributes:
      predict: function of a dataset and row numbers that returns the predicted answers.
      needs: names of the truth columns that the rule requires.
    """

    predict: Callable[[Dataset, Rows], Rows]
    needs: tuple[str, ...]


RULES = {
    "modal_r2": Rule(modal_given_last, ("e1", "r2")),
    "modal_e1_r2": Rule(modal_given_first_and_last, ("e1", "r2")),
    "modal_r1_r2": Rule(modal_given_relations, ("e1", "r2")),
    "row_completion": Rule(row_completion, ("e1", "r2")),
    "cluster_oracle": Rule(cluster_oracle, ("e1", "r2")),
    "modal_attribute": Rule(modal_given_attribute, ("attribute", "label")),
    "win_rate": Rule(win_rate, ("attribute", "label", "entity1", "entity2")),
    "commuted": Rule(commuted, ("a", "b")),
}
"""Rules by name; r2 in a name stands for the last relation, for any number of hops."""


def shortcuts(dataset: Dataset) -> dict[str, dict[str, float]]:
    """Return the accuracy of every rule on the probes of every test split.

    Rules that do not apply to the task are omitted. A split is omitted if all its probes are atomic
    facts or training rows. To get the predictions for single rows, call `RULES[name].predict`.

    Returns:
      `{rule: {split: accuracy}}`, with accuracies from 0 to 1.
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

    Args:
      dataset: the dataset.
      splits: names of the splits.

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
    """Return the fraction of in-distribution chains that are in training; None without chains.

    A chain is in distribution if the role of every fact is one of `training_roles`. With k hops,
    the fraction is about phi / ((1 - ood_fraction) * out_degree) ** (k - 1). Training chains that
    are not in distribution, such as chains of cold facts, are not counted.
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
    trained = Chains(world, np.column_stack(columns(dataset.truth, "fact"))[training_rows(dataset)])
    usual = trained.allows(*map(training_roles, range(dataset.hops)))
    return int(usual.sum()) / max(1.0, float(continuations.sum()))


def distinct_states(dataset: Dataset) -> dict[str, int]:
    """Return the number of distinct prefixes at each position: `{"e1": .., "r1": ..}`.

    In a causal model, a hidden state depends only on the prefix. The number of distinct prefixes is
    therefore the sample size of any statement about states. Rows with shorter prompts count at the
    first positions. The names are the names of the positions in the longest prompts.
    """
    keys, position = prefix_keys(dataset.tokens, dataset.n_vocab), dataset.truth["position"]
    return {
        name: len(np.unique(keys[position >= place, place]))
        for place, name in enumerate(dataset.positions)
    }


class _Pairs(NamedTuple):
    """Pairs of a prefix to answer and a training prefix, its peer; sorted by the former.

    `weight` is the number of last relations for which the two prefixes have the same answer.
    """

    prefix: Int[np.ndarray, " pair"]
    peer: Int[np.ndarray, " pair"]
    weight: Int[np.ndarray, " pair"]

    def only(self, keep: np.ndarray) -> _Pairs:
        return _Pairs(*(column[keep] for column in self))


def _agreeing_prefixes(table: AnswerTable, asked: np.ndarray) -> _Pairs:
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


def _disagree(table: AnswerTable, pairs: _Pairs) -> np.ndarray:
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


def scored_probes(dataset: Dataset, split: str) -> Rows:
    """Return the probes of a split that rules answer.

    Probes that are atomic facts or training rows are left out.
    """
    rows = dataset.probes(split)
    return rows[(rows >= dataset.n_train) & is_longest(dataset)[rows]]
