"""Clustered confidence intervals, means over seeds, and permutation nulls.

For statements about answers, the independent unit is the bridge entity, the fact or the prefix, and
not the query, because queries with the same bridge entity share a hidden state. `worlds.clusters`
computes these clusters. An interval that treats queries as independent is too narrow. A null
distribution from permutations of single queries, rather than clusters, is also too narrow. For
statements about training, the independent unit is the run. If several runs share a world, the
independent unit is the world.
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
"""The version of the method of intervals, which is saved with results.

Version 1 was a percentile bootstrap clustered by first fact.
"""


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval.

    `mean`, `low` and `high` are floats, or arrays [...] if the values have the shape
    `[..., example]`. With fewer than two clusters, `low` and `high` are nan, because the spread is
    unknown. Without examples, `mean` is nan. `n_clusters` is an array if the number of clusters
    differs between the means.
    """

    mean: Any
    low: Any
    high: Any
    n_examples: int
    n_clusters: Any


class ClusterIntervals:
    """Confidence intervals for means of clustered examples, for many sets of values at once.

    Notation: k clusters have sums y_c and sizes n_c, and the mean is m = sum(y) / sum(n). The
    residual of a cluster is r_c = y_c - m n_c. The estimated variance of m is v = k / (k - 1) *
    sum(r^2) / sum(n)^2. The effective number of clusters is K = sum(n)^2 / sum(n^2) (Kish). If all
    sizes are equal, K = k.

    Numbers (some value is neither 0 nor 1): the interval is m +- t sqrt(v), where t is Student's t
    for K - 1 degrees of freedom. If all values lie in [0, 1], the ends are clipped to [0, 1]. If,
    in addition, m is 0 or 1, the interval is the Clopper-Pearson interval with one independent
    example per cluster. In all other cases, the interval has width zero if all cluster means are
    equal.

    Outcomes (all values are 0 or 1): the interval is the Clopper-Pearson interval for N independent
    examples, with N = min(m (1 - m) / v, sum(n)) (Korn and Graubard). With few clusters, the
    estimate v is often too small. The formula for N therefore uses (K v + 3 w) / (K + 3) instead of
    v. Here w = p (1 - p) / K, with p = (m K + 1) / (K + 2), is the variance of m if all examples of
    a cluster have the same outcome. If all outcomes are equal, N is the number of clusters. For
    example, 20 correct clusters of 20 give the lower end .83.

    In simulations of outcomes with 10, 20 and 50 clusters, "95%" intervals cover the true
    proportion in at least 93% of the cases. The simulations use proportions from .05 to .95,
    correlations within clusters from 0 to 1, equal and unequal sizes, and bimodal clusters.
    tests/test_coverage.py contains the simulation and its limits.

    Sources: Korn and Graubard 1998, "Confidence intervals for proportions with small expected
    number of positive counts estimated from survey data"; Cochran 1977, *Sampling Techniques*,
    section 3.12 (variance of a ratio); Kish 1965, *Survey Sampling* (K); Clopper and Pearson 1934.
    The replacement of v was designed for this project; Agresti and Coull 1998 is similar.
    """

    def __init__(self, clusters: Int[np.ndarray, " example"]) -> None:
        """Sort the examples by cluster, once for all values."""
        _, index, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
        # After sorting, each cluster is one slice, so one call of `reduceat` sums all clusters.
        self._order = np.argsort(index, kind="stable")
        self._starts = np.cumsum(sizes) - sizes
        self._sizes = sizes.astype(np.float64)

    def interval(
        self, values: Shaped[np.ndarray, "*batch example"], level: float = 0.95
    ) -> Interval:
        """Return means over the last axis, with their intervals.

        Args:
          values: [..., example] numbers or bools, with examples in the order of `clusters`. An
            array that contains only 0 and 1 is treated as outcomes (class docstring).
          level: nominal coverage, between 0 and 1.

        Raises:
          InputError: the last axis of `values` does not match `clusters`, a value is not finite, or
            `level` is out of range.
        """
        n_examples, n_clusters = len(self._order), len(self._sizes)
        if values.shape[-1] != n_examples:
            raise InputError(
                f"values contains {values.shape[-1]} examples on its last axis, and clusters "
                f"contains {n_examples}; the numbers of examples must be equal"
            )
        if not np.isfinite(values).all():
            bad = np.count_nonzero(~np.isfinite(values))
            raise InputError(
                f"values contains {bad} numbers that are not finite; remove their examples from "
                "`values` and from `clusters`"
            )
        mean, low, high, _ = self._found(values, None, level)
        return Interval(mean, low, high, n_examples, n_clusters)

    def interval_given(
        self,
        values: Shaped[np.ndarray, "*batch example"],
        counted: Bool[np.ndarray, "*#batch example"],
        level: float = 0.95,
    ) -> Interval:
        """Return means and intervals over a subset of the examples.

        Args:
          values: [..., example] numbers or bools, with examples in the order of `clusters`.
          counted: bool [..., example], True for examples that are included. The selection may
            differ between indices of the leading axes. Axes of size 1 are broadcast, which saves
            computation.
          level: nominal coverage, between 0 and 1.

        Returns:
          The intervals. `n_clusters` [...] counts the clusters with at least one selected example.

        Raises:
          InputError: the last axes do not match `clusters`, a selected value is not finite, or
            `level` is out of range.
        """
        if not np.isfinite(values).all(where=counted):
            raise InputError(
                "some selected values are not finite; set `counted` to False for these examples"
            )
        mean, low, high, n_clusters = self._found(values, counted, level)
        return Interval(mean, low, high, len(self._order), n_clusters)

    def _found(
        self, values: np.ndarray, counted: np.ndarray | None, level: float
    ) -> tuple[Any, Any, Any, Any]:
        """Return the mean, low, high and number of clusters, each an array [...] or a scalar."""
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
    """Sums over the examples of each cluster. `interval_of_sums` computes intervals from them.

    Attributes:
      least: [...], the smallest selected value, or 0 if no value is selected. Sums contain
        differences from `least`, so that equal values give a spread of exactly zero.
      sums: [..., cluster], sum of `value - least` over the selected examples of each cluster.
      sizes: [..., cluster], number of selected examples of each cluster, or [cluster] if all means
        have the same numbers.
      outcomes: whether all selected values are 0 or 1.
      shares: whether all selected values lie between 0 and 1.
    """

    least: Any
    sums: Any
    sizes: Any
    outcomes: bool
    shares: bool


