"""Clustered intervals, means over seeds, and permutation nulls.

The unit of a statement about answers is the bridge, the fact or the prefix, never the query (see
`worlds.clusters`). Queries that share a bridge share a state, so an interval that takes queries for
independent is too narrow, and a null that shuffles them one by one is too easy to beat. The unit of
a statement about training is the run or, where runs share a world, the world.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.special import betaincinv, stdtrit

from implicit_reasoning.errors import InputError

INTERVALS = 2
"""The kind of intervals, which kept results name; 1 was a percentile bootstrap by first fact."""


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval: floats, or arrays [...] for values [..., example].

    `low` and `high` are nan where fewer than two clusters leave the spread unknown; `mean` is nan
    where there is no example at all. `n_clusters` is an array where it differs between values.
    """

    mean: Any
    low: Any
    high: Any
    n_examples: int
    n_clusters: Any


class ClusterIntervals:
    """Confidence intervals of means of clustered examples, for many sets of values at once.

    With cluster sums y_c, sizes n_c, mean m = sum(y) / sum(n) and k clusters, the variance of m is
    estimated from the residuals of whole clusters, r_c = y_c - m n_c, as
    v = k / (k - 1) * sum(r^2) / sum(n)^2. Unequal clusters say as much as K = sum(n)^2 / sum(n^2)
    equal ones (Kish).

    Numbers have the interval m +- t sqrt(v), with Student's t of K - 1 degrees of freedom. Where
    all values lie in [0, 1], ends are clipped to it, and values that are all 0, or all 1, have
    Clopper and Pearson's interval for as many examples as clusters. Otherwise the interval has no
    width where all cluster means agree.

    Outcomes, where all values are 0 or 1, have Clopper and Pearson's interval for as many
    independent examples as have this variance, m (1 - m) / v, at most sum(n) (Korn and Graubard).
    Few clusters often show too little of their spread, so v is first shrunk towards what it is
    where a cluster's examples all agree, w = p (1 - p) / K with p = (m K + 1) / (K + 2), as if this
    had been seen on three more clusters: (K v + 3 w) / (K + 3). Where all outcomes agree, there are
    as many independent examples as clusters: the lower end of 20 of 20 is .83.

    In simulations of outcomes "95%" covers at least 93% with 10, 20 and 50 clusters, for
    proportions from .05 to .95, correlations within clusters from 0 to 1, equal and unequal sizes
    and bimodal clusters (tests/test_coverage.py has the simulation and its limits).

    Sources: Korn and Graubard 1998, "Confidence intervals for proportions with small expected
    number of positive counts estimated from survey data"; Cochran 1977, *Sampling Techniques*,
    section 3.12 (the variance of a ratio); Kish 1965, *Survey Sampling* (K); Clopper and Pearson
    1934. The shrinkage is this project's own, in the manner of Agresti and Coull 1998.
    """

    def __init__(self, clusters: Int[np.ndarray, " example"]) -> None:
        """Sort the examples by cluster, once for all values."""
        _, index, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
        # Sorted by cluster, a cluster's sum is one slice: `reduceat` adds them all in one pass.
        self._order = np.argsort(index, kind="stable")
        self._starts = np.cumsum(sizes) - sizes
        self._sizes = sizes.astype(np.float64)

    def interval(
        self, values: Shaped[np.ndarray, "*batch example"], level: float = 0.95
    ) -> Interval:
        """Return the mean over examples and its interval, for every leading index.

        Args:
          values: [..., example] numbers or bools (outcomes), in the order of `clusters`. An array
            that has no other numbers than 0 and 1 is taken for outcomes.
          level: coverage wanted, between 0 and 1.

        Raises:
          InputError: another number of examples, a value that is not finite, or a level outside.
        """
        n_examples, n_clusters = len(self._order), len(self._sizes)
        if values.shape[-1] != n_examples:
            raise InputError(f"{values.shape[-1]} values were given for {n_examples} examples")
        if not np.isfinite(values).all():
            bad = np.count_nonzero(~np.isfinite(values))
            raise InputError(f"{bad} values are not finite: drop those examples and their clusters")
        mean, low, high, _ = self._found(values, None, level)
        return Interval(mean, low, high, n_examples, n_clusters)

    def interval_given(
        self,
        values: Shaped[np.ndarray, "*batch example"],
        counted: Bool[np.ndarray, "*#batch example"],
        level: float = 0.95,
    ) -> Interval:
        """The same over the examples that are counted, which may be others for every leading index.

        `n_clusters` [...] has the clusters in which at least one example is counted. Axes of
        `counted` of size 1 are the same all along, and cost no more than that.

        Raises:
          InputError: as `interval`.
        """
        if not np.isfinite(values).all(where=counted):
            raise InputError("values that count are not finite: do not count those examples")
        mean, low, high, n_clusters = self._found(values, counted, level)
        return Interval(mean, low, high, len(self._order), n_clusters)

    def _found(
        self, values: np.ndarray, counted: np.ndarray | None, level: float
    ) -> tuple[Any, Any, Any, Any]:
        """Mean, low, high and number of clusters, [...] each, or numbers where there is no axis."""
        if counted is None:
            sizes, counted = self._sizes, np.ones(len(self._order), bool)
        else:
            sizes = self._by_cluster(counted.astype(np.float64))
        values = values.astype(np.float64)
        least = np.min(values, axis=-1, keepdims=True, initial=np.inf, where=counted)
        least = np.where(np.isfinite(least), least, 0.0)
        sums = ClusterSums(
            least[..., 0],
            self._by_cluster(np.where(counted, values - least, 0.0)),
            sizes,
            bool(np.all((values == 0) | (values == 1), where=counted)),
            bool(np.all((values >= 0) & (values <= 1), where=counted)),
        )
        found = interval_of_sums(sums, len(self._order), level)
        return found.mean, found.low, found.high, found.n_clusters

    def _by_cluster(self, values: np.ndarray) -> Float[np.ndarray, "*batch cluster"]:
        if not len(self._starts):
            return values[..., :0]
        return np.add.reduceat(values[..., self._order], self._starts, axis=-1)


