"""Intervals over the examples that count, which may differ between checkpoints and places."""

import numpy as np
import pytest

from implicit_reasoning.errors import InputError
from implicit_reasoning.statistics import ClusterIntervals


def test_all_counted_is_the_plain_interval():
    random = np.random.default_rng(0)
    clusters = np.repeat(np.arange(12), 4)
    values = random.normal(size=(3, 48))
    intervals = ClusterIntervals(clusters)
    plain, given = intervals.interval(values), intervals.interval_given(values, values == values)
    for name in ("mean", "low", "high"):
        np.testing.assert_allclose(getattr(given, name), getattr(plain, name), rtol=1e-5)
    assert (given.n_clusters == 12).all()


def test_what_does_not_count_does_not_matter():
    random = np.random.default_rng(0)
    clusters = np.repeat(np.arange(30), 4)
    counted = random.random((2, 120)) < 0.6
    values = np.where(counted, random.random((2, 120)) < 0.3, np.nan)
    intervals = ClusterIntervals(clusters)
    given = intervals.interval_given(values, counted)
    np.testing.assert_allclose(given.mean, np.nanmean(values, -1))
    assert (given.low < given.mean).all() and (given.mean < given.high).all()
    # The interval equals that of the counted examples alone.
    alone = ClusterIntervals(clusters[counted[0]]).interval(values[0, counted[0]])
    np.testing.assert_allclose([given.low[0], given.high[0]], [alone.low, alone.high])


def test_nothing_counts():
    intervals = ClusterIntervals(np.arange(5))
    values, counted = np.ones((2, 5)), np.zeros((2, 5), bool)
    counted[1, 0] = True
    given = intervals.interval_given(values, counted)
    assert np.isnan(given.mean[0]) and given.mean[1] == 1
    assert np.isnan(given.low).all() and np.isnan(given.high).all()
    assert given.n_clusters.tolist() == [0, 1]
    none = ClusterIntervals(np.arange(0)).interval_given(values[:, :0], counted[:, :0])
    assert np.isnan(none.mean).all() and (none.n_clusters == 0).all()


def test_values_that_count_are_finite():
    with pytest.raises(InputError, match="not finite"):
        ClusterIntervals(np.arange(2)).interval_given(np.array([1, np.nan]), np.array([True, True]))