def interval_of_sums(found: ClusterSums, n_examples: int, level: float = 0.95) -> Interval:
    """Compute means and intervals from sums by cluster.

    The results equal the results of `ClusterIntervals` for the summed examples.

    Args:
      found: the sums by cluster.
      n_examples: number of examples, which is copied to the result.
      level: nominal coverage, between 0 and 1.

    Raises:
      InputError: `level` is out of range.
    """
    if not 0 < level < 1:
        raise InputError(f"level is {level}; it must be between 0 and 1, such as 0.95")
    sums, sizes = found.sums, found.sizes
    with np.errstate(invalid="ignore", divide="ignore"):  # nan if no example is selected
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
    # `[()]` converts zero-dimensional arrays to scalars.
    return Interval(mean[()], low[()], high[()], n_examples, n_clusters[()])


def clustered_interval(
    values: Shaped[np.ndarray, " example"],
    clusters: Int[np.ndarray, " example"],
    *,
    level: float = 0.95,
) -> Interval:
    """Return the mean of `values` and its interval, based on the spread between clusters.

    To compute intervals of several sets of values on the same examples, use `ClusterIntervals`. The
    docstring of this class describes the method, the errors and the sources.
    """
    return ClusterIntervals(clusters).interval(values, level)


def mean_over_seeds(
    values: Float[np.ndarray, " run *batch"],
    worlds: Int[np.ndarray, " run"],
    *,
    level: float = 0.95,
) -> Interval:
    """Average the runs of each world, and return the mean over worlds with Student's t interval.

    Runs that share a world are not independent, because only their initialization differs. The
    interval is therefore computed over worlds. With one world, `low` and `high` are nan. The
    interval is symmetric, so its ends may lie outside [0, 1] for proportions near 0 or 1.

    Args:
      values: [run, ...], one value per run. Runs with the value nan are excluded. For example, a
        run is nan if it has not reached a phase of training.
      worlds: [run], the world seed of each run.
      level: nominal coverage, between 0 and 1.

    Returns:
      The interval. `n_examples` is the number of all runs. `n_clusters` [...] is the number of
      worlds with at least one run that is not excluded.

    Raises:
      InputError: `values` and `worlds` differ in length, or `level` is out of range.
    """
    if len(values) != len(worlds):
        raise InputError(
            f"values contains {len(values)} runs, and worlds contains {len(worlds)}; the numbers "
            "of runs must be equal"
        )
    if not 0 < level < 1:
        raise InputError(f"level is {level}; it must be between 0 and 1, such as 0.95")
    member = (np.unique(worlds)[:, None] == worlds[None]).astype(np.float64)
    there = np.isfinite(values).astype(np.float64)
    with np.errstate(invalid="ignore"):  # nan if no run of a world has a value
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
    """Return the ends of the exact two-sided confidence interval of a proportion.

    Args:
      successes: number of successes, a number or an array [...]. Fractions are allowed; nan gives
        nan.
      trials: number of trials, a number or an array [...].
      level: nominal coverage, between 0 and 1.

    Source: Clopper and Pearson 1934, computed from quantiles of the beta distribution.
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
    """Return the values of a statistic under random permutations of the labels.

    Args:
      statistic: function from labels [example] to a number; it is called once per permutation.
      labels: [example], of any type.
      n_permutations: number of permutations.
      seed: seed of the permutations.
      clusters: [example], the cluster of each example, such as its fact. All examples of a cluster
        must have the same label. Labels are permuted between clusters. By default, every example is
        a separate cluster.

    Returns:
      The statistic for each permutation, float64 [permutation], for `p_value`.

    Raises:
      InputError: `labels` and `clusters` differ in length, or a cluster has two labels.
    """
    if clusters is None:
        clusters = np.arange(len(labels))
    if len(clusters) != len(labels):
        raise InputError(
            f"labels contains {len(labels)} examples, and clusters contains {len(clusters)}; the "
            "numbers of examples must be equal"
        )
    _, first, index = np.unique(clusters, return_index=True, return_inverse=True)
    by_cluster = labels[first]
    mixed = clusters[by_cluster[index] != labels]
    if len(mixed):
        raise InputError(
            f"cluster {mixed[0]} contains examples with different labels; all examples of a "
            "cluster must have the same label"
        )
    rng = np.random.default_rng(seed)
    shuffled = (rng.permutation(by_cluster)[index] for _ in range(n_permutations))
    return np.array([statistic(one) for one in shuffled], np.float64)


def p_value(observed: float, null: Float[np.ndarray, " permutation"]) -> float:
    """Return the one-sided p-value `(1 + #(null >= observed)) / (1 + n)`.

    The p-value is valid for any number n of permutations. It is never zero.

    Raises:
      InputError: `observed` or `null` contains a nan.

    Source: Phipson and Smyth 2010, "Permutation p-values should never be zero".
    """
    if np.isnan(observed) or np.isnan(null).any():
        raise InputError(
            "the observed statistic or its null contains a nan; remove nan values before you "
            "compute a p-value"
        )
    return float((1 + np.count_nonzero(null >= observed)) / (1 + len(null)))


def max_statistic_p_values(
    observed: Float[np.ndarray, " cell"], null: Float[np.ndarray, "draw cell"]
) -> Float[np.ndarray, " cell"]:
    """Return one-sided p-values that are corrected for multiple comparisons between cells.

    A cell is, for example, a neuron, an edge or a feature. The p-value of a cell is

        (1 + #(max null >= observed)) / (1 + draws)

    where `max null` is the largest statistic over all cells in a draw of the null. These p-values
    control the family-wise error rate for any dependence between the cells. If all cells follow the
    null, the probability of one or more p-values below alpha is at most alpha. The smallest
    possible p-value is 1 / (1 + draws), so the test needs at least (1 - alpha) / alpha draws.

    Args:
      observed: one statistic per cell. All statistics should have the same scale, because the cell
        with the largest variance sets the threshold.
      null: [draw, cell], the statistics under the null, for example with shuffled labels. Use one
        shuffle for all cells of a draw.

    Returns:
      float64 [cell]. A cell with a value that is nan or infinite, in `observed` or in any draw, is
      excluded and gets the p-value nan.

    Raises:
      InputError: the shapes of `observed` and `null` do not match, or `null` has no draws.

    Source: Westfall and Young 1993, *Resampling-Based Multiple Testing* (single step).
    """
    if null.shape[1:] != observed.shape or not len(null):
        raise InputError(
            f"the null has shape {null.shape}; it must have the shape (draws, {len(observed)}), "
            "with at least one draw"
        )
    there = np.isfinite(observed) & np.isfinite(null).all(0)
    largest = np.sort(null[:, there].max(1, initial=-np.inf))
    reached = len(largest) - np.searchsorted(largest, observed[there], side="left")
    found = np.full(observed.shape, np.nan)
    found[there] = (1 + reached) / (1 + len(largest))
    return found


def _numbers(mean: Any, residuals: Any, sizes: Any, level: float) -> tuple[Any, Any]:
    """Return the ends of the interval of a mean of numbers; see `ClusterIntervals`."""
    degrees = np.maximum(_equal_clusters(sizes) - 1, 1)
    half = stdtrit(degrees, (1 + level) / 2) * np.sqrt(_variance(residuals, sizes))
    return mean - half, mean + half


_MORE = 3
"""The number of clusters with the variance w that are added to the estimate of the variance.

It is the smallest number for which the intervals pass the simulation in tests/test_coverage.py.
"""


def _outcomes(mean: Any, residuals: Any, sizes: Any, level: float) -> tuple[Any, Any]:
    """Return the ends of the interval of a mean of outcomes; see `ClusterIntervals`."""
    count, equal = sizes.sum(-1), _equal_clusters(sizes)
    middle = (mean * equal + 1) / (equal + 2)
    agreeing = middle * (1 - middle) / equal
    variance = (equal * _variance(residuals, sizes) + _MORE * agreeing) / (equal + _MORE)
    independent = np.minimum(mean * (1 - mean) / variance, count)
    all_agree = (mean <= 0) | (mean >= 1)
    independent = np.where(all_agree, (sizes > 0).sum(-1), independent)
    return clopper_pearson(mean * independent, independent, level)


def _variance(residuals: Any, sizes: Any) -> Any:
    """Return the estimated variance v of the mean; see `ClusterIntervals`."""
    k = (sizes > 0).sum(-1)
    found: Any = k / (k - 1) * (residuals**2).sum(-1) / sizes.sum(-1) ** 2
    return found


def _equal_clusters(sizes: Any) -> Any:
    """Return K, the number of clusters of equal size with the same information (Kish)."""
    found: Any = sizes.sum(-1) ** 2 / (sizes**2).sum(-1)
    return found
