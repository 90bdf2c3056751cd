"""Curves and tests of times to an event: published examples, SciPy, and plain enumeration."""

import inspect
import itertools

import numpy as np
import pytest
import scipy.stats

from implicit_reasoning.errors import InputError
from implicit_reasoning.figures import new_drawing
from implicit_reasoning.survival import draw_survival, kaplan_meier, log_rank

# Weeks of remission (negative: censored) and log white blood cells of patients with 6-MP and with
# placebo. Freireich et al. 1963; the second column is that of Kleinbaum and Klein, *Survival
# Analysis*, chapter 2.
DRUG = """-6 3.20, 6 2.31, 6 4.06, 6 3.28, 7 4.43, -9 2.80, 10 2.96, -10 2.70, -11 2.60, 13 2.88,
16 3.60, -17 2.16, -19 2.05, -20 2.01, 22 2.32, 23 2.57, -25 1.78, -32 2.20, -32 2.53,
-34 1.47, -35 1.45"""
PLACEBO = """1 2.80, 1 5.00, 2 4.91, 2 4.48, 3 4.01, 4 4.36, 4 2.42, 5 3.49, 5 3.97, 8 3.52, 8 3.05,
8 2.32, 8 3.26, 11 3.49, 11 2.12, 12 1.50, 12 3.06, 15 2.30, 17 2.95, 22 2.73, 23 1.97"""
WEEKS, WHITE = np.array(
    [row.split() for rows in (DRUG, PLACEBO) for row in rows.split(",")], float
).T
REMISSION = (np.abs(WEEKS), WEEKS > 0)
PLACEBO_GIVEN = np.arange(42) >= 21


def random_runs(rng, n=30, groups=2):
    """Return runs with ties, of which about a third are censored."""
    times = rng.integers(1, 9, n)
    return times, rng.random(n) < 0.7, np.arange(n) % groups


def by_hand(times, observed, groups, strata):
    """Return chi-square by loops, with the covariances of all groups except the last."""
    names = np.unique(groups)
    difference = np.zeros(len(names))
    covariance = np.zeros((len(names), len(names)))
    for stratum, time in itertools.product(np.unique(strata), np.unique(times[observed])):
        risk = (strata == stratum) & (times >= time)
        fell = risk & observed & (times == time)
        n, d = risk.sum(), fell.sum()
        if n < 2:
            continue
        of = np.array([(risk & (groups == name)).sum() for name in names])
        difference += [(fell & (groups == name)).sum() for name in names] - d * of / n
        for i, j in itertools.product(range(len(names)), repeat=2):
            covariance[i, j] += d * (n - d) / (n - 1) * of[i] / n * ((i == j) - of[j] / n)
    kept = slice(len(names) - 1)
    return difference[kept] @ np.linalg.solve(covariance[kept, kept], difference[kept])


def test_remission_of_leukemia_has_the_published_estimates():
    """Kaplan-Meier .8571 at week 6 and .4482 at week 23; medians 23 and 8 weeks."""
    drug, placebo = (
        kaplan_meier(*(values[given == PLACEBO_GIVEN] for values in REMISSION)) for given in (0, 1)
    )
    at = dict(zip(drug.times, drug.survival, strict=True))
    assert [round(at[week], 4) for week in (6, 10, 23)] == [0.8571, 0.7529, 0.4482]
    assert (drug.median, drug.median_low, drug.median_high) == (23, 13, np.inf)
    assert (placebo.median, placebo.median_low, placebo.median_high) == (8, 4, 11)
    assert (drug.n_events, placebo.n_events, drug.n_runs) == (9, 21, 21)
    # Stata's interval at week 1, and no patient of the placebo group is left at the end.
    assert (placebo.low[0], placebo.high[0]) == pytest.approx((0.6700, 0.9753), abs=5e-5)
    assert (placebo.survival[-1], placebo.low[-1]) == (0, 0) and placebo.high[-1] > 0


def test_remission_of_leukemia_has_the_published_tests():
    """Kleinbaum and Klein have 16.79, and 10.14 when stratified by three levels of the blood."""
    plain = log_rank(*REMISSION, PLACEBO_GIVEN)
    assert plain.chi_square == pytest.approx(16.79, abs=5e-3) and plain.degrees == 1
    np.testing.assert_allclose(plain.expected, [19.25, 10.75], atol=5e-3)
    levels = np.digitize(WHITE, [2.305, 3.005])
    within = log_rank(*REMISSION, PLACEBO_GIVEN, levels, n_permutations=999)
    assert within.chi_square == pytest.approx(10.14, abs=5e-3)
    assert within.p == pytest.approx(0.0014, abs=5e-5) and within.p_permutation < 0.01
    assert within.observed.tolist() == [9, 21] and within.n_runs.tolist() == [21, 21]


def test_without_strata_it_is_scipys():
    rng = np.random.default_rng(0)
    for _ in range(5):
        times, observed, groups = random_runs(rng)
        halves = [
            scipy.stats.CensoredData.right_censored(times[groups == g], ~observed[groups == g])
            for g in (0, 1)
        ]
        found, other = log_rank(times, observed, groups), scipy.stats.logrank(*halves)
        assert found.chi_square == pytest.approx(other.statistic**2)
        assert found.p == pytest.approx(other.pvalue)


