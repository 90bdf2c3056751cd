"""Detection patterns mark exactly the keys that a head of a type attends to."""

import jax
import numpy as np
import pytest

from implicit_reasoning.analysis.components.detection import (
    DETECTIONS,
    attention_to,
    has_queries,
    similarity,
)
from implicit_reasoning.errors import InputError

TOKENS = np.array([[1, 2, 1, 1, 2], [1, 2, 3, 4, 5], [7, 7, 7, 7, 7]])
N_POS = TOKENS.shape[1]


def by_hand(name, row):
    """Return the pattern of one row, written out."""
    found = np.zeros((N_POS, N_POS), bool)
    for query in range(N_POS):
        for key in range(query + 1):
            if name == "previous token":
                found[query, key] = key == query - 1
            elif name == "duplicate token":
                found[query, key] = key < query and row[key] == row[query]
            else:
                found[query, key] = key > 0 and row[key - 1] == row[query] and key - 1 < query
    return found


@jax.jit
def everything(tokens, pattern):
    detections = {name: detect(tokens) for name, detect in DETECTIONS.items()}
    return {
        name: (
            one,
            has_queries(one),
            attention_to(pattern, one),
            similarity(pattern[:, 0], one),
            similarity(pattern[:, 0], one, measure="abs"),
            similarity(pattern[:, 0], one, exclude_first=True, exclude_current=True),
        )
        for name, one in detections.items()
    }


@pytest.fixture(scope="module")
def patterns():
    """Return random patterns [batch, head, query, key] of two heads."""
    drawn = np.random.default_rng(0).random((len(TOKENS), 2, N_POS, N_POS)) + 0.1
    drawn = np.tril(drawn)
    return (drawn / drawn.sum(-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def found(patterns):
    return everything(TOKENS, patterns)


@pytest.mark.parametrize("name", DETECTIONS)
def test_detections(found, name):
    wanted = np.stack([by_hand(name, row) for row in TOKENS])
    np.testing.assert_array_equal(found[name][0], wanted)


@pytest.mark.parametrize("name", DETECTIONS)
def test_scores_are_means_over_queries(found, patterns, name):
    _, counts, (score, null), *_ = found[name]
    for number, row in enumerate(TOKENS):
        wanted = by_hand(name, row)
        queries = [q for q in range(N_POS) if 0 < wanted[q].sum() <= q]
        assert bool(counts[number]) == bool(queries)
        for head in range(2):
            own = [patterns[number, head, q][wanted[q]].sum() for q in queries]
            rest = [
                wanted[q].sum() * patterns[number, head, q, : q + 1][~wanted[q, : q + 1]].mean()
                for q in queries
            ]
            assert score[head, number] == pytest.approx(np.mean(own) if own else 0, abs=1e-6)
            assert null[head, number] == pytest.approx(np.mean(rest) if rest else 0, abs=1e-6)


@pytest.mark.parametrize("name", DETECTIONS)
def test_similarity_is_that_of_the_head_detector(found, patterns, name):
    *_, mul, absolute, excluded = found[name]
    for number, row in enumerate(TOKENS):
        pattern, wanted = patterns[number, 0], by_hand(name, row)
        assert mul[number] == pytest.approx((pattern * wanted).sum() / pattern.sum(), abs=1e-6)
        distance = np.abs(pattern - wanted).mean() * N_POS
        assert absolute[number] == pytest.approx(1 - distance, abs=1e-5)
        pattern = pattern.copy()
        pattern[:, 0] = 0
        np.fill_diagonal(pattern, 0)
        share = (pattern * wanted).sum() / pattern.sum()
        assert excluded[number] == pytest.approx(share, abs=1e-6)


def test_uniform_attention_is_the_null():
    uniform = np.tril(np.ones((N_POS, N_POS), np.float32))
    uniform /= uniform.sum(-1, keepdims=True)
    pattern = np.broadcast_to(uniform, (len(TOKENS), 2, N_POS, N_POS))
    for _, _, (score, null), *_ in everything(TOKENS, pattern).values():
        np.testing.assert_allclose(score, null, atol=1e-6)


def test_an_unknown_measure_is_refused(patterns):
    pattern = jax.numpy.asarray(patterns)
    with pytest.raises((InputError, TypeError), match="mul"):  # jaxtyping also checks the type
        similarity(pattern, pattern, measure="cosine")
