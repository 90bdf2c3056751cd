"""Slope and correlation are those of numpy, and their intervals draw whole clusters."""

import numpy as np

from implicit_reasoning.dictionaries.graphs.agreement import agreement


def drawn(n_clusters, seed):
    """Return effects with a slope of 2; observed effects have an error by cluster."""
    random = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(n_clusters), 5)
    predicted = random.normal(size=len(clusters))
    error = random.normal(size=n_clusters)[clusters]
    return predicted, 2 * predicted + error, clusters


def test_numbers_are_those_of_numpy():
    predicted, observed, clusters = drawn(30, 0)
    counted = np.random.default_rng(1).random(len(clusters)) < 0.8
    found = agreement(predicted, observed, clusters, counted)
    p, o = predicted[counted], observed[counted]
    np.testing.assert_allclose(found.correlation, np.corrcoef(p, o)[0, 1])
    np.testing.assert_allclose(found.slope, np.linalg.lstsq(p[:, None], o, rcond=None)[0][0])
    assert found.n_clusters == len(np.unique(clusters[counted]))


def test_intervals_cover_the_truth_of_clustered_effects():
    covered = []
    for seed in range(200):
        predicted, observed, clusters = drawn(20, seed)
        # The prediction is the same in a whole cluster, so examples are no independent evidence.
        predicted = predicted[::5][clusters]
        observed = 2 * predicted + np.random.default_rng(900 + seed).normal(size=20)[clusters]
        found = agreement(predicted, observed, clusters, np.ones(100, bool))
        covered.append(found.slope_low <= 2 <= found.slope_high)
    assert np.mean(covered) > 0.87


def test_what_has_no_slope_is_nan():
    flat = agreement(np.zeros(6), np.arange(6.0), np.arange(6), np.ones(6, bool))
    assert np.isnan([flat.slope, flat.slope_low, flat.correlation, flat.correlation_high]).all()
    equal = agreement(np.full(6, 0.1), np.full(6, 0.1), np.arange(6), np.ones(6, bool))
    np.testing.assert_allclose([equal.slope, equal.slope_low, equal.slope_high], 1)
    assert np.isnan(equal.correlation)
    nothing = agreement(np.ones(3), np.ones(3), np.arange(3), np.zeros(3, bool))
    assert np.isnan(nothing.slope) and nothing.n_clusters == 0
