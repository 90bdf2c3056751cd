"""The cluster oracle: an upper bound for rules that group prefixes by their training chains.

Rules such as row completion have to infer which prefixes lead to the same bridge. The oracle is
given the bridge of every prefix except the prefix to answer. Models do not have this information.
The oracle uses no atomic fact. If the oracle cannot answer a chain, the training chains do not
determine the answer.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from implicit_reasoning.worlds.chains import expand
from implicit_reasoning.worlds.dataset import Dataset, columns
from implicit_reasoning.worlds.votes import (
    AnswerTable,
    Rows,
    answer_table,
    elect,
    modal_given_last,
)
from implicit_reasoning.worlds.world import NONE

_CELLS = 2**22
"""Maximum number of cells of a table [chain, bridge] in memory."""


def cluster_oracle(dataset: Dataset, rows: Rows) -> Rows:
    """Predict from the bridge whose training chains agree best with those of the asked prefix.

    The asked prefix is the prefix of the row to answer. The *entry* of a bridge for a last relation
    is the most frequent answer of the bridge's training chains with this relation. The rule knows
    an entry if a prefix other than the asked prefix contributes to the entry. A bridge fits if no
    known entry contradicts a training chain of the asked prefix. The rule considers the bridges
    that fit and have a known entry for the asked relation. Among these bridges, those that agree
    with the most training chains of the asked prefix have one vote each, for their entry.

    The arguments and the result are those of `modal_given_last`. If no bridge votes, or if the
    asked prefix has no training chain, the prediction is that of `modal_given_last`.
    """
    table = answer_table(dataset)
    clusters = clusters_of_prefixes(dataset, table)
    prediction = modal_given_last(dataset, rows)
    is_trained = np.bincount(table.prefix[table.train], minlength=len(table.answer)) > 0
    asked = np.flatnonzero(is_trained[table.prefix[rows]])
    for search in (_agreeing, _fitting):
        # Bridges that merely do not contradict vote only where no bridge agrees.
        question, winner = search(table, clusters, rows[asked])
        prediction[asked[question]] = winner
        asked = np.delete(asked, question)
    return prediction


class Clusters(NamedTuple):
    """Training chains grouped by the bridge before the last hop.

    Attributes:
      of: the bridge of every prefix, an entity number.
      entry: the most frequent answer for each bridge and last relation; -1 if there is no such
        training chain.
      n_chains: the number of training chains for each bridge and last relation.
      n_prefixes: the number of prefixes in training that lead to each bridge.
      is_trained: whether each prefix has a training chain.
    """

    of: Int[np.ndarray, " prefix"]
    entry: Int[np.ndarray, "bridge last"]
    n_chains: Int[np.ndarray, "bridge last"]
    n_prefixes: Int[np.ndarray, " bridge"]
    is_trained: Bool[np.ndarray, " prefix"]

    def known_to(
        self,
        prefix: Int[np.ndarray, "..."],
        contributes: Bool[np.ndarray, "..."] | bool,
        bridge: Int[np.ndarray, "..."],
        last: Int[np.ndarray, "..."],
    ) -> Int[np.ndarray, "..."]:
        """Return the values of `entry` that remain known without the asked prefix.

        The arguments are broadcast against each other. The result is -1 if only the asked prefix
        contributes to the entry, or if there is no entry.

        Args:
          prefix: the asked prefix.
          contributes: whether the asked prefix is trained with the last relation.
          bridge: the bridge of the entry.
          last: the last relation of the entry.
        """
        alone = contributes & (self.of[prefix] == bridge) & (self.n_chains[bridge, last] == 1)
        return np.where(alone, NONE, self.entry[bridge, last])


def clusters_of_prefixes(dataset: Dataset, table: AnswerTable) -> Clusters:
    """Group the training chains of a dataset by their bridge.

    Args:
      dataset: a dataset of chains.
      table: the answer table of the dataset (see `answer_table`).
    """
    train, n_prefix, n_last = table.train, *table.answer.shape
    bridges = columns(dataset.truth, "e")[dataset.hops - 1].astype(np.int64)
    chain = np.flatnonzero(table.prefix >= 0)
    of = np.full(n_prefix, NONE, np.int64)
    of[table.prefix[chain]] = bridges[chain]
    n_bridges = int(of.max(initial=NONE)) + 1
    cell = bridges[train] * n_last + table.last[train]
    entry = np.full(n_bridges * n_last, NONE, np.int64)
    cells, winners = elect(
        cell, table.answer[table.prefix[train], table.last[train]], np.ones(len(train))
    )
    entry[cells] = winners
    is_trained = np.bincount(table.prefix[train], minlength=n_prefix) > 0
    return Clusters(
        of,
        entry.reshape(n_bridges, n_last),
        np.bincount(cell, minlength=n_bridges * n_last).reshape(n_bridges, n_last),
        np.bincount(of[is_trained], minlength=n_bridges),
        is_trained,
    )


def _agreeing(table: AnswerTable, clusters: Clusters, rows: Rows) -> tuple:
    """Return the questions with a vote of a bridge that agrees with a chain, and their winners."""
    asked, inverse = np.unique(table.prefix[rows], return_inverse=True)
    prefix, last, answer = _chains_of(table, asked)

    # Entries sorted by (answer, last relation): all bridges that agree with a chain are adjacent.
    bridge, at = np.nonzero(clusters.entry >= 0)
    _, number = np.unique(np.append(clusters.entry[bridge, at], answer), return_inverse=True)
    key = number * clusters.entry.shape[1] + np.append(at, last)
    key, wanted = key[: len(bridge)], key[len(bridge) :]
    order = np.argsort(key, kind="stable")
    first, end = (np.searchsorted(key[order], wanted, side) for side in ("left", "right"))
    chain, place = expand(first, end - first)
    found = bridge[order[place]]
    known = clusters.known_to(prefix[chain], True, found, last[chain]) >= 0
    both = prefix[chain[known]] * len(clusters.entry) + found[known]
    both, agreements = np.unique(both, return_counts=True)

    # Drop the pairs of a prefix and a bridge that some chain of the prefix contradicts.
    of_pair, found = both // len(clusters.entry), both % len(clusters.entry)
    start, count = _ranges(prefix, of_pair)
    pair, chain = expand(start, count)
    entry = clusters.known_to(of_pair[pair], True, found[pair], last[chain])
    wrong = np.bincount(pair[(entry >= 0) & (entry != answer[chain])], minlength=len(both)) > 0
    of_pair, found, agreements = of_pair[~wrong], found[~wrong], agreements[~wrong]

    start, count = _ranges(of_pair, asked)
    question, pair = expand(start[inverse], count[inverse])
    return _vote(table, clusters, rows, question, found[pair], agreements[pair])


def _fitting(table: AnswerTable, clusters: Clusters, rows: Rows) -> tuple:
    """Return the questions with a vote of a bridge that contradicts no chain, and their winners."""
    bridges = np.arange(len(clusters.entry))
    n_last = table.answer.shape[1]
    parts = []
    # Prefixes have at most one chain for each last relation, which bounds the size of the tables.
    order = np.argsort(table.prefix[rows], kind="stable")
    for some in np.array_split(order, 1 + len(rows) * n_last * len(bridges) // _CELLS):
        asked, inverse = np.unique(table.prefix[rows[some]], return_inverse=True)
        prefix, last, answer = (column[:, None] for column in _chains_of(table, asked))
        entry = clusters.known_to(prefix, True, bridges, last)
        wrong = (entry >= 0) & (entry != answer)
        start, _ = _ranges(prefix[:, 0], asked)
        fits = ~np.logical_or.reduceat(wrong, start) if len(asked) else wrong
        question, bridge = np.nonzero(fits[inverse])
        parts.append(np.stack([some[question], bridge]))
    question, bridge = np.concatenate(parts, axis=1)
    return _vote(table, clusters, rows, question, bridge, np.zeros(len(question), np.int64))


def _vote(
    table: AnswerTable,
    clusters: Clusters,
    rows: Rows,
    question: Int[np.ndarray, " candidate"],
    bridge: Int[np.ndarray, " candidate"],
    agreements: Int[np.ndarray, " candidate"],
) -> tuple:
    """Return the questions with a known entry, and the entry that wins; questions are sorted."""
    prefix, last = table.prefix[rows[question]], table.last[rows[question]]
    entry = clusters.known_to(prefix, table.answer[prefix, last] >= 0, bridge, last)
    known = entry >= 0
    question, entry, agreements = question[known], entry[known], agreements[known]
    most = np.zeros(len(rows), np.int64)
    np.maximum.at(most, question, agreements)
    best = agreements == most[question]
    return elect(question[best], entry[best], np.ones(int(best.sum())))


def _chains_of(
    table: AnswerTable, prefixes: Int[np.ndarray, " prefix"]
) -> tuple[Int[np.ndarray, " chain"], Int[np.ndarray, " chain"], Int[np.ndarray, " chain"]]:
    """Return prefix, last relation and answer of the chains of some prefixes, by prefix."""
    chains = table.train[np.isin(table.prefix[table.train], prefixes)]
    chains = chains[np.argsort(table.prefix[chains], kind="stable")]
    prefix, last = table.prefix[chains], table.last[chains]
    return prefix, last, table.answer[prefix, last]


def _ranges(
    ordered: Int[np.ndarray, " item"], wanted: Int[np.ndarray, " key"]
) -> tuple[Int[np.ndarray, " key"], Int[np.ndarray, " key"]]:
    """Return the start and the length of the range of each key in ordered items."""
    first, end = (np.searchsorted(ordered, wanted, side) for side in ("left", "right"))
    return first, end - first
