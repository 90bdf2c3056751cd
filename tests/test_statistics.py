"""Intervals keep their level when examples are clustered; p-values are uniform under the null."""

import inspect
import math

import numpy as np
import pytest
import scipy.stats

from implicit_reasoning.errors import InputError
from implicit_reasoning.statistics import (
    ClusterIntervals,
    clopper_pearson,
    clustered_interval,
    max_statistic_p_values,
    mean_over_seeds,
    p_value,
    permutation_null,
)


def clustered_data(rng, n_clusters=60, mean=0.3):
    """Return data in unequal clusters whose shared effect is as large as the noise."""
    clusters = np.repeat(np.arange(n_clusters), rng.integers(2, 12, n_clusters))
    return mean + rng.normal(size=n_clusters)[clusters] + rng.normal(size=len(clusters)), clusters


# ---- intervals ---------------------------------------------------------------------------------


def test_numbers_match_the_closed_form():
    """For singletons and equal clusters, it is the t interval of the values or of the cluster
    means.
    """
    rng = np.random.default_rng(1)
    values = rng.normal(size=(30, 5)) + rng.normal(size=(30, 1))
    for units, clusters in (
        (values.ravel(), np.arange(150)),
        (values.mean(1), np.repeat(np.arange(30), 5)),
    ):
        got = clustered_interval(values.ravel(), clusters, level=0.9)
        low, high = scipy.stats.ttest_1samp(units, 0.0).confidence_interval(0.9)
        assert got.mean == pytest.approx(values.mean())
        assert (got.low, got.high) == (pytest.approx(low), pytest.approx(high))


def test_unequal_clusters_match_the_formula_by_hand():
    values, clusters = clustered_data(np.random.default_rng(2), n_clusters=9)
    n = np.bincount(clusters)
    residuals = np.bincount(clusters, values) - values.mean() * n
    error = math.sqrt(9 / 8 * (residuals**2).sum()) / n.sum()
    quantile = scipy.stats.t.ppf(0.9, n.sum() ** 2 / (n**2).sum() - 1)
    got = clustered_interval(values, clusters, level=0.8)
    assert got.low == pytest.approx(values.mean() - quantile * error)
    assert got.high == pytest.approx(values.mean() + quantile * error)


@pytest.mark.parametrize(
    ("n", "low"), [(20, 0.8316), (30, 0.8843), (36, 0.9026), (73, 0.9507), (17, 0.8049)]
)
def test_outcomes_that_agree_have_the_exact_interval_of_their_clusters(n, low):
    """For any number of examples the lower end is .025 ** (1 / n), and the width is not zero."""
    sizes = np.arange(n) % 4 + 1
    clusters = np.repeat(np.arange(n), sizes)
    right = clustered_interval(np.ones(len(clusters), bool), clusters)
    assert (right.mean, right.high) == (1.0, 1.0)
    assert right.low == pytest.approx(0.025 ** (1 / n)) == pytest.approx(low, abs=5e-5)
    wrong = clustered_interval(np.zeros(len(clusters)), clusters)
    assert (wrong.mean, wrong.low) == (0.0, 0.0) and wrong.high == pytest.approx(1 - right.low)
    exact = scipy.stats.binomtest(n, n).proportion_ci(0.95, "exact")
    assert right.low == pytest.approx(exact.low)


def test_each_set_of_outcomes_has_its_own_interval():
    """A batch has all right, all wrong and some right outcomes, also with different counted
    examples.
    """
    outcomes = np.stack([np.ones(24), np.zeros(24), np.arange(24) % 2]).astype(bool)
    clusters = np.arange(24) // 2
    got = ClusterIntervals(clusters).interval(outcomes)
    exact = 0.025 ** (1 / 12)
    np.testing.assert_allclose(got.low[:2], [exact, 0])
    np.testing.assert_allclose(got.high[:2], [1, 1 - exact])
    # Each cluster is half right. Clusters do not differ, but the interval has a width.
    assert 0.2 < got.low[2] < 0.35 and got.high[2] == pytest.approx(1 - got.low[2])
    counted = np.stack([np.arange(24) < 16, np.arange(24) < 10, np.ones(24, bool)])
    given = ClusterIntervals(clusters).interval_given(outcomes, counted)
    np.testing.assert_allclose(given.low[0], 0.025 ** (1 / 8))
    np.testing.assert_allclose(given.high[1], 1 - 0.025 ** (1 / 5))
    assert (given.low[2], given.n_clusters.tolist()) == (got.low[2], [8, 5, 12])


