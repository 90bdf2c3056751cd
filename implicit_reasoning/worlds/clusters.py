"""Which rows of a dataset repeat each other: the unit of every interval.

Chains through one bridge share more than the question: the second facts are those of the bridge,
the first facts are those that lead to it, and a model that composes has one code for all of them.
Both facts of a chain nest in its bridge, so the bridge (e2) is the cluster. The rule, row by row:

1. chains, which have a bridge: e2, also where there are more than two hops (later facts then cross
   the clusters; `clusterings` has the other bridges as well);
2. other rows with a fact (`fact1`), such as atomic triples and comparisons: that fact;
3. all others, such as sums and sequences: each row is a cluster.

Every dataset has the columns for this, those of old runs as well.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from implicit_reasoning.worlds.dataset import Dataset, columns

Rows = Int[np.ndarray, " row"]
_CHAINS = {"fact2", "e2", "r2"}  # columns of tasks of chains


def clusters_of(dataset: Dataset, rows: Rows) -> Int[np.ndarray, " row"]:
    """The cluster of each row, a number that is not negative; see the module for the rule."""
    found, fact = rows.astype(np.int64), dataset.truth.get("fact1")
    if fact is None:
        return found
    # Numbers of facts come after those of rows, and those of bridges after both.
    found = np.where(fact[rows] >= 0, len(dataset) + fact[rows], found)
    if not dataset.truth.keys() >= _CHAINS:
        return found
    first_bridge = len(dataset) + int(fact.max(initial=0)) + 1
    return np.where(dataset.bridge[rows] >= 0, first_bridge + dataset.bridge[rows], found)


def clusterings(dataset: Dataset, rows: Rows) -> list[Int[np.ndarray, " row"]]:
    """All ways to cluster the rows of a split; the widest interval of them is the one to show.

    Chains: by each of their bridges (e2, e3, ...). Other rows with facts: by each of their facts.
    """
    truth, hops = dataset.truth, dataset.hops
    if truth.keys() >= _CHAINS and (truth[f"fact{hops}"][rows] >= 0).all():
        return [bridge[rows] for bridge in columns(truth, "e", start=2)[: hops - 1]]
    facts = [fact[rows] for fact in columns(truth, "fact")]
    return [fact for fact in facts if (fact >= 0).all()] or [clusters_of(dataset, rows)]
