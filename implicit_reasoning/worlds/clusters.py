"""Clusters of dependent rows, which are the independent units of every confidence interval.

Chains with the same bridge entity are dependent: their first facts lead to the bridge, their second
facts start at the bridge, and a model that composes has one representation of the bridge. In a
two-hop chain, the first fact and the second fact each determine the bridge, so the bridge (e2)
defines the cluster. The rules are:

1. The cluster of a chain is e2, also for more than two hops. With more hops, a fact of a later hop
occurs in several clusters. `clusterings` also returns the clusters by the later bridges.
2. The cluster of an atomic triple or a comparison is its first fact (`fact1`).
3. A row without a fact, such as a sum or a sequence, is its own cluster.

All datasets, including those of old runs, have the truth columns that the rules need.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from implicit_reasoning.worlds.dataset import Dataset, columns

Rows = Int[np.ndarray, " row"]
_CHAINS = {"fact2", "e2", "r2"}  # columns that all tasks of chains have


def clusters_of(dataset: Dataset, rows: Rows) -> Int[np.ndarray, " row"]:
    """Return the cluster of each row as a non-negative integer.

    The cluster is the bridge e2 for a chain, the first fact for an atomic triple or a comparison,
    and the row itself if the row has no fact.

    Args:
      dataset: the dataset.
      rows: row numbers.
    """
    found, fact = rows.astype(np.int64), dataset.truth.get("fact1")
    if fact is None:
        return found
    # Rows, facts and bridges have disjoint ranges of cluster numbers.
    found = np.where(fact[rows] >= 0, len(dataset) + fact[rows], found)
    if not dataset.truth.keys() >= _CHAINS:
        return found
    first_bridge = len(dataset) + int(fact.max(initial=0)) + 1
    return np.where(dataset.bridge[rows] >= 0, first_bridge + dataset.bridge[rows], found)


def clusterings(dataset: Dataset, rows: Rows) -> list[Int[np.ndarray, " row"]]:
    """Return all clusterings of the rows of a split.

    Each clustering gives a confidence interval. Reports show the widest interval. Chains have one
    clustering for each bridge (e2, e3, ...). Rows with facts that are not chains have one
    clustering for each fact (fact1, fact2, ...). If the rows have no facts, each row is its own
    cluster.

    Args:
      dataset: the dataset.
      rows: row numbers of one split.

    Returns:
      A list of int [row]. Rows with the same number are in the same cluster.
    """
    truth, hops = dataset.truth, dataset.hops
    if truth.keys() >= _CHAINS and (truth[f"fact{hops}"][rows] >= 0).all():
        return [bridge[rows] for bridge in columns(truth, "e", start=2)[: hops - 1]]
    facts = [fact[rows] for fact in columns(truth, "fact")]
    return [fact for fact in facts if (fact >= 0).all()] or [clusters_of(dataset, rows)]
