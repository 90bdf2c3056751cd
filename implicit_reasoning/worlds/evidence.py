"""Evidence: how many training chains support the bridge of a chain."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Int

from implicit_reasoning.worlds.dataset import Dataset
from implicit_reasoning.worlds.oracle import Clusters, clusters_of_prefixes
from implicit_reasoning.worlds.shortcuts import RULES
from implicit_reasoning.worlds.votes import AnswerTable, answer_numbers, answer_table
from implicit_reasoning.worlds.world import NONE

JUDGED = {"row_completion_right": "row_completion", "oracle_right": "cluster_oracle"}
"""Truth columns that say whether a shortcut is right, with the name of the shortcut."""


def with_evidence(dataset: Dataset) -> Dataset:
    """Add truth columns about the evidence from training chains to a dataset.

    The columns are int32 [row], with -1 for rows that are not chains:

    - `evidence1`: the number of training chains that have the prefix of the row and are shared. A
      training chain is shared if a training chain with a different prefix has the same bridge and
      the same last relation. This number is the k-evidence of the coverage principle (arXiv
      2505.20278).
    - `peers`: the number of training prefixes that have the same bridge as the prefix of the row.
      The prefix of the row is not counted.
    - `row_completion_right` and `oracle_right`: 1 if the shortcut `row_completion` or
      `cluster_oracle` answers the row correctly, 0 if not. For a training row, the shortcuts also
      use the row itself.

    Args:
      dataset: a dataset of chains.
    """
    table = answer_table(dataset)
    chain = np.flatnonzero(table.prefix >= 0)
    clusters = clusters_of_prefixes(dataset, table)
    columns = {
        "evidence1": evidence1(table, clusters)[table.prefix],
        "peers": peers(clusters)[table.prefix],
    }
    answers = answer_numbers(dataset)[chain]
    for name, rule in JUDGED.items():
        columns[name] = np.full(len(dataset), NONE)
        columns[name][chain] = RULES[rule].predict(dataset, chain) == answers
    found = {
        name: np.where(table.prefix >= 0, column, NONE).astype(np.int32)
        for name, column in columns.items()
    }
    return dataclasses.replace(dataset, truth=dataset.truth | found)


def evidence1(table: AnswerTable, clusters: Clusters) -> Int[np.ndarray, " prefix"]:
    """Count the shared training chains of every prefix, int [prefix].

    A training chain is shared if a training chain with a different prefix has the same bridge and
    the same last relation.
    """
    prefix, last = table.prefix[table.train], table.last[table.train]
    is_shared = clusters.n_chains[clusters.of[prefix], last] > 1
    return np.bincount(prefix[is_shared], minlength=len(table.answer))


def peers(clusters: Clusters) -> Int[np.ndarray, " prefix"]:
    """Count, for every prefix, the training prefixes with the same bridge.

    The prefix itself is not counted.
    """
    return clusters.n_prefixes[clusters.of] - clusters.is_trained