def test_strata_and_several_groups_equal_loops():
    rng = np.random.default_rng(1)
    for _ in range(5):
        times, observed, groups = random_runs(rng, 36, 3)
        strata = rng.integers(4, size=36)
        found = log_rank(times, observed, groups, strata)
        assert found.chi_square == pytest.approx(by_hand(times, observed, groups, strata))
        assert found.degrees == 2 and found.expected.sum() == pytest.approx(observed.sum())
        # The time scale of a stratum does not count, only the order within it.
        assert log_rank(times + 90 * strata, observed, groups, strata).p == pytest.approx(found.p)


@pytest.mark.parametrize("together", [False, True], ids=["runs", "clusters"])
def test_permutations_equal_enumeration(together):
    """All arrangements within two strata of four runs or clusters; the groups differ in size."""
    rng = np.random.default_rng(2)
    size = 2 if together else 1
    units = np.arange(8).repeat(size)
    strata, groups = units // 4, np.array([0, 0, 1, 2, 0, 1, 1, 2])[units]
    times = np.array([2, 5, 3, 9, 1, 6, 8, 4])[units] + rng.integers(0, 3, 8 * size)
    observed = rng.random(8 * size) < 0.8
    orders = list(itertools.permutations(range(4)))
    # Under an arrangement, unit u has the group of unit `order[u]` of its stratum.
    of_unit = groups[::size]
    null = np.array(
        [
            log_rank(times, observed, of_unit[np.r_[a, 4 + np.array(b)]][units], strata).chi_square
            for a, b in itertools.product(orders, orders)
        ]
    )
    found = log_rank(
        times, observed, groups, strata, n_permutations=20_000, clusters=units if together else None
    )
    exact = (null >= found.chi_square - 1e-9).mean()
    assert 0.03 < exact < 0.7
    # Four standard errors of 20,000 draws.
    assert found.p_permutation == pytest.approx(exact, abs=4 * np.sqrt(exact / 20_000))


def test_a_group_or_all_groups_without_events():
    """Runs that never reach the event count as late; without any event there is nothing to test."""
    groups = np.arange(12) % 2
    times, observed = np.where(groups == 0, 10.0, 1.0 + np.arange(12)), groups == 1
    found = log_rank(times, observed, groups, n_permutations=999)
    assert found.observed.tolist() == [0, 6] and found.expected[0] > 3
    assert found.p < found.p_permutation < 0.05  # with few runs, chi-square is too optimistic
    never = kaplan_meier(times[groups == 0], observed[groups == 0])
    assert (never.survival == 1).all() and (never.low == 1).all() and (never.high == 1).all()
    assert never.median == never.median_low == never.median_high == np.inf
    nothing = log_rank(times, np.zeros(12, bool), groups, groups, n_permutations=99)
    assert (nothing.chi_square, nothing.degrees, nothing.p, nothing.p_permutation) == (0, 0, 1, 1)
    # Groups that never share a stratum are not compared.
    apart = log_rank(times, observed, groups, groups)
    assert (apart.degrees, apart.p) == (0, 1)


def test_strata_remove_a_difference_between_worlds():
    """World 1 is slow and has most runs of group 1; within worlds, groups are equal."""
    worlds = np.arange(80) // 40
    groups = np.where(worlds == 0, np.arange(80) % 8 == 0, np.arange(80) % 8 != 0)
    times = 100 * worlds + np.arange(80) // 8
    assert log_rank(times, np.ones(80, bool), groups).p < 1e-3
    assert log_rank(times, np.ones(80, bool), groups, worlds).p > 0.5


def test_without_censoring_the_median_is_the_usual_one():
    for n in (1, 2, 7, 16):
        times = np.random.default_rng(n).permutation(n) + 1.0
        curve = kaplan_meier(times, np.ones(n, bool))
        assert curve.median == np.median(times)
        np.testing.assert_allclose(curve.survival, 1 - np.arange(1, n + 1) / n, atol=1e-12)
        assert (np.diff(curve.high) <= 0).all() and (curve.low <= curve.survival).all()


def test_the_drawing_has_one_curve_for_each_group():
    _, (ax,) = new_drawing()
    curves = draw_survival(ax, *REMISSION, PLACEBO_GIVEN)
    assert list(curves) == [False, True] and curves[True].median == 8
    assert ax.get_legend_handles_labels()[1] == ["False: 9 of 21", "True: 21 of 21"]


def test_bad_input_says_what_is_wrong():
    times, observed, groups = np.arange(4.0), np.ones(4, bool), np.arange(4) // 2
    # Outside the tests, no type checker compares lengths first.
    with pytest.raises(InputError, match="times contains 4 runs, and groups contains 3"):
        inspect.unwrap(log_rank)(times, observed, groups[:3])
    with pytest.raises(InputError, match="all runs are in group 0"):
        log_rank(times, observed, 0 * groups)
    with pytest.raises(InputError, match="a time is not finite"):
        kaplan_meier(np.array([1, np.nan]), np.array([True, False]))
    with pytest.raises(InputError, match="there are no runs"):
        kaplan_meier(times[:0], observed[:0])
    with pytest.raises(InputError, match="level is 95"):
        kaplan_meier(times, observed, level=95.0)
    with pytest.raises(InputError, match="a cluster contains runs of several groups"):
        log_rank(times, observed, groups, n_permutations=1, clusters=np.array([0, 1, 1, 2]))
