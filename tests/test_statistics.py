"""Intervals hold their level when examples are clustered; p-values are uniform under the null."""

import inspect
import math

import numpy as np
import pytest
import scipy.stats

from implicit_reasoning.errors import InputError
from implicit_reasoning.statistics import (
    ClusterBootstrap,
    clustered_bootstrap,
    mean_over_seeds,
    p_value,
    permutation_null,
)


def clustered_data(rng, n_clusters=60, mean=0.3):
    """Unequal clusters whose shared effect is as large as the noise."""
    clusters = np.repeat(np.arange(n_clusters), rng.integers(2, 12, n_clusters))
    return mean + rng.normal(size=n_clusters)[clusters] + rng.normal(size=len(clusters)), clusters


# ---- intervals ---------------------------------------------------------------------------------


def test_singletons_match_the_closed_form():
    values = np.random.default_rng(0).normal(size=400)
    got = clustered_bootstrap(values, np.arange(400), n_resamples=8000, level=0.6827)
    error = values.std() / math.sqrt(400)
    assert got.mean == pytest.approx(values.mean())
    # 68.27% is one standard error either side; 8000 resamples place a quantile within some percent.
    assert got.mean - got.low == pytest.approx(error, rel=0.05)
    assert got.high - got.mean == pytest.approx(error, rel=0.05)


def test_equal_clusters_match_the_closed_form_of_their_means():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(200, 5)) + rng.normal(size=(200, 1))
    got = clustered_bootstrap(
        values.ravel(), np.repeat(np.arange(200), 5), n_resamples=8000, level=0.6827
    )
    error = values.mean(1).std() / math.sqrt(200)
    assert (got.high - got.low) / 2 == pytest.approx(error, rel=0.05)


def test_unequal_clusters_match_resampling_by_hand():
    """The same clusters drawn, but sums and counts taken over concatenated examples."""
    values, clusters = clustered_data(np.random.default_rng(2), n_clusters=9)
    bootstrap = ClusterBootstrap(clusters, n_resamples=50, seed=3)
    by_hand = []
    for counts in bootstrap._counts.astype(int):
        drawn = [values[clusters == c] for c in range(9) for _ in range(counts[c])]
        by_hand.append(np.concatenate(drawn).mean())
    got = bootstrap.interval(values, level=0.8)
    np.testing.assert_allclose([got.low, got.high], np.quantile(by_hand, [0.1, 0.9]), rtol=1e-5)
    assert (bootstrap._counts.sum(1) == 9).all()


def test_coverage_holds_with_clusters_and_fails_without():
    rng = np.random.default_rng(4)
    hits, naive_hits = [], []
    for _ in range(400):
        values, clusters = clustered_data(rng)
        right = clustered_bootstrap(values, clusters, n_resamples=400)
        naive = clustered_bootstrap(values, np.arange(len(values)), n_resamples=400)
        hits.append(right.low <= 0.3 <= right.high)
        naive_hits.append(naive.low <= 0.3 <= naive.high)
    assert 0.91 <= np.mean(hits) <= 0.98
    assert np.mean(naive_hits) < 0.8


def test_leading_axes_equal_one_at_a_time():
    rng = np.random.default_rng(5)
    _, clusters = clustered_data(rng, n_clusters=12)
    shuffle = rng.permutation(len(clusters))  # clusters need not lie together
    bootstrap = ClusterBootstrap(clusters[shuffle], n_resamples=200)
    values = rng.normal(size=(2, 3, len(clusters)))
    together = bootstrap.interval(values)
    assert together.mean.shape == together.low.shape == together.high.shape == (2, 3)
    for index in np.ndindex(2, 3):
        alone = bootstrap.interval(values[index])
        np.testing.assert_allclose(together.low[index], alone.low, rtol=1e-5)
        np.testing.assert_allclose(together.high[index], alone.high, rtol=1e-5)


def test_labels_and_order_of_clusters_do_not_matter():
    values, clusters = clustered_data(np.random.default_rng(6), n_clusters=12)
    once = clustered_bootstrap(values, clusters)
    assert clustered_bootstrap(values, clusters * 1000 - 77) == once
    back = clustered_bootstrap(values[::-1].copy(), clusters[::-1].copy())
    assert back.low == pytest.approx(once.low, rel=1e-5)


