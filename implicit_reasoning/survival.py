"""Times until an event that some runs do not reach: Kaplan-Meier curves and the log-rank test.

A run that ends before the event is censored: the time of the event is later than the last step of
the run. A mean of the known times alone would leave out the slowest runs. The curve and the test
also use the censored runs, up to their last step.

The curve and its interval are computed by `scipy.stats.ecdf`. The log-rank test of SciPy
compares two groups without strata. The log-rank test in this module supports strata and any number
of groups.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from matplotlib.axes import Axes
from scipy.special import chdtrc
from scipy.stats import CensoredData, ecdf

from implicit_reasoning.errors import InputError
from implicit_reasoning.figures import SERIES_COLORS
from implicit_reasoning.statistics import p_value


@dataclass(frozen=True)
class SurvivalCurve:
    """The estimated share of runs that have not reached an event by a time, with its interval.

    Attributes:
      times: [time], the distinct times at which a run reached the event or was censored, ascending.
      survival: [time], the share of runs whose event is later than the time. Before the first time,
        the share is 1.
      low: [time], lower end of the pointwise interval.
      high: [time], upper end of the pointwise interval.
      n_runs: number of runs.
      n_events: number of runs that reached the event.
      median: median time of the event; inf if the curve never falls below .5.
      median_low: lower end of the interval of the median; may be inf.
      median_high: upper end of the interval of the median; may be inf.
    """

    times: Float[np.ndarray, " time"]
    survival: Float[np.ndarray, " time"]
    low: Float[np.ndarray, " time"]
    high: Float[np.ndarray, " time"]
    n_runs: int
    n_events: int
    median: float
    median_low: float
    median_high: float


def kaplan_meier(
    times: Shaped[np.ndarray, " run"], observed: Bool[np.ndarray, " run"], *, level: float = 0.95
) -> SurvivalCurve:
    """Estimate the share of runs that have not reached an event, as a function of time.

    The interval of the curve is pointwise. It uses Greenwood's variance on the scale log(-log S).
    Before the first event, the interval has no width. Where the estimate is 0, the variance is
    undefined. In this case, `low` is 0 and `high` keeps its last value. The interval of the median
    consists of the times at which the interval of the curve includes .5. Runs are treated as
    independent, so the intervals are too narrow if runs of one world resemble each other.

    If the curve is exactly .5 between two times, the median is the mean of these two times. Without
    censoring, this definition gives the usual median.

    Args:
      times: [run], the time of the event, or the last observed time if the run is censored.
      observed: [run], whether the run reached the event.
      level: nominal coverage, between 0 and 1.

    Raises:
      InputError: there are no runs, the lengths differ, a time is not finite, or `level` is out of
        range.

    Sources: Kaplan and Meier 1958; Kalbfleisch and Prentice 2002, *The Statistical Analysis of
    Failure Time Data*, section 1.4 (interval on the scale log(-log S)); Brookmeyer and Crowley 1982
    (interval of the median).
    """
    _check(times, observed)
    if not 0 < level < 1:
        raise InputError(f"level is {level}; it must be between 0 and 1, such as 0.95")
    curve = ecdf(CensoredData.right_censored(times.astype(np.float64), ~observed)).sf
    with warnings.catch_warnings():  # where the variance is undefined, the ends are set below
        warnings.simplefilter("ignore", RuntimeWarning)
        ends = curve.confidence_interval(level, method="log-log")
    survival = np.where(curve.probabilities < _SMALL, 0.0, curve.probabilities)
    whole, none = survival == 1, survival == 0
    low = np.where(whole, 1.0, np.where(none, 0.0, ends.low.probabilities))
    high = np.where(whole, 1.0, np.where(none, np.inf, ends.high.probabilities))
    high = np.minimum.accumulate(np.minimum(high, 1.0))
    below = [survival <= 0.5 + _SMALL, survival < 0.5 - _SMALL, low <= 0.5, high <= 0.5]
    first, last, median_low, median_high = (_first(curve.quantiles, where) for where in below)
    return SurvivalCurve(
        curve.quantiles,
        survival,
        low,
        high,
        len(times),
        int(observed.sum()),
        (first + last) / 2,
        median_low,
        median_high,
    )


@dataclass(frozen=True)
class LogRank:
    """Result of a log-rank test.

    Attributes:
      groups: [group], the distinct groups, sorted.
      n_runs: [group], number of runs.
      observed: [group], number of runs that reached the event.
      expected: [group], expected number of such runs if all groups had equal risk in each stratum.
      chi_square: the test statistic.
      degrees: degrees of freedom of the statistic. 0 means that no stratum has an event at which
        two groups are observed.
      p: p-value from the chi-square distribution; 1 if `degrees` is 0.
      p_permutation: p-value from permutations within strata; nan without permutations.
    """

    groups: Shaped[np.ndarray, " group"]
    n_runs: Int[np.ndarray, " group"]
    observed: Float[np.ndarray, " group"]
    expected: Float[np.ndarray, " group"]
    chi_square: float
    degrees: int
    p: float
    p_permutation: float


def log_rank(
    times: Shaped[np.ndarray, " run"],
    observed: Bool[np.ndarray, " run"],
    groups: Shaped[np.ndarray, " run"],
    strata: Shaped[np.ndarray, " run"] | None = None,
    *,
    n_permutations: int = 0,
    seed: int = 0,
    clusters: Shaped[np.ndarray, " run"] | None = None,
) -> LogRank:
    """Test whether all groups of runs have the same distribution of event times, within strata.

    At each event time of a stratum, the numbers of events per group are compared with their
    expectation under equal risk of all runs. Differences and their hypergeometric covariances are
    summed over times and strata. The statistic is the quadratic form of the summed differences.

    The chi-square distribution is an approximation for many independent runs. The p-value from
    permutations is also valid for few runs. The null hypothesis of the permutations is that the
    groups of a stratum are exchangeable. Both p-values ignore the direction of differences.

    Args:
      times: [run], the time of the event, or the last observed time if the run is censored.
      observed: [run], whether the run reached the event.
      groups: [run], the group of each run, such as its weight decay.
      strata: [run], the stratum of each run, such as its world. By default, there is one stratum.
      n_permutations: number of random permutations; 0 means no permutation test.
      seed: seed of the permutations.
      clusters: [run], the cluster of each run. Runs of one stratum and cluster are permuted
        together and must have the same group. For example, runs of a cluster share their training
        data. By default, every run is a separate cluster.

    Raises:
      InputError: there are no runs, the lengths differ, a time is not finite, there are fewer than
        two groups, or a cluster has several groups.

    Sources: Mantel 1966; Peto and Peto 1972; Klein and Moeschberger 2003, *Survival Analysis*,
    sections 7.3 (several groups) and 7.5 (strata).
    """
    strata = np.zeros(len(times), np.int64) if strata is None else strata
    clusters = np.arange(len(times)) if clusters is None else clusters
    _check(times, observed, groups=groups, strata=strata, clusters=clusters)
    names, group = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        raise InputError(f"all runs are in group {names[0]}; pass runs of at least two groups")
    rng = np.random.default_rng(seed)
    difference, covariance = np.zeros(len(names)), np.zeros((len(names), len(names)))
    for stratum in np.unique(strata):
        here = strata == stratum
        drawn = _permuted(group[here], clusters[here], n_permutations, rng)
        found = _in_stratum(times[here], observed[here], np.eye(len(names))[drawn])
        difference, covariance = difference + found[0], covariance + found[1]
    # The groups as they are come first, then their permutations.
    chi_square = np.einsum(
        "...g,...gh,...h", difference, np.linalg.pinv(covariance, _SMALL, True), difference
    )
    degrees = int(np.linalg.matrix_rank(covariance[0], hermitian=True))
    events = np.bincount(group, observed, len(names))
    return LogRank(
        names,
        np.bincount(group, minlength=len(names)),
        events,
        events - difference[0],
        float(chi_square[0]),
        degrees,
        float(chdtrc(degrees, chi_square[0])) if degrees else 1.0,
        # Permutations with the same groups differ by rounding; they count as equal.
        p_value(chi_square[0] - 1e-9 * (1 + chi_square[0]), chi_square[1:])
        if n_permutations
        else np.nan,
    )


def draw_survival(
    ax: Axes,
    times: Shaped[np.ndarray, " run"],
    observed: Bool[np.ndarray, " run"],
    groups: Shaped[np.ndarray, " run"],
    *,
    colors: Sequence[str] = SERIES_COLORS,
) -> dict[Any, SurvivalCurve]:
    """Draw the Kaplan-Meier curve of each group with its interval.

    A tick marks a time at which runs were censored. The label of a curve contains the group, the
    number of runs that reached the event, and the number of all runs.

    Args:
      ax: the axes.
      times: [run], the time of the event, or the last observed time if the run is censored.
      observed: [run], whether the run reached the event.
      groups: [run], the group of each run. Curves are drawn in sorted order of groups.
      colors: colors of the curves. The colors are repeated if there are more groups than colors.

    Returns:
      The curve of each group.

    Raises:
      InputError: there are no runs, the lengths differ, or a time is not finite.
    """
    _check(times, observed, groups=groups)
    curves = {}
    for number, name in enumerate(np.unique(groups)):
        here, color = groups == name, colors[number % len(colors)]
        curve = curves[name.item()] = kaplan_meier(times[here], observed[here])
        at = np.concatenate([[0.0], curve.times])
        shares, low, high = (
            np.concatenate([[1.0], ends]) for ends in (curve.survival, curve.low, curve.high)
        )
        label = f"{name}: {curve.n_events} of {curve.n_runs}"
        ax.fill_between(at, low, high, step="post", color=color, alpha=0.15, linewidth=0)
        ax.step(at, shares, where="post", color=color, label=label)
        lost = np.isin(curve.times, times[here & ~observed])
        ax.plot(curve.times[lost], curve.survival[lost], "|", color=color, markersize=9)
    ax.set_ylim(-0.03, 1.03)
    return curves


_SMALL = 1e-12
"""Differences below this bound are rounding errors of shares and covariances."""


def _permuted(
    group: np.ndarray, clusters: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the groups as they are, and permutations between clusters, [1 + count, run]."""
    _, first, index = np.unique(clusters, return_index=True, return_inverse=True)
    if (group[first][index] != group).any():
        raise InputError(
            "a cluster contains runs of several groups; all runs of a cluster must have the same "
            "group"
        )
    drawn = np.tile(group[first], (1 + count, 1))
    drawn[1:] = rng.permuted(drawn[1:], axis=1)
    return drawn[:, index]