def test_numbers_that_agree_have_no_width():
    """Three of ten thousand, and tied ranks, say nothing about a proportion."""
    for same in (0.1, 3, -2.5):
        got = clustered_interval(np.full(9, same), np.arange(9))
        assert got.low == got.mean == got.high == same
    given = ClusterIntervals(np.arange(9)).interval_given(np.full(9, 0.1), np.arange(9) > 2)
    assert given.low == given.mean == given.high == 0.1
    # In an array of other numbers, 0 and 1 are numbers as well.
    kl = np.stack([np.zeros(9), np.arange(9.0)])
    assert ClusterIntervals(np.arange(9)).interval(kl).high[0] == 0


def test_shares_stay_between_0_and_1():
    probabilities = np.array([1, 1, 1, 1, 0.2])
    got = clustered_interval(probabilities, np.arange(5))
    assert got.low < got.mean < got.high == 1.0
    assert clustered_interval(10 * probabilities, np.arange(5)).high > 10


def test_the_exact_interval_is_scipys():
    for right, of in ((0, 5), (1, 5), (3, 7), (5, 5)):
        exact = scipy.stats.binomtest(right, of).proportion_ci(0.9, "exact")
        low, high = clopper_pearson(np.array(right), np.array(of), 0.9)
        assert (low, high) == (pytest.approx(exact.low), pytest.approx(exact.high))


def test_leading_axes_equal_one_at_a_time():
    rng = np.random.default_rng(5)
    _, clusters = clustered_data(rng, n_clusters=12)
    shuffle = rng.permutation(len(clusters))  # clusters need not be contiguous
    intervals = ClusterIntervals(clusters[shuffle])
    values = rng.normal(size=(2, 3, len(clusters)))
    together = intervals.interval(values)
    assert together.mean.shape == together.low.shape == together.high.shape == (2, 3)
    for index in np.ndindex(2, 3):
        alone = intervals.interval(values[index])
        np.testing.assert_allclose(together.low[index], alone.low, rtol=1e-5)
        np.testing.assert_allclose(together.high[index], alone.high, rtol=1e-5)


def test_labels_and_order_of_clusters_do_not_matter():
    values, clusters = clustered_data(np.random.default_rng(6), n_clusters=12)
    once = clustered_interval(values, clusters)
    assert clustered_interval(values, clusters * 1000 - 77) == once
    back = clustered_interval(values[::-1].copy(), clusters[::-1].copy())
    assert back.low == pytest.approx(once.low, rel=1e-5)


def test_outcomes_are_shares():
    outcomes = np.array([True, False, True, True])
    got = clustered_interval(outcomes, np.array([0, 0, 1, 2]))
    assert got.mean == 0.75 and 0 < got.low < 0.75 < got.high < 1
    assert (got.n_examples, got.n_clusters) == (4, 3)


@pytest.mark.parametrize("n", [30, 60, 475])
def test_what_does_not_count_changes_nothing(n):
    rare = clustered_interval(np.arange(n) < 1, np.arange(n))
    assert 0 < rare.low < rare.mean < rare.high < 0.25
    intervals, counted = ClusterIntervals(np.arange(2 * n)), np.arange(2 * n) % 2 == 0
    outcome = np.arange(2 * n) < 1
    given = intervals.interval_given(outcome, counted)
    assert (given.low, given.high) == (rare.low, rare.high)
    far = intervals.interval_given(np.where(counted, outcome, -5.0), counted)
    nan = intervals.interval_given(np.where(counted, outcome, np.nan), counted)
    assert (far.low, far.high) == (nan.low, nan.high) == (rare.low, rare.high)


@pytest.mark.parametrize("n_clusters", [0, 1])
def test_fewer_than_two_clusters_have_no_interval(n_clusters):
    values, clusters = np.ones(3 * n_clusters), np.zeros(3 * n_clusters, int)
    every = ClusterIntervals(clusters).interval_given(values, values > 0)
    for got in (clustered_interval(values, clusters), every):
        assert math.isnan(got.low) and math.isnan(got.high)
        assert math.isnan(got.mean) if n_clusters == 0 else got.mean == 1.0
        assert (got.n_examples, got.n_clusters) == (3 * n_clusters, n_clusters)


def test_the_level_widens():
    values, clusters = clustered_data(np.random.default_rng(7))
    for chosen in (values, values > 0):
        once, wide = (clustered_interval(chosen, clusters, level=level) for level in (0.95, 0.99))
        assert wide.low < once.low < once.high < wide.high


