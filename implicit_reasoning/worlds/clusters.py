"""Clusters of dependent rows, which are the independent units of every confidence interval.

Chains through the same bridge entity are dependent: their second facts start at the bridge, their
first facts lead to it, and a model that composes has one representation for all of them. Both facts
of a chain are nested in its bridge, so the bridge (e2) defines the cluster. The rule, row by row:

1. Chains: the cluster is e2, also for more than two hops. Later facts then cross the clusters;
`clusterings` returns the clusters of the other bridges as well.
2. Other rows with a fact (`fact1`), such as atomic triples and comparisons: the cluster is that
fact.
3. All other rows, such as sums and sequences: each row is its own cluster.

All datasets have the required columns, including those of old runs.
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
    # Numbers of rows come first, then numbers of facts, then numbers of bridges, so that they
    # differ.
    found = np.where(fact[rows] >= 0, len(dataset) + fact[rows], found)
    if not dataset.truth.keys() >= _CHAINS:
        return found
    first_bridge = len(dataset) + int(fact.max(initial=0)) + 1
    return np.where(dataset.bridge[rows] >= 0, first_bridge + dataset.bridge[rows], found)


def clusterings(dataset: Dataset, rows: Rows) -> list[Int[np.ndarray, " row"]]:
    """Return all ways to cluster the rows of a split; reports show the widest of their intervals.

    Chains are clustered by each of their bridges (e2, e3, ...), other rows by each of their facts.
    """
    truth, hops = dataset.truth, dataset.hops
    if truth.keys() >= _CHAINS and (truth[f"fact{hops}"][rows] >= 0).all():
        return [bridge[rows] for bridge in columns(truth, "e", start=2)[: hops - 1]]
    facts = [fact[rows] for fact in columns(truth, "fact")]
    return [fact for fact in facts if (fact >= 0).all()] or [clusters_of(dataset, rows)]
