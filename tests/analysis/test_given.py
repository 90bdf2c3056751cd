"""Outcomes over the examples that count, which may be others at every checkpoint and place."""

import numpy as np
import pytest

from implicit_reasoning.errors import InputError
from implicit_reasoning.statistics import ClusterBootstrap


def test_all_counted_is_the_plain_interval():
    random = np.random.default_rng(0)
    clusters = np.repeat(np.arange(12), 4)
    values = random.normal(size=(3, 48))
    bootstrap = ClusterBootstrap(clusters, 200)
    plain, given = bootstrap.interval(values), bootstrap.interval_given(values, values == values)
    for name in ("mean", "low", "high"):
        np.testing.assert_allclose(getattr(given, name), getattr(plain, name), rtol=1e-5)
    assert (given.n_clusters == 12).all()


def test_what_does_not_count_does_not_matter():
    random = np.random.default_rng(0)
    clusters = np.repeat(np.arange(30), 4)
    counted = random.random((2, 120)) < 0.6
    values = np.where(counted, random.random((2, 120)) < 0.3, np.nan)
    bootstrap = ClusterBootstrap(clusters, 500)
    given = bootstrap.interval_given(values, counted)
    np.testing.assert_allclose(given.mean, np.nanmean(values, -1))
    assert (given.low < given.mean).all() and (given.mean < given.high).all()
    # The same, by resampling concatenated examples by hand.
    by_hand = []
    for counts in bootstrap._counts.astype(int):
        drawn = [values[0, clusters == c] for c in range(30) for _ in range(counts[c])]
        by_hand.append(np.nanmean(np.concatenate(drawn)))
    np.testing.assert_allclose(
        [given.low[0], given.high[0]], np.quantile(by_hand, [0.025, 0.975]), rtol=1e-5
    )


def test_nothing_counts():
    bootstrap = ClusterBootstrap(np.arange(5), 50)
    values, counted = np.ones((2, 5)), np.zeros((2, 5), bool)
    counted[1, 0] = True
    given = bootstrap.interval_given(values, counted)
    assert np.isnan(given.mean[0]) and given.mean[1] == 1
    assert np.isnan(given.low).all() and np.isnan(given.high).all()
    assert given.n_clusters.tolist() == [0, 1]
    none = ClusterBootstrap(np.arange(0), 50).interval_given(values[:, :0], counted[:, :0])
    assert np.isnan(none.mean).all() and (none.n_clusters == 0).all()


def test_values_that_count_are_finite():
    with pytest.raises(InputError, match="not finite"):
        ClusterBootstrap(np.arange(2)).interval_given(np.array([1, np.nan]), np.array([True, True]))
