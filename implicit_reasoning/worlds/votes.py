"""The training rows as a table of answers, and functions that count votes of training rows.

The rules in `shortcuts` use the table and the functions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from implicit_reasoning.worlds.dataset import Dataset, columns, prefix_keys
from implicit_reasoning.worlds.world import NONE

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


class AnswerTable(NamedTuple):
    """The answers of the training chains as a table [prefix, last relation].

    Prefixes and last relations are numbered from 0 in this table.

    Attributes:
      answer: the answer for each prefix and last relation; -1 if there is no training chain.
      train: the row numbers of the training chains in the dataset.
      prefix: the number of the prefix of each dataset row; -1 for rows that are not chains.
      last: the number of the last relation of each dataset row; -1 for rows that are not chains.
    """

    answer: Int[np.ndarray, "prefix last"]
    train: Int[np.ndarray, " chain"]
    prefix: Int[np.ndarray, " row"]
    last: Int[np.ndarray, " row"]


def answer_table(dataset: Dataset) -> AnswerTable:
    """Build the table of answers from the training chains of a dataset of chains."""
    train, chain = training_rows(dataset), is_longest(dataset)
    steps = np.column_stack([dataset.truth["e1"], *columns(dataset.truth, "r")[:-1]])
    keys = prefix_keys(steps[chain], int(steps.max(initial=0)) + 1)[:, -1]
    prefix = np.full(len(dataset), NONE)
    prefix[chain] = np.unique(keys, return_inverse=True)[1]
    last = np.full(len(dataset), NONE)
    last[chain] = np.unique(last_relation(dataset)[chain], return_inverse=True)[1]
    answer = np.full((prefix.max() + 1, last.max() + 1), NONE, np.int64)
    answer[prefix[train], last[train]] = answer_numbers(dataset)[train]
    return AnswerTable(answer, train, prefix, last)


def modal_given_last(dataset: Dataset, rows: Rows) -> Rows:
    """Predict the most frequent answer among the training chains with the same last relation.

    Args:
      dataset: a dataset of chains.
      rows: [row], numbers of the rows to answer; they must be chains, not atomic facts.

    Returns:
      [row], the predicted answers as numbers (see `answer_numbers`). If no training chain has the
      last relation, the prediction is the most frequent answer of all training chains.
    """
    return modal(dataset, last_relation(dataset), rows, modal_overall(dataset, rows))


def elect(group: np.ndarray, answer: np.ndarray, votes: np.ndarray) -> tuple:
    """Return the answer with the most votes in each group.

    If several answers have the most votes, the smallest answer is returned.

    Args:
      group: the group of each vote.
      answer: the answer of each vote.
      votes: the weight of each vote.

    Returns:
      The distinct groups in increasing order, and the answer of each group.
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


def modal(dataset: Dataset, key: np.ndarray, rows: np.ndarray, fallback: np.ndarray) -> np.ndarray:
    """Predict the most frequent answer of the training rows with the same key.

    Args:
      dataset: the dataset.
      key: a number for each dataset row. Rows with the same number are in the same group.
      rows: numbers of the rows to answer.
      fallback: predictions for rows whose key no training row has.
    """
    train = training_rows(dataset)
    groups, winners = elect(key[train], answer_numbers(dataset)[train], np.ones(len(train)))
    if not len(groups):
        return fallback
    place = np.minimum(np.searchsorted(groups, key[rows]), len(groups) - 1)
    found = groups[place] == key[rows]
    return np.where(found, winners[place], fallback)


def modal_overall(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """Predict the most frequent answer of all training rows; 0 if there are no training rows.

    All `rows` get the same prediction.
    """
    nothing = np.zeros(len(rows), np.int64)
    return modal(dataset, np.zeros(len(dataset), np.int64), rows, fallback=nothing)


def pair_numbers(one: np.ndarray, other: np.ndarray, like: np.ndarray | None = None) -> np.ndarray:
    """Number the pairs of values of two columns, so that equal pairs have equal numbers.

    Missing values (-1) count as 0.

    Args:
      one: first value of each pair.
      other: second value of each pair.
      like: a further column whose values may also be second values. `pair_numbers(one, other,
        like)` and `pair_numbers(one, like, other)` give equal pairs equal numbers.
    """
    largest = (
        other.max(initial=0) if like is None else max(other.max(initial=0), like.max(initial=0))
    )
    return np.maximum(one, 0).astype(np.int64) * (int(largest) + 1) + np.maximum(other, 0)


def is_longest(dataset: Dataset) -> np.ndarray:
    """Return which rows have the longest prompt: chains, comparisons or sums, not atomic facts."""
    return dataset.truth["position"] == dataset.truth["position"].max(initial=0)


def last_relation(dataset: Dataset) -> Rows:
    """Return the last relation of every row; -1 for atomic facts."""
    return columns(dataset.truth, "r")[-1]


def training_rows(dataset: Dataset) -> Rows:
    """Return the numbers of the training rows that are not atomic facts."""
    return np.flatnonzero(is_longest(dataset)[: dataset.n_train])
