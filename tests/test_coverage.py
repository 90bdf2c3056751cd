"""Simulated coverage of clustered intervals of outcomes: at least 93% with 10, 20 and 50 clusters.

As with any method that uses only cluster sums, two cases are not covered. In one, a rare kind of
cluster was not drawn. In the other, all outcomes agree while the size of a cluster depends on its
outcome.
"""

import numpy as np
import pytest

from implicit_reasoning.statistics import ClusterIntervals

REPEATS = 1000
PROPORTIONS = (0.05, 0.1, 0.2, 0.5, 0.8, 0.95)
SIZES = ("ten", "unequal", "very unequal")


def sizes_of(kind, shape, rng):
    """Return the number of examples of each cluster."""
    if kind == "one":
        return np.ones(shape, int)
    if kind == "ten":
        return np.full(shape, 10)
    if kind == "unequal":
        return rng.integers(1, 20, shape)
    return np.maximum(1, np.exp(rng.normal(1.5, 1, shape))).astype(int)


def beta(correlation):
    """Return a sampler of cluster probabilities; outcomes within a cluster correlate."""

    def draw(p, shape, rng):
        both = (1 - correlation) / correlation
        return rng.beta(p * both, (1 - p) * both, shape)

    return draw


def equal(p, shape, rng):
    return np.full(shape, p)


def all_or_none(p, shape, rng):
    return (rng.random(shape) < p).astype(float)


def bimodal(p, shape, rng):
    """Return probabilities as measured on `test_oi`: 38% of bridges at most .05, 16% at least .8.

    For p of at least 0.5 they are reversed.
    """
    kind, x = rng.random(shape), rng.random(shape)
    found = np.where(
        kind < 0.38, 0.05 * x, np.where(kind < 0.54, 0.8 + 0.2 * x, 0.05 + 0.75 * x**2)
    )
    return found if p < 0.5 else 1 - found


BIMODAL = 0.38 * 0.025 + 0.16 * 0.9 + 0.46 * (0.05 + 0.25)
PROCESSES = {
    "independent": equal,
    "correlation .1": beta(0.1),
    "correlation .3": beta(0.3),
    "correlation .6": beta(0.6),
    "all or none": all_or_none,
    "bimodal": bimodal,
}


def covered(values, sizes, truth):
    """Return the share of simulations whose interval contains the truth.

    Values and sizes are [simulation, cluster]. All simulations have the same clusters, of the
    largest size, and superfluous examples do not count. Intervals depend only on sums, so it does
    not matter which examples of a cluster are right.
    """
    most = sizes.max()
    number = np.tile(np.arange(most), sizes.shape[1])
    counted = number < np.repeat(sizes, most, axis=1)
    right = number < np.repeat(values, most, axis=1)
    intervals = ClusterIntervals(np.repeat(np.arange(sizes.shape[1]), most))
    found = intervals.interval_given(right, counted)
    assert (found.low >= 0).all() and (found.high <= 1).all() and (found.low < found.high).all()
    return ((found.low <= truth) & (truth <= found.high)).mean()


@pytest.mark.parametrize(
    "n_clusters", [10, *(pytest.param(n, marks=pytest.mark.slow) for n in (20, 50))]
)
def test_outcomes_are_covered(n_clusters):
    rng = np.random.default_rng(n_clusters)
    found = {}
    for process, draw in PROCESSES.items():
        kinds = (*SIZES, "one") if draw is equal else SIZES
        for size in kinds:
            for p in (0.2, 0.8) if draw is bimodal else PROPORTIONS:
                truth = {0.2: BIMODAL, 0.8: 1 - BIMODAL}[p] if draw is bimodal else p
                shape = (REPEATS, n_clusters)
                sizes = np.minimum(sizes_of(size, shape, rng), 60)
                values = rng.binomial(sizes, draw(p, shape, rng))
                found[process, size, p] = covered(values, sizes, truth)
    worst = min(found, key=found.get)
    assert found[worst] >= 0.93, (worst, found[worst])
    assert np.mean(list(found.values())) <= 0.995  # an interval of [0, 1] would cover everything


@pytest.mark.parametrize("n_clusters", [10, 20, 50])
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_numbers_are_covered(n_clusters, spread):
    """The values are normal, with and without an effect of the cluster."""
    rng = np.random.default_rng(n_clusters)
    hits = []
    for kind in (*SIZES, "one"):  # with very unequal sizes, 92.9% to 95%
        clusters = np.repeat(np.arange(n_clusters), sizes_of(kind, n_clusters, rng))
        values = rng.normal(size=(REPEATS, len(clusters)))
        values += spread * rng.normal(size=(REPEATS, n_clusters))[:, clusters]
        found = ClusterIntervals(clusters).interval(values)
        hits.append(((found.low <= 0) & (found.high >= 0)).mean())
    assert 0.92 <= min(hits) <= max(hits) <= 0.985


def test_rows_taken_for_independent_cover_too_little():
    rng = np.random.default_rng(0)
    clusters, covered = np.repeat(np.arange(20), 10), []
    values = rng.random((REPEATS, 200)) < beta(0.3)(0.5, (REPEATS, 20), rng)[:, clusters]
    for units in (clusters, np.arange(200)):
        found = ClusterIntervals(units).interval(values)
        covered.append(((found.low <= 0.5) & (found.high >= 0.5)).mean())
    assert covered[0] >= 0.93 and covered[1] < 0.75


def test_with_many_clusters_the_width_is_the_textbooks():
    """Independent outcomes are a proportion of examples; correlated ones are a proportion of
    clusters.
    """
    rng = np.random.default_rng(1)
    clusters = np.repeat(np.arange(200), 5)
    found = ClusterIntervals(clusters).interval(rng.random((200, 1000)) < 0.3)
    width = (found.high - found.low).mean()
    assert width == pytest.approx(2 * 1.96 * np.sqrt(0.3 * 0.7 / 1000), rel=0.06)
    outcomes = rng.random((200, 200))[:, clusters] < 0.3  # one outcome per cluster
    found = ClusterIntervals(clusters).interval(outcomes)
    width = (found.high - found.low).mean()
    assert width == pytest.approx(2 * 1.96 * np.sqrt(0.3 * 0.7 / 200), rel=0.06)