def _in_stratum(
    times: np.ndarray, observed: np.ndarray, member: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return observed less expected events [..., group], and their covariances.

    Args:
      times: [run], as for `log_rank`.
      observed: [run], as for `log_rank`.
      member: [..., run, group], 1 for the group of the run and 0 for others.
    """
    at = np.unique(times[observed])[:, None]
    falls = ((times == at) & observed).astype(np.float64)
    there = (times >= at).astype(np.float64)
    events, runs = falls.sum(1), there.sum(1)
    shares = there @ member / runs[:, None]
    difference = (falls @ member - events[:, None] * shares).sum(-2)
    weights = events * (runs - events) / np.maximum(runs - 1, 1)
    products = np.einsum("t,...tg,...th->...gh", weights, shares, shares)
    return difference, np.einsum("t,...tg->...g", weights, shares)[..., None] * np.eye(
        member.shape[-1]
    ) - products


def _first(times: np.ndarray, where: np.ndarray) -> float:
    """Return the first time at which `where` holds; inf if it never holds."""
    return float(times[where][0]) if where.any() else float("inf")


def _check(times: np.ndarray, observed: np.ndarray, **others: np.ndarray) -> None:
    for name, values in {"observed": observed, **others}.items():
        if len(values) != len(times):
            raise InputError(
                f"times contains {len(times)} runs, and {name} contains {len(values)}; the numbers "
                "of runs must be equal"
            )
    if not len(times):
        raise InputError("there are no runs; pass the times of at least one run")
    if not np.isfinite(times).all():
        raise InputError(
            "a time is not finite; for a run without the event, pass the last observed time, and "
            "False in observed"
        )
