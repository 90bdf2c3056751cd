"""Tasks without a world, modular addition and repeated sequences, agree with their definitions."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from implicit_reasoning.errors import InputError
from implicit_reasoning.worlds import build, shortcuts
from implicit_reasoning.worlds.shortcuts import commuted


def addition(**changes):
    settings = {"world_seed": 0, "modulus": 11, "train_fraction": 0.3, "probes": 1000}
    return build(SimpleNamespace(name="modular_addition", **(settings | changes)))


def repeated(**changes):
    settings = {"world_seed": 0, "n_tokens": 12, "min_length": 3, "max_length": 5}
    settings |= {"n_train": 200, "probes": 40}
    return build(SimpleNamespace(name="in_context", **(settings | changes)))


@given(
    seed=st.integers(0, 999),
    modulus=st.integers(1, 12),
    fraction=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
)
def test_addition_has_every_pair_once(seed, modulus, fraction):
    dataset = addition(world_seed=seed, modulus=modulus, train_fraction=fraction)
    assert dataset.vocab == (*(f"<{i}>" for i in range(modulus)), "<=>")
    assert dataset.sizes()["train_pairs"] == dataset.n_train == round(fraction * modulus**2)
    pairs = set()
    for row in range(len(dataset)):
        words = [dataset.vocab[token].strip("<>") for token in dataset.tokens[row]]
        a, b = int(words[0]), int(words[1])
        assert words[2] == "=" and dataset.truth["a"][row] == a and dataset.truth["b"][row] == b
        answer = (a + b) % modulus
        assert dataset.targets[row].tolist() == [-1, -1, answer]
        assert dataset.truth["answer"][row] == answer and dataset.truth["position"][row] == 2
        pairs.add((a, b))
    assert len(pairs) == len(dataset) == modulus**2
    assert dataset.world is None and dataset.positions == ("a", "b", "=")


def test_a_larger_part_only_adds_pairs():
    small, large = addition(train_fraction=0.3), addition(train_fraction=0.6)
    assert (large.tokens[: small.n_train] == small.tokens[: small.n_train]).all()
    assert (large.tokens == small.tokens).all()
    assert len(addition(probes=5).rows("test_pairs")) == 5


def test_commuted_against_its_definition():
    dataset = addition(train_fraction=0.4)
    answer_of, train = {}, range(dataset.n_train)
    for row in train:
        a, b = dataset.tokens[row, :2].tolist()
        answer_of[b, a] = int(dataset.truth["answer"][row])
    counts = Counter(answer_of.values())
    modal = min(counts, key=lambda answer: (-counts[answer], answer))
    rows = dataset.rows("test_pairs")
    expected = [answer_of.get(tuple(dataset.tokens[row, :2].tolist()), modal) for row in rows]
    assert commuted(dataset, rows).tolist() == expected
    right = np.mean(np.array(expected) == dataset.truth["answer"][rows])
    assert shortcuts(dataset) == {"commuted": {"test_pairs": pytest.approx(right)}}
    assert 0.3 < right < 0.6


@given(seed=st.integers(0, 999), lengths=st.sampled_from([(2, 2), (3, 5), (5, 5), (2, 12)]))
def test_every_determined_position_is_supervised(seed, lengths):
    dataset = repeated(
        world_seed=seed, min_length=lengths[0], max_length=lengths[1], n_train=40, probes=9
    )
    assert dataset.sizes() == {"train_repeated": 40, "test_repeated": 9}
    assert dataset.n_ctx == 2 * lengths[1] - 1 == len(dataset.positions)
    sequences, periods = set(), dataset.truth["period"]
    assert periods.min() >= lengths[0] and periods.max() <= lengths[1]
    for row in range(len(dataset)):
        n = int(periods[row])
        tokens, targets = dataset.tokens[row].tolist(), dataset.targets[row].tolist()
        first = tokens[:n]
        assert len(set(first)) == n
        assert tokens[n : 2 * n - 1] == first[:-1] and not any(tokens[2 * n - 1 :])
        # Induction: find the earlier occurrence of the token and predict the token after it.
        said = [first[first.index(token) + 1] for token in tokens[n : 2 * n - 1]]
        assert targets == [-1] * n + said + [-1] * (dataset.n_ctx - 2 * n + 1)
        assert dataset.truth["answer"][row] == said[-1]
        assert dataset.truth["position"][row] == 2 * n - 2
        sequences.add(tuple(first))
    assert len(sequences) == len(dataset)  # tested sequences are not in training
    assert shortcuts(dataset) == {}


def test_sequences_are_uniform():
    dataset = repeated(n_tokens=4, min_length=3, max_length=3, n_train=16, probes=8)
    assert len(dataset) == 24  # all possible sequences
    big = repeated(n_tokens=30, min_length=6, max_length=6, n_train=5000, probes=1000)
    for place in range(6):
        counts = np.bincount(big.tokens[:, place], minlength=30)
        assert np.abs(counts - 200).max() < 5 * np.sqrt(200)
    periods = np.bincount(repeated(n_tokens=40, n_train=3000).truth["period"])[3:]
    assert np.abs(periods - periods.mean()).max() < 6 * np.sqrt(periods.mean())


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        (addition, {"modulus": 0}, "modulus = 0 .* at least 1"),
        (addition, {"train_fraction": 1.1}, "train_fraction = 1.1"),
        (addition, {"probes": 0}, "probes = 0"),
        (repeated, {"max_length": 13}, r"max_length = 13 .* from 2 to 12 \(n_tokens\)"),
        (repeated, {"min_length": 6}, r"min_length = 6 .* from 2 to 5 \(max_length\)"),
        (repeated, {"n_train": 0}, "n_train = 0"),
        (
            repeated,
            {"max_length": 3, "n_train": 1300},
            "12 tokens give too few sequences of length 3 to 3",
        ),
    ],
)
def test_settings_out_of_bounds_are_named(task, changes, message):
    with pytest.raises(InputError, match=message):
        task(**changes)
