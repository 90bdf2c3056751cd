"""Choose facts that occur as the first fact of some chains and as the last fact of others."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from implicit_reasoning.analysis.instrument import NotApplicable
from implicit_reasoning.analysis.states import chain_splits
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.dataset import world_of

HOPS = ("first hop", "last hop")
HALVES = 2
EACH = 2
"""Number of chains of a fact, for each hop and half."""

_SEED = 0


class FactChains(NamedTuple):
    """Facts, with chains that begin with the fact and chains that end with the fact.

    Attributes:
      facts: int [fact], the numbers of the facts.
      rows: int [fact, hop, half, chain], rows of the dataset. Chains of the first hop begin with
        the fact, and chains of the last hop end with it. All chains of a hop have different other
        facts. A missing chain is replaced by the first chain of the fact and hop.
      there: bool [fact, hop, half, chain], false for a missing chain.
      bridges: int [hop, fact], the bridge of the chains of each hop, which is the tail of the fact
        in the first hop, and its head in the last hop.
    """

    facts: Int[np.ndarray, " fact"]
    rows: Int[np.ndarray, "fact hop half chain"]
    there: Bool[np.ndarray, "fact hop half chain"]
    bridges: Int[np.ndarray, "hop fact"]


def choose_facts(dataset: Dataset, most: int) -> FactChains:
    """Choose facts with at least two chains for each hop, and their chains.

    Training chains are preferred, and so are facts with enough training chains for both halves. As
    far as possible, the facts have different heads and tails.

    Args:
      dataset: a dataset of a chain task.
      most: maximum number of facts.

    Raises:
      NotApplicable: the task is not a chain task, or no fact has two chains for each hop.
    """
    splits, truth = chain_splits(dataset), dataset.truth
    world, random = world_of(dataset), np.random.default_rng(_SEED)
    rows = random.permutation(np.concatenate([dataset.rows(split) for split in splits]))
    rows = rows[np.argsort(rows >= dataset.n_train, kind="stable")]
    first, last = truth["fact1"][rows], truth[f"fact{dataset.hops}"][rows]
    rows, first, last = (part[first != last] for part in (rows, first, last))
    chains = [_chains(rows, of, other) for of, other in ((first, last), (last, first))]
    enough = [fact for fact in chains[0] if fact in chains[1]]
    if not enough:
        raise NotApplicable(
            "this instrument needs facts that begin two chains and end two chains; there is no "
            "such fact"
        )
    head, tail = world.facts.head, world.facts.tail
    candidates = random.permutation(np.sort(enough))
    missing = np.array(
        [sum(_missing(of[fact], dataset.n_train) for of in chains) for fact in candidates.tolist()]
    )
    facts = _spread(candidates, missing, head, tail, most)
    shape = (len(facts), len(HOPS), HALVES * EACH)
    rows_of, is_there = np.zeros(shape, np.int64), np.zeros(shape, bool)
    for number, fact in enumerate(facts.tolist()):
        for hop, of_hop in enumerate(chains):
            own = of_hop[fact][: HALVES * EACH]
            rows_of[number, hop] = own[0]
            rows_of[number, hop, : len(own)] = own
            is_there[number, hop, : len(own)] = True
    # Alternate between the halves, so that each half has a chain.
    by_half = (len(facts), len(HOPS), EACH, HALVES)
    chosen, there = (part.reshape(by_half).swapaxes(2, 3) for part in (rows_of, is_there))
    return FactChains(facts, chosen, there, np.stack([tail[facts], head[facts]]))


def _chains(
    rows: Int[np.ndarray, " row"], fact: Int[np.ndarray, " row"], other: Int[np.ndarray, " row"]
) -> dict[int, list[int]]:
    """Return the rows of each fact that has two rows with different other facts."""
    found: dict[int, dict[int, int]] = {}
    for row, of, with_other in zip(rows.tolist(), fact.tolist(), other.tolist(), strict=True):
        found.setdefault(of, {}).setdefault(with_other, row)
    return {of: list(some.values()) for of, some in found.items() if len(some) >= HALVES}


def _missing(rows: list[int], n_train: int) -> int:
    """Return how many chains of a fact and hop are missing, or are not training chains."""
    n_chains = HALVES * EACH
    absent = n_chains - len(rows[:n_chains])
    tested = sum(row >= n_train for row in rows[:n_chains])
    # With one chain in a half, the neuron of the other fact has the same effect in this half.
    return n_chains * absent + tested


def _spread(
    facts: Int[np.ndarray, " fact"],
    missing: Int[np.ndarray, " fact"],
    head: Int[np.ndarray, "any"],
    tail: Int[np.ndarray, "any"],
    most: int,
) -> Int[np.ndarray, " chosen"]:
    """Choose facts one by one, with as many chains and as different entities as possible.

    Args:
      facts: the facts in random order.
      missing: the cost of the missing chains of each fact; see `_missing`.
      head: the head of every fact of the world.
      tail: the tail of every fact of the world.
      most: maximum number of facts.
    """
    heads, tails = head[facts], tail[facts]
    uses = np.zeros((2, max(head.max(), tail.max()) + 1), np.int64)
    left, chosen = np.ones(len(facts), bool), []
    for _ in range(min(most, len(facts))):
        often = uses[0, heads] + uses[1, tails]
        cost = np.where(left, often + missing, np.inf)
        best = int(cost.argmin())
        left[best] = False
        chosen.append(best)
        uses[0, heads[best]] += 1
        uses[1, tails[best]] += 1
    return facts[chosen]
