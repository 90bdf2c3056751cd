"""The pairs of prompts of `circuit_formation.py`, which differ in the one token to be carried."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from implicit_reasoning.analysis.patching.metrics import PairBatch
from implicit_reasoning.analysis.patching.pairs import PromptPairs, exchange_pairs
from implicit_reasoning.worlds import Dataset

_SEED = 0
_MAX_PAIRS = 150  # of each group
_GROUPS = ("train_ii", "test_ii", "test_c0", "test_oi")
"""The splits of chains that are asked, if the task has them. Circuits are found on the first."""

COLD = "test_c0"
"""The split of chains whose first fact is cold and has no evidence in training chains."""

_EARLIEST = 1
"""The start year of corrupt prompts, as in Hanna et al. 2023: no year is wrong because of it."""


def pairs_of(dataset: Dataset) -> PromptPairs:
    """Make the pairs of a task of `circuit_formation.py`.

    - Chains: another e1 in the corrupt prompt; the groups are some splits.
    - Repeated sequences: another token where the answer first stands.
    - Two names: the other name is repeated in the corrupt prompt.
    - Spans of years: an early start year in the corrupt prompt.
    """
    truth = dataset.truth
    if "r2" in truth:
        return _chains(dataset)
    if "period" in truth:
        return _repeated(dataset)
    if "duplicate_position" in truth:
        return _names(dataset)
    return _years(dataset)


def pairs_of_first_group(dataset: Dataset) -> PromptPairs:
    """Make the pairs of the first group only."""
    made = pairs_of(dataset)
    return _only(made, np.asarray(made.group) == 0, tuple(made.groups[:1]), made.group)


def year_difference(logits: jax.Array, pair: PairBatch) -> jax.Array:
    """Return the probability of all right years minus that of all wrong years, of 100 years.

    Source: Hanna et al. 2023, "How does GPT-2 compute greater-than?".
    """
    start, years = pair.clean[:, 1:2], jnp.arange(100)
    probability = jax.nn.softmax(logits)[:, : len(years)]
    return jnp.where(years > start, probability, -probability).sum(1)


def _chains(dataset: Dataset) -> PromptPairs:
    """Keep the pairs of the groups that the study asks for, in its order."""
    made = exchange_pairs("e1", dataset)
    groups = tuple(name for name in _GROUPS if name in made.groups)
    number = np.array([groups.index(name) if name in groups else -1 for name in made.groups])
    group = number[np.asarray(made.group)]
    return _only(made, group >= 0, groups, group)


def _only(
    made: PromptPairs, keep: np.ndarray, groups: tuple[str, ...], group: np.ndarray
) -> PromptPairs:
    """Return some of the pairs, with other groups."""
    names = ("clean", "corrupt", "answer", "corrupt_answer", "clusters")
    arrays = {name: np.asarray(getattr(made, name))[keep] for name in names}
    return dataclasses.replace(made, **arrays, groups=groups, group=group[keep])


def _repeated(dataset: Dataset) -> PromptPairs:
    """Replace the first copy of the answer in the longest prompts of the longest period."""
    truth, period = dataset.truth, dataset.truth["period"].max()
    last = truth["position"][truth["period"] == period].max()
    rows, group = _rows(dataset, (truth["period"] == period) & (truth["position"] == last))
    clean = np.asarray(dataset.tokens[rows][:, : last + 1])
    corrupt, answer = clean.copy(), truth["answer"][rows]
    place, random = last + 1 - period, np.random.default_rng(_SEED)
    assert (clean[:, place] == answer).all()
    other = np.array(
        [random.choice(np.setdiff1d(np.arange(dataset.n_vocab), prompt)) for prompt in clean]
    )
    corrupt[:, place] = other
    return _pairs(dataset, clean, corrupt, answer, other, group, answer)


def _names(dataset: Dataset) -> PromptPairs:
    """Repeat the other name, so that the answer is the name that was repeated before.

    Circuits have edges at positions, so the names stand at the same positions in all prompts: at
    the positions that most training prompts have.
    """
    places = ("source_position", "repeated_position", "duplicate_position")
    table = np.stack([dataset.truth[name] for name in places], axis=1)
    found, count = np.unique(table[dataset.split == 0], axis=0, return_counts=True)
    rows, group = _rows(dataset, (table == found[count.argmax()]).all(1))
    truth = {name: values[rows] for name, values in dataset.truth.items()}
    clean = np.asarray(dataset.tokens[rows][:, : truth["position"].max() + 1])
    corrupt = clean.copy()
    corrupt[np.arange(len(rows)), truth["duplicate_position"]] = truth["source_token"]
    answer, other = truth["source_token"], truth["repeated_token"]
    return _pairs(dataset, clean, corrupt, answer, other, group, answer)


def _years(dataset: Dataset) -> PromptPairs:
    """Begin the span of the corrupt prompt early."""
    start = dataset.truth["start"]
    rows, group = _rows(dataset, (start > 10) & (start < 90))
    clean = np.asarray(dataset.tokens[rows][:, :3])
    corrupt = clean.copy()
    corrupt[:, 1] = _EARLIEST
    end, early = dataset.truth["answer"][rows], np.full(len(rows), _EARLIEST + 1)
    return _pairs(dataset, clean, corrupt, end, early, group, start[rows])


def _rows(dataset: Dataset, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Choose random rows of every split, and return the split of each row."""
    random = np.random.default_rng(_SEED)
    chosen = [
        random.permutation(np.flatnonzero(allowed & (dataset.split == number)))[:_MAX_PAIRS]
        for number in range(len(dataset.splits))
    ]
    return np.concatenate(chosen), np.repeat(np.arange(len(chosen)), [len(c) for c in chosen])


def _pairs(
    dataset: Dataset,
    clean: np.ndarray,
    corrupt: np.ndarray,
    answer: np.ndarray,
    other: np.ndarray,
    group: np.ndarray,
    clusters: np.ndarray,
) -> PromptPairs:
    positions = dataset.positions[: clean.shape[1]]
    return PromptPairs(
        clean, corrupt, answer, other, positions, dataset.splits, group, clusters.astype(int)
    )