@pytest.mark.parametrize(
    ("values", "level", "says"),
    [
        (np.array([1.0, np.nan]), 0.95, "contains 1 numbers that are not finite"),
        (np.array([1.0, np.inf]), 0.95, "contains 1 numbers that are not finite"),
        (np.ones(3), 0.95, "values contains 3 examples .* clusters contains 2"),
        (np.ones(2), 95.0, "between 0 and 1"),
    ],
)
def test_bad_input_to_an_interval(values, level, says):
    with pytest.raises(InputError, match=says):
        ClusterIntervals(np.arange(2)).interval(values, level)


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
    """Ten examples of a fact are one observation, and only the clustered null keeps its level."""
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


@pytest.mark.parametrize("shared", [0.0, 0.9])
def test_among_many_cells_the_chance_of_any_false_claim_is_the_level(shared):
    """With 500 cells, dependent or not, an uncorrected false claim is almost certain."""
    rng, trials, n_cells = np.random.default_rng(0), 400, 500
    wrong, uncorrected = 0, 0
    for _ in range(trials):
        draws = rng.normal(size=(40, n_cells)) + shared * rng.normal(size=(40, 1))
        observed, null = draws[0], draws[1:]
        wrong += (max_statistic_p_values(observed, null) <= 0.05).any()
        uncorrected += ((1 + (null >= observed).sum(0)) / 40 <= 0.05).any()
    # 20 expected, standard deviation 4.4.
    assert 6 <= wrong <= 34
    assert uncorrected > 300


def test_among_many_cells_large_effects_are_found_and_others_are_not():
    rng = np.random.default_rng(1)
    found = np.zeros(500)
    for _ in range(50):
        null = rng.normal(size=(39, 500))
        observed = rng.normal(size=500) + 7.0 * (np.arange(500) < 20)
        found += max_statistic_p_values(observed, null) <= 0.05
    assert found[:20].mean() > 0.98 * 50 and found[20:].sum() <= 8


def test_corrected_p_values_by_hand():
    null = np.array([[1.0, 5.0], [2.0, 0.0], [0.0, 3.0]])  # largest: 5, 2, 3
    np.testing.assert_allclose(max_statistic_p_values(np.array([3.0, 6.0]), null), [0.75, 0.25])
    # Missing values neither count nor change the others.
    with_nan = np.column_stack([null, [9.0, 9.0, math.nan]])
    found = max_statistic_p_values(np.array([3.0, 6.0, 9.0]), with_nan)
    np.testing.assert_allclose(found, [0.75, 0.25, math.nan])
    one = max_statistic_p_values(np.array([2.0]), null[:, :1])
    assert one == [p_value(2.0, null[:, 0])]
    with pytest.raises(InputError, match=r"the shape \(draws, 1\), with at least"):
        inspect.unwrap(max_statistic_p_values)(np.zeros(1), null)


def test_bad_input_to_a_null():
    # The unwrapped function is used, because outside the tests no type checker compares lengths
    # first.
    unchecked = inspect.unwrap(permutation_null)

    def null(labels, clusters):
        return unchecked(np.sum, labels, n_permutations=1, seed=0, clusters=clusters)

    with pytest.raises(InputError, match="cluster 4 contains examples with different"):
        null(np.array([0, 1, 1]), np.array([4, 4, 5]))
    with pytest.raises(InputError, match="labels contains 2 examples, and clusters contains 3"):
        null(np.array([0, 1]), np.array([4, 4, 5]))


def test_the_mean_over_seeds_is_over_worlds():
    """Two runs of one world count as one; the interval is the usual t interval."""
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
    """Worlds and initialisations both vary, so intervals that treat runs as independent are too
    narrow.
    """
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
    with pytest.raises(InputError, match="values contains 2 runs, and worlds contains 1"):
        unchecked(np.zeros(2), np.zeros(1, int))
    with pytest.raises(InputError, match="level is 95; it must be between 0 and 1"):
        unchecked(np.zeros(2), np.zeros(2, int), level=95)


def test_shares_that_agree_at_an_end_have_the_exact_interval_beside_others():
    """One cell of fractions makes the batch one of numbers; the other cells keep their width."""
    clusters = np.repeat(np.arange(20), 3)
    ones, half = np.ones(60), np.full(60, 0.5)
    found = ClusterIntervals(clusters).interval(np.stack([ones, 0 * ones, half]))
    np.testing.assert_allclose(found.low[:2], [0.83157, 0], atol=1e-4)
    np.testing.assert_allclose(found.high[:2], [1, 0.16843], atol=1e-4)
    assert found.low[2] == found.high[2] == 0.5
