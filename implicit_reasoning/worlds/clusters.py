"""Clusters of dependent rows, which are the independent units of every confidence interval.

Chains with the same bridge entity are dependent: their first facts lead to the bridge, their second
facts start at the bridge, and a model that composes has one representation of the bridge. Each fact
of a two-hop chain determines the bridge, so the bridge (e2) defines the cluster. The rule is:

1. The cluster of a chain is e2, also for more than two hops. With more hops, a fact of a later hop
occurs in several clusters; `clusterings` also returns the clusters of the other bridges.
2. The cluster of another row with a fact (`fact1`), such as an atomic triple or a comparison, is
that fact.
3. Every row without a fact, such as a sum or a sequence, is its own cluster.

All datasets, including those of old runs, have the truth columns that the rule needs.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from implicit_reasoning.worlds.dataset import Dataset, columns

Rows = Int[np.ndarray, " row"]
_CHAINS = {"fact2", "e2", "r2"}  # columns that all tasks of chains have


def clusters_of(dataset: Dataset, rows: Rows) -> Int[np.ndarray, " row"]:
    """Return the cluster of each row as a non-negative number; see the module for the rule."""
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

    Each clustering gives an interval, and reports show the widest of these intervals.

    Chains have one clustering for each bridge (e2, e3, ...). Other rows have one clustering for
    each fact (fact1, fact2, ...). If the rows have no facts, each row is its own cluster.
    """
    truth, hops = dataset.truth, dataset.hops
    if truth.keys() >= _CHAINS and (truth[f"fact{hops}"][rows] >= 0).all():
        return [bridge[rows] for bridge in columns(truth, "e", start=2)[: hops - 1]]
    facts = [fact[rows] for fact in columns(truth, "fact")]
    return [fact for fact in facts if (fact >= 0).all()] or [clusters_of(dataset, rows)]