def test_outcomes_are_shares_and_agreement_has_no_width():
    outcomes = np.array([True, False, True, True])
    got = clustered_bootstrap(outcomes, np.array([0, 0, 1, 2]))
    assert got.mean == 0.75 and 0.5 <= got.low <= 0.75 <= got.high == 1.0
    assert (got.n_examples, got.n_clusters) == (4, 3)
    same = clustered_bootstrap(np.full(9, 0.1), np.arange(9))
    assert same.low == same.mean == same.high


@pytest.mark.parametrize("n", [30, 60, 475])
def test_a_rare_success_has_no_negative_interval(n):
    """Rounding in float32 takes resamples without a success below 0, which prints as -0.000."""
    assert clustered_bootstrap(np.arange(n) < 1, np.arange(n)).low == 0.0
    bootstrap = ClusterBootstrap(np.arange(2 * n))
    counted = np.arange(2 * n) % 2 == 0
    values = np.stack([np.arange(2 * n) < 1, np.arange(2 * n) > 1, np.ones(2 * n, bool)])
    rare, frequent, always = (bootstrap.interval_given(one, counted) for one in values)
    assert rare.low == 0.0 and frequent.high == 1.0 and always.low == always.high == 1.0
    # What does not count sets no bounds, either.
    far = bootstrap.interval_given(np.where(counted, values[0], -5.0), counted)
    assert (far.low, far.high) == (rare.low, rare.high)


@pytest.mark.parametrize("n_clusters", [0, 1])
def test_fewer_than_two_clusters_have_no_interval(n_clusters):
    values, clusters = np.ones(3 * n_clusters), np.zeros(3 * n_clusters, int)
    every = ClusterBootstrap(clusters).interval_given(values, values > 0)
    for got in (clustered_bootstrap(values, clusters), every):
        assert math.isnan(got.low) and math.isnan(got.high)
        assert math.isnan(got.mean) if n_clusters == 0 else got.mean == 1.0
        assert (got.n_examples, got.n_clusters) == (3 * n_clusters, n_clusters)


def test_the_seed_decides_and_the_level_widens():
    values, clusters = clustered_data(np.random.default_rng(7))
    once = clustered_bootstrap(values, clusters, seed=1)
    assert once == clustered_bootstrap(values, clusters, seed=1)
    assert once != clustered_bootstrap(values, clusters, seed=2)
    wide = clustered_bootstrap(values, clusters, seed=1, level=0.99)
    assert wide.low < once.low < once.high < wide.high


@pytest.mark.parametrize(
    ("values", "options", "says"),
    [
        (np.array([1.0, np.nan]), {}, "1 values are not finite"),
        (np.array([1.0, np.inf]), {}, "1 values are not finite"),
        (np.ones(3), {}, "3 values were given for 2 examples"),
        (np.ones(2), {"level": 95.0}, "between 0 and 1"),
        (np.ones(2), {"n_resamples": 0}, "at least 1"),
    ],
)
def test_bad_input_to_an_interval(values, options, says):
    bootstrap = lambda: ClusterBootstrap(np.arange(2), options.get("n_resamples", 10))  # noqa: E731
    with pytest.raises(InputError, match=says):
        bootstrap().interval(values, options.get("level", 0.95))


# ---- nulls -------------------------------------------------------------------------------------


def test_p_values_are_uniform_when_labels_are_exchangeable():
    rng = np.random.default_rng(8)
    p_values = []
    for trial in range(1000):
        values, labels = rng.normal(size=12), rng.permutation(np.repeat([0, 1], 6))
        statistic = lambda labels: values[labels == 1].mean()  # noqa: B023, E731
        null = permutation_null(statistic, labels, n_permutations=19, seed=trial)
        p_values.append(p_value(statistic(labels), null))
    counts = np.bincount(np.rint(np.array(p_values) * 20).astype(int), minlength=21)
    # Values 1/20 .. 20/20, 50 times each in expectation; chi-square with 19 degrees, p = .001.
    assert counts[0] == 0
    assert ((counts[1:] - 50) ** 2 / 50).sum() < 43.8


def test_ignoring_clusters_beats_the_null_too_easily():
    """Ten examples of a fact are one observation: only the clustered null keeps its level."""
    rng = np.random.default_rng(9)
    clusters = np.repeat(np.arange(12), 10)
    rejected = {"clustered": 0, "naive": 0}
    for trial in range(200):
        values = rng.normal(size=12)[clusters] + 0.1 * rng.normal(size=120)
        labels = rng.permutation(np.repeat([0, 1], 6))[clusters]
        statistic = lambda labels: values[labels == 1].mean()  # noqa: B023, E731
        for name, groups in {"clustered": clusters, "naive": None}.items():
            null = permutation_null(
                statistic, labels, n_permutations=39, seed=trial, clusters=groups
            )
            rejected[name] += p_value(statistic(labels), null) <= 0.05
    assert rejected["clustered"] <= 20  # 10 expected
    assert rejected["naive"] >= 50