class ClusterSums(NamedTuple):
    """What the interval of a mean of clustered examples is computed from, for many means at once.

    Attributes:
      least: [...], the smallest value that counts (0 where none does). Sums are of distances from
        it, so that equal values give exactly no spread.
      sums: [..., cluster], of `value - least` over the examples of a cluster that count.
      sizes: [..., cluster], how many these are; [cluster] where it is the same for all means.
      outcomes: all values that count, of all means, are 0 or 1.
      shares: they lie between 0 and 1.
    """

    least: Any
    sums: Any
    sizes: Any
    outcomes: bool
    shares: bool


def interval_of_sums(found: ClusterSums, n_examples: int, level: float = 0.95) -> Interval:
    """Return the means and intervals that `ClusterIntervals` has for the same examples.

    Args:
      found: sums by cluster.
      n_examples: how many examples there are, for the result.
      level: coverage wanted, between 0 and 1.

    Raises:
      InputError: a level outside.
    """
    if not 0 < level < 1:
        raise InputError(f"level is between 0 and 1 (say .95), was given {level}")
    sums, sizes = found.sums, found.sizes
    with np.errstate(invalid="ignore", divide="ignore"):  # nan where nothing counts
        above = sums.sum(-1) / sizes.sum(-1)
        mean = found.least + above
        residuals = sums - above[..., None] * sizes
        low, high = (_outcomes if found.outcomes else _numbers)(mean, residuals, sizes, level)
    n_clusters = np.broadcast_to((sizes > 0).sum(-1), mean.shape)
    if found.shares:
        low, high = np.clip(low, 0, 1), np.clip(high, 0, 1)
        agree = (mean == 0) | (mean == 1)
        ends = clopper_pearson(np.where(agree, mean * n_clusters, 0), n_clusters, level)
        low, high = (np.where(agree, *both) for both in zip(ends, (low, high), strict=True))
    low, high = (np.where(n_clusters < 2, np.nan, end) for end in (low, high))
    # `[()]` makes numbers of arrays without axes.
    return Interval(mean[()], low[()], high[()], n_examples, n_clusters[()])


