"""The best feature of a value is found where there is one, and is by chance elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.dictionaries.matching import average_precision, match, match_null


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
    found = average_precision(jnp.asarray(scores), jnp.asarray(positive))
    np.testing.assert_allclose(found, precision_by_hand(scores, positive), rtol=1e-6)


def test_average_precision_agrees_with_what_others_compute():
    """Without ties it is the usual one: sum of precision times the step of recall."""
    scores = np.array([0.9, 0.8, 0.7, 0.6], np.float32)
    positive = np.array([True, False, True, False])
    found = average_precision(jnp.asarray(scores), jnp.asarray(positive))
    np.testing.assert_allclose(found, (1 + 2 / 3) / 2, rtol=1e-6)


def planted(n_states=200, n_values=10, n_features=32, seed=0):
    """Values; features of which number 3 v + 1 is on exactly where the value is v."""
    random = np.random.default_rng(seed)
    values = random.permutation(np.arange(n_states) % n_values)
    acts = np.maximum(random.normal(size=(n_states, n_features)), 0) * (
        random.random((n_states, n_features)) < 0.2
    )
    for value in range(n_values):
        acts[:, 3 * value + 1] = 2.0 * (values == value)
    return jnp.asarray(acts, jnp.float32), jnp.asarray(values), jnp.arange(n_states) % 4 < 2


def test_planted_features_are_found():
    acts, values, second = planted()
    found = match(acts, values, second, 10)
    np.testing.assert_array_equal(found.feature, 3 * np.arange(10) + 1)
    np.testing.assert_array_equal(found.f1, np.ones(10))
    np.testing.assert_array_equal(found.precision, np.ones(10))


def test_f1_is_that_of_the_second_half():
    acts, values, second = planted()
    # In the second half feature 1 is also on for value 5, of which there are some states.
    acts = acts.at[:, 1].set(jnp.where(second & (values == 5), 1.0, acts[:, 1]))
    found = match(acts, values, second, 10)
    n = np.asarray(found.n_states)
    np.testing.assert_allclose(found.f1[0], 2 * n[0] / (2 * n[0] + n[5]), rtol=1e-6)
    np.testing.assert_allclose(found.precision[0], 1)  # the value's own activations are higher


def test_the_null_is_what_features_without_meaning_reach():
    random = np.random.default_rng(1)
    acts = jnp.asarray(np.maximum(random.normal(size=(200, 500)), 0), jnp.float32)
    _, values, second = planted()
    null = match_null(acts, values, second, 10, jax.random.key(0), 40)
    found = match(acts, values, second, 10)
    low, high = np.quantile(null[:, 0], [0.01, 0.99])
    assert low <= np.nanmean(found.f1) <= high
    planted_acts, *_ = planted()
    with_meaning = match_null(planted_acts, values, second, 10, jax.random.key(0), 40)
    assert with_meaning[:, 0].max() < 0.5  # though the features are perfect for the true values


def test_of_values_with_too_few_states_nothing_is_said():
    acts, values, second = planted()
    values = jnp.where((values == 7) & (jnp.cumsum(values == 7) > 1), 9, values)
    found = match(acts, values, second, 10)
    assert np.isnan(found.f1[7]) and np.isnan(found.precision[7])
    assert not np.isnan(np.delete(np.asarray(found.f1), 7)).any()


def test_choosing_and_scoring_on_the_same_states_would_be_too_good():
    """The mutation: with one half for both, features without meaning look as if they had some."""
    random = np.random.default_rng(2)
    acts = np.maximum(random.normal(size=(200, 500)), 0) * (random.random((200, 500)) < 0.1)
    acts = jnp.asarray(acts, jnp.float32)
    _, values, second = planted()
    honest = np.nanmean(match(acts, values, second, 10).f1)
    twice = jnp.concatenate([acts, acts]), jnp.concatenate([values, values])
    fooled = np.nanmean(match(*twice, jnp.arange(400) >= 200, 10).f1)
    assert fooled > honest + 0.15
