"""The best feature of a value is found if it exists; otherwise its score is at chance."""

import functools

import jax
import numpy as np
import pytest

from implicit_reasoning.dictionaries.measures import matching
from implicit_reasoning.dictionaries.measures.matching import Half


def compiled(function, *static):
    """Compile one program per shape and return numpy arrays; several tests share shapes."""
    program = jax.jit(function, static_argnums=static)
    return functools.wraps(function)(lambda *of: jax.device_get(program(*of)))


average_precision = compiled(matching.average_precision)
joined = compiled(matching.joined, 2)
match = compiled(matching.match, 2)
match_null = compiled(matching.match_null, 2, 4)


def precision_by_hand(scores, positive):
    found = []
    for score in scores[positive]:
        above = scores >= score
        found.append((above & positive).sum() / above.sum())
    return np.mean(found)


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_with_ties(seed):
    random = np.random.default_rng(seed)
    scores = random.integers(0, 4, 30).astype(np.float32)
    positive = random.random(30) < 0.3
    positive[0] = True
    found = average_precision(scores, positive)
    np.testing.assert_allclose(found, precision_by_hand(scores, positive), rtol=1e-6)


def test_average_precision_agrees_with_what_others_compute():
    """Without ties this is the usual sum of precision times the increase of recall."""
    scores = np.array([0.9, 0.8, 0.7, 0.6], np.float32)
    positive = np.array([True, False, True, False])
    found = average_precision(scores, positive)
    np.testing.assert_allclose(found, (1 + 2 / 3) / 2, rtol=1e-6)


def planted(n_states=200, n_values=10, n_features=32, seed=0):
    """Return values and features; feature 3 v + 1 is active exactly where the value is v."""
    random = np.random.default_rng(seed)
    values = random.permutation(np.arange(n_states) % n_values)
    acts = np.maximum(random.normal(size=(n_states, n_features)), 0) * (
        random.random((n_states, n_features)) < 0.2
    )
    for value in range(n_values):
        acts[:, 3 * value + 1] = 2.0 * (values == value)
    return acts.astype(np.float32), values, np.arange(n_states) % 4 < 2


def halves(acts, values, second):
    """Return the half for choosing and the half for scoring."""
    chosen, scored = (Half(acts[of], values[of]) for of in (~second, second))
    return chosen, scored


def test_planted_features_are_found():
    found = match(*halves(*planted()), 10)
    np.testing.assert_array_equal(found.feature, 3 * np.arange(10) + 1)
    np.testing.assert_array_equal(found.f1, np.ones(10))
    np.testing.assert_array_equal(found.precision, np.ones(10))


def test_f1_is_that_of_the_second_half():
    acts, values, second = planted()
    # In the second half feature 1 is also active for value 5.
    acts[:, 1] = np.where(second & (values == 5), 1.0, acts[:, 1])
    found = match(*halves(acts, values, second), 10)
    n = np.asarray(found.n_states)
    np.testing.assert_allclose(found.f1[0], 2 * n[0] / (2 * n[0] + n[5]), rtol=1e-6)
    np.testing.assert_allclose(found.precision[0], 1)  # activations for the right value are higher


def test_rows_that_only_fill_up_change_nothing():
    parts = halves(*planted())
    filled = [
        Half(
            np.pad(one.acts, [(0, 30), (0, 0)], constant_values=-np.inf),
            np.pad(one.values, (0, 30), constant_values=-1),
        )
        for one in parts
    ]
    for found, expected in zip(match(*filled, 10), match(*parts, 10), strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(joined(*filled, 10), joined(*parts, 10))
    null = match_null(*filled, 10, jax.random.key(0), 40)
    expected = match_null(*parts, 10, jax.random.key(1), 40)
    np.testing.assert_allclose(null.mean(0), expected.mean(0), atol=0.02)


def test_a_split_value_is_joined_again():
    acts, values, second = planted()
    # Value 4 is split between two features, each active in half of its states, in both halves.
    turn = np.cumsum(values == 4) % 4 < 2
    acts[:, 0], acts[:, 13] = ((values == 4) & turn) * 1.0, ((values == 4) & ~turn) * 1.0
    found = np.asarray(joined(*halves(acts, values, second), 10))
    share = 0.5
    assert abs(found[4, 0] - 2 * share / (1 + share)) < 0.15
    np.testing.assert_allclose(found[4, 1:], 1)
    np.testing.assert_allclose(np.delete(found, 4, axis=0), 1)  # a second feature adds nothing


def test_joined_features_by_brute_force():
    random = np.random.default_rng(3)
    acts = (random.random((120, 12)) < 0.3).astype(np.float32)
    values, second = random.integers(0, 4, 120), np.arange(120) % 2 == 1
    found = np.asarray(joined(*halves(acts, values, second), 4))

    def f1(any_of, there, of):
        return 2 * (any_of & there & of).sum() / ((any_of & of).sum() + (there & of).sum())

    for value in range(4):
        there, any_of = values == value, np.zeros(120, bool)
        for count in range(found.shape[1]):
            tried = [f1(any_of | (acts[:, f] > 0), there, ~second) for f in range(12)]
            any_of = any_of | (acts[:, int(np.argmax(tried))] > 0)
            np.testing.assert_allclose(found[value, count], f1(any_of, there, second), rtol=1e-5)


def test_the_null_is_what_features_without_meaning_reach():
    random = np.random.default_rng(1)
    acts = np.maximum(random.normal(size=(200, 500)), 0).astype(np.float32)
    _, values, second = planted()
    parts = halves(acts, values, second)
    null = match_null(*parts, 10, jax.random.key(0), 40)
    low, high = np.quantile(null[:, 0], [0.01, 0.99])
    assert low <= np.nanmean(match(*parts, 10).f1) <= high
    with_meaning = match_null(*halves(*planted()), 10, jax.random.key(0), 40)
    assert with_meaning[:, 0].max() < 0.5  # although the features are perfect for the true values


def test_of_values_with_too_few_states_nothing_is_said():
    acts, values, second = planted()
    values = np.where((values == 7) & (np.cumsum(values == 7) > 1), 9, values)
    parts = halves(acts, values, second)
    found = match(*parts, 10)
    assert np.isnan(found.f1[7]) and np.isnan(found.precision[7])
    assert np.isnan(joined(*parts, 10)[7]).all()
    assert not np.isnan(np.delete(np.asarray(found.f1), 7)).any()


def test_choosing_and_scoring_on_the_same_states_would_be_too_good():
    """Mutation: if choosing and scoring use the same half, meaningless features seem to have
    meaning.
    """
    random = np.random.default_rng(2)
    acts = np.maximum(random.normal(size=(200, 500)), 0) * (random.random((200, 500)) < 0.1)
    _, values, second = planted()
    first, other = halves(acts.astype(np.float32), values, second)
    honest = np.nanmean(match(first, other, 10).f1)
    fooled = np.nanmean(match(first, first, 10).f1)
    assert fooled > honest + 0.15