def clustered_interval(
    values: Shaped[np.ndarray, " example"],
    clusters: Int[np.ndarray, " example"],
    *,
    level: float = 0.95,
) -> Interval:
    """Return the mean of `values` and its interval, by the spread of whole clusters.

    For several sets of values on the same examples make one `ClusterIntervals`, which also has the
    method, the errors and the sources.
    """
    return ClusterIntervals(clusters).interval(values, level)


def mean_over_seeds(
    values: Float[np.ndarray, " run *batch"],
    worlds: Int[np.ndarray, " run"],
    *,
    level: float = 0.95,
) -> Interval:
    """Return the mean over worlds of the mean over each world's runs, with Student's t interval.

    Runs that share a world differ in their initialisation only, and are not independent of each
    other: worlds are what an interval is over. With one world there is none (`low`, `high` nan).
    It is symmetric, so that of shares near 0 or 1 an end may lie outside.

    Args:
      values: of every run; a nan (what a run has not reached) leaves that run out.
      worlds: the world seed of every run.
      level: coverage wanted, between 0 and 1.

    Returns:
      `n_examples` is the number of runs given, `n_clusters` [...] of the worlds that count.

    Raises:
      InputError: another number of worlds than of runs, or a level outside.
    """
    if len(values) != len(worlds):
        raise InputError(f"{len(worlds)} world seeds were given for {len(values)} runs")
    if not 0 < level < 1:
        raise InputError(f"level is between 0 and 1 (say .95), was given {level}")
    member = (np.unique(worlds)[:, None] == worlds[None]).astype(np.float64)
    there = np.isfinite(values).astype(np.float64)
    with np.errstate(invalid="ignore"):  # nan where no run of a world counts
        sums, counts = (
            np.tensordot(member, x, 1) for x in (np.where(there > 0, values, 0.0), there)
        )
        by_world = sums / counts
    counted = np.isfinite(by_world)
    n = counted.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(counted, by_world, 0.0).sum(0) / n
        squares = np.where(counted, (by_world - mean) ** 2, 0.0).sum(0)
        half = stdtrit(n - 1, (1 + level) / 2) * np.sqrt(squares / (n - 1) / n)
    return Interval(mean[()], (mean - half)[()], (mean + half)[()], len(values), n[()])


def clopper_pearson(successes: Any, trials: Any, level: float = 0.95) -> tuple[Any, Any]:
    """Return the ends of the exact two-sided interval of a proportion.

    Args:
      successes: a number or an array [...], which may have fractions; a nan gives nan.
      trials: the same.
      level: coverage wanted, between 0 and 1.

    Source: Clopper and Pearson 1934, by quantiles of the beta distribution.
    """
    tail, failures = (1 - level) / 2, trials - successes
    with np.errstate(invalid="ignore"):
        low = np.where(successes <= 0, 0.0, betaincinv(successes, failures + 1, tail))
        high = np.where(failures <= 0, 1.0, betaincinv(successes + 1, failures, 1 - tail))
    return low, high


def permutation_null(
    statistic: Callable[[np.ndarray], float],
    labels: Shaped[np.ndarray, " example"],
    *,
    n_permutations: int,
    seed: int,
    clusters: Int[np.ndarray, " example"] | None = None,
) -> Float[np.ndarray, " permutation"]:
    """Return the statistic under random reassignments of the labels.

    Args:
      statistic: of labels [example]; called once for every permutation.
      labels: [example] of any type.
      n_permutations: how many.
      seed: of the permutations.
      clusters: [example]; where given, a cluster (a fact) keeps one label for all its examples and
        labels are exchanged between clusters. Labels must be constant within each.

    Returns:
      float64 [permutation], for `p_value`.

    Raises:
      InputError: lengths differ, or a cluster has two labels.
    """
    if clusters is None:
        clusters = np.arange(len(labels))
    if len(clusters) != len(labels):
        raise InputError(f"{len(labels)} labels were given for {len(clusters)} examples")
    _, first, index = np.unique(clusters, return_index=True, return_inverse=True)
    by_cluster = labels[first]
    mixed = clusters[by_cluster[index] != labels]
    if len(mixed):
        raise InputError(f"labels are constant within a cluster; cluster {mixed[0]} has several")
    rng = np.random.default_rng(seed)
    shuffled = (rng.permutation(by_cluster)[index] for _ in range(n_permutations))
    return np.array([statistic(one) for one in shuffled], np.float64)