def test_a_permutation_keeps_labels_and_clusters_whole():
    clusters = np.array([5, 2, 5, 9, 2, 2])
    labels = np.array(["a", "b", "a", "c", "b", "b"])
    seen = []
    permutation_null(
        lambda one: seen.append(one) or 0.0, labels, n_permutations=60, seed=0, clusters=clusters
    )
    assert len({tuple(one) for one in seen}) == 6  # all orders of three labels over three clusters
    for one in seen:
        assert sorted({(c, label) for c, label in zip(clusters, one, strict=True)}) == sorted(
            zip((2, 5, 9), one[[1, 0, 3]], strict=True)
        )
        assert sorted(one[[1, 0, 3]]) == ["a", "b", "c"]


def test_p_value_counts_ties_and_is_never_zero():
    assert p_value(2.0, np.array([1.0, 2.0, 3.0])) == 0.75
    assert p_value(9.0, np.zeros(99)) == 0.01
    assert p_value(0.0, np.zeros(0)) == 1.0


@pytest.mark.parametrize(("observed", "null"), [(math.nan, [0.0]), (0.0, [0.0, math.nan])])
def test_p_value_refuses_nan(observed, null):
    with pytest.raises(InputError, match="nan"):
        p_value(observed, np.array(null))


def test_bad_input_to_a_null():
    # Unwrapped: outside the tests no type checker compares the lengths first.
    unchecked = inspect.unwrap(permutation_null)

    def null(labels, clusters):
        return unchecked(np.sum, labels, n_permutations=1, seed=0, clusters=clusters)

    with pytest.raises(InputError, match="cluster 4 has several"):
        null(np.array([0, 1, 1]), np.array([4, 4, 5]))
    with pytest.raises(InputError, match="2 labels were given for 3 examples"):
        null(np.array([0, 1]), np.array([4, 4, 5]))


def test_the_mean_over_seeds_is_over_worlds():
    """Two runs of one world count as one; the interval is the textbook's."""
    values = np.array([0.1, 0.3, 0.5, 0.9])
    found = mean_over_seeds(values, np.array([7, 7, 8, 9]))
    by_world = np.array([0.2, 0.5, 0.9])
    low, high = scipy.stats.ttest_1samp(by_world, 0.0).confidence_interval(0.95)
    assert found.mean == pytest.approx(by_world.mean())
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert (found.n_examples, found.n_clusters) == (4, 3)


def test_runs_that_did_not_get_there_are_left_out():
    values = np.array([[0.2, math.nan], [0.4, math.nan], [math.nan, 0.5]])
    found = mean_over_seeds(values, np.array([1, 2, 3]))
    alone = mean_over_seeds(values[:2, :1], np.array([1, 2]))
    np.testing.assert_allclose(found.mean, [0.3, 0.5])
    np.testing.assert_allclose([found.low[0], found.high[0]], [alone.low[0], alone.high[0]])
    assert np.isnan(found.low[1]) and found.n_clusters.tolist() == [2, 1]
    nobody = mean_over_seeds(np.full(2, math.nan), np.array([1, 2]))
    assert math.isnan(nobody.mean) and nobody.n_clusters == 0


def test_its_intervals_cover_as_often_as_they_say():
    """Worlds and initialisations both vary; taking runs for independent would cover less."""
    rng = np.random.default_rng(0)
    covered, naive = 0, 0
    for _ in range(1000):
        values = np.repeat(rng.normal(size=4), 2) + 0.3 * rng.normal(size=8)
        one = mean_over_seeds(values, np.repeat(np.arange(4), 2))
        other = mean_over_seeds(values, np.arange(8))
        covered += one.low <= 0 <= one.high
        naive += other.low <= 0 <= other.high
    assert 930 <= covered <= 970  # 950 expected, standard deviation 7
    assert naive < 900


def test_bad_input_to_a_mean_over_seeds():
    unchecked = inspect.unwrap(mean_over_seeds)
    with pytest.raises(InputError, match="1 world seeds were given for 2 runs"):
        unchecked(np.zeros(2), np.zeros(1, int))
    with pytest.raises(InputError, match="level is between 0 and 1"):
        unchecked(np.zeros(2), np.zeros(2, int), level=95)
