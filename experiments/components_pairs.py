"""The pairs of prompts of `components.py`: one group for chains, and pairs of modular addition."""

from __future__ import annotations

import numpy as np

from implicit_reasoning.analysis.components.attribution import Attribution
from implicit_reasoning.analysis.patching.pairs import PromptPairs, bridge_pairs
from implicit_reasoning.worlds import Dataset

_SEED = 0
_MAX_PAIRS = 48  # of each group


class BridgeAttribution(Attribution):
    """Instrument `attribution` with one group of pairs, whose first facts have other bridges."""

    name = "bridge_attribution"

    def __init__(self) -> None:
        """Set the function that makes the pairs."""
        super().__init__(pairs=other_bridge_pairs)


class AdditionAttribution(Attribution):
    """Instrument `attribution` with pairs of modular addition."""

    name = "addition_attribution"

    def __init__(self) -> None:
        """Set the function that makes the pairs."""
        super().__init__(pairs=addition_pairs)


def other_bridge_pairs(dataset: Dataset) -> PromptPairs:
    """Make the pairs of `bridge_pairs` whose prompts have different bridges, in training chains.

    Other groups would take most of the time of the measurement, and no question needs them.
    """
    found = bridge_pairs(dataset)
    keep = np.flatnonzero(np.asarray(found.group) == 0)
    return PromptPairs(
        clean=np.asarray(found.clean)[keep],
        corrupt=np.asarray(found.corrupt)[keep],
        answer=np.asarray(found.answer)[keep],
        corrupt_answer=np.asarray(found.corrupt_answer)[keep],
        positions=found.positions,
        groups=found.groups[:1],
        clusters=np.asarray(found.clusters)[keep],
    )


def addition_pairs(dataset: Dataset) -> PromptPairs:
    """Make pairs (a, b) and (a', b), whose answers differ because a' is another number.

    The groups are the splits of the clean prompts. Pairs whose clean prompts have the same answer
    form a cluster. The corrupt prompt can be of either split.
    """
    random, modulus = np.random.default_rng(_SEED), dataset.n_vocab - 1
    splits = tuple(name for name in dataset.splits if len(dataset.rows(name)))
    chosen = [random.permutation(dataset.rows(name))[:_MAX_PAIRS] for name in splits]
    rows = np.concatenate(chosen)
    a, b = dataset.truth["a"][rows], dataset.truth["b"][rows]
    other = (a + random.integers(1, modulus, len(rows))) % modulus
    last = np.full(len(rows), modulus)
    return PromptPairs(
        clean=np.stack([a, b, last], axis=1),
        corrupt=np.stack([other, b, last], axis=1),
        answer=(a + b) % modulus,
        corrupt_answer=(other + b) % modulus,
        positions=dataset.positions,
        groups=splits,
        group=np.repeat(np.arange(len(splits)), [len(part) for part in chosen]),
        clusters=(a + b) % modulus,
    )