def p_value(observed: float, null: Float[np.ndarray, " permutation"]) -> float:
    """Return `(1 + #(null >= observed)) / (1 + n)`: one-sided, valid for any n, never zero.

    Raises:
      InputError: a nan on either side, which no comparison can place.

    Source: Phipson and Smyth 2010, "Permutation p-values should never be zero".
    """
    if np.isnan(observed) or np.isnan(null).any():
        raise InputError("a p-value needs numbers: the observed statistic or its null has a nan")
    return float((1 + np.count_nonzero(null >= observed)) / (1 + len(null)))


def max_statistic_p_values(
    observed: Float[np.ndarray, " cell"], null: Float[np.ndarray, "draw cell"]
) -> Float[np.ndarray, " cell"]:
    """Return p-values that are corrected for the number of cells (neurons, edges, features).

    Each cell is compared with the largest statistic of all cells in every draw of the null:
    `(1 + #(max null >= observed)) / (1 + draws)`, one-sided. Where all cells are as in the null,
    the chance that any p-value is at most alpha is at most alpha (the family-wise error rate),
    however cells depend on each other; `draws` must be at least 1 / alpha - 1.

    Args:
      observed: a statistic for each cell. Statistics of all cells should have one scale, because
        the cell that varies most sets the threshold.
      null: the same under the null, such as with shuffled truth; all cells of a draw are of one
        shuffle.

    Returns:
      float64 [cell]. A cell with a nan, observed or in a draw, is left out and has p-value nan.

    Raises:
      InputError: another number of cells in the null, or no draw.

    Source: Westfall and Young 1993, *Resampling-Based Multiple Testing* (single step).
    """
    if null.shape[1:] != observed.shape or not len(null):
        raise InputError(
            f"the null needs draws of {len(observed)} cells, was given the shape {null.shape}"
        )
    there = np.isfinite(observed) & np.isfinite(null).all(0)
    largest = np.sort(null[:, there].max(1, initial=-np.inf))
    reached = len(largest) - np.searchsorted(largest, observed[there], side="left")
    found = np.full(observed.shape, np.nan)
    found[there] = (1 + reached) / (1 + len(largest))
    return found


def _numbers(mean: Any, residuals: Any, sizes: Any, level: float) -> tuple[Any, Any]:
    """Ends of the interval of a mean of numbers; see `ClusterIntervals`."""
    degrees = np.maximum(_equal_clusters(sizes) - 1, 1)
    half = stdtrit(degrees, (1 + level) / 2) * np.sqrt(_variance(residuals, sizes))
    return mean - half, mean + half


_MORE = 3
"""Clusters added in the estimate of a variance: the smallest number that passes the simulation."""


def _outcomes(mean: Any, residuals: Any, sizes: Any, level: float) -> tuple[Any, Any]:
    """Ends of the interval of a proportion; see `ClusterIntervals`."""
    count, equal = sizes.sum(-1), _equal_clusters(sizes)
    middle = (mean * equal + 1) / (equal + 2)
    agreeing = middle * (1 - middle) / equal
    variance = (equal * _variance(residuals, sizes) + _MORE * agreeing) / (equal + _MORE)
    independent = np.minimum(mean * (1 - mean) / variance, count)
    all_agree = (mean <= 0) | (mean >= 1)
    independent = np.where(all_agree, (sizes > 0).sum(-1), independent)
    return clopper_pearson(mean * independent, independent, level)


def _variance(residuals: Any, sizes: Any) -> Any:
    """Of a ratio of sums, from the residuals of k clusters."""
    k = (sizes > 0).sum(-1)
    found: Any = k / (k - 1) * (residuals**2).sum(-1) / sizes.sum(-1) ** 2
    return found


def _equal_clusters(sizes: Any) -> Any:
    """How many clusters of equal size would say as much as these (Kish)."""
    found: Any = sizes.sum(-1) ** 2 / (sizes**2).sum(-1)
    return found
