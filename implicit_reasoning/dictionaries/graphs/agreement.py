"""How well predicted effects agree with observed ones: slope and correlation, by clusters.

The slope is that of observed on predicted effects, through the origin: it is 1 if effects are as
large as predicted on average, and 0 if they do not follow the prediction. Intervals are those of a
bootstrap that draws whole clusters.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

_RESAMPLES, _SEED = 1_000, 0


class Agreement(NamedTuple):
    """The agreement of predicted and observed effects.

    Attributes:
      slope: the slope of observed on predicted effects, through the origin; nan if all predicted
        effects are 0.
      slope_low, slope_high: its 95% interval; nan with fewer than two clusters.
      correlation: Pearson's correlation; nan if all predicted or all observed effects are equal.
      correlation_low, correlation_high: its 95% interval.
      n_clusters: the number of clusters.
    """

    slope: float
    slope_low: float
    slope_high: float
    correlation: float
    correlation_low: float
    correlation_high: float
    n_clusters: int


def agreement(
    predicted: Float[np.ndarray, " example"],
    observed: Float[np.ndarray, " example"],
    clusters: Int[np.ndarray, " example"],
    counted: Bool[np.ndarray, " example"],
) -> Agreement:
    """Compare predicted with observed effects.

    Args:
      predicted: the predicted effects.
      observed: the observed effects.
      clusters: the cluster of each example. Examples of a cluster are dependent.
      counted: whether each example counts.
    """
    p, o = (np.asarray(x, np.float64)[counted] for x in (predicted, observed))
    _, index = np.unique(clusters[counted], return_inverse=True)
    count = int(index.max(initial=-1)) + 1
    terms = np.stack([np.ones_like(p), p, o, p * p, p * o, o * o])
    member = index[:, None] == np.arange(count)[None]
    sums = terms @ member.astype(np.float64)  # [term, cluster]
    slope, correlation = _numbers(sums.sum(1, keepdims=True))[:, 0].tolist()
    low, high = np.full((2, 2), np.nan)
    if count > 1:
        random = np.random.default_rng(_SEED)
        times = random.multinomial(count, np.full(count, 1 / count), _RESAMPLES)
        low, high = np.stack([_ends(drawn) for drawn in _numbers(sums @ times.T)], 1)
    return Agreement(slope, low[0], high[0], correlation, low[1], high[1], count)


def _numbers(sums: Float[np.ndarray, "term resample"]) -> Float[np.ndarray, "two resample"]:
    """Return slope and correlation from sums of 1, p, o, pp, po and oo."""
    n, p, o, pp, po, oo = sums
    with np.errstate(divide="ignore", invalid="ignore"):
        of_p, of_o = n * pp - p * p, n * oo - o * o
        # Differences of sums of equal numbers are rounding errors.
        flat = (of_p <= 1e-10 * n * pp) | (of_o <= 1e-10 * n * oo)
        of_po = np.where(flat, np.nan, (n * po - p * o) / np.sqrt(of_p * of_o))
        return np.stack([po / pp, of_po])


def _ends(drawn: np.ndarray) -> tuple[float, float]:
    known = drawn[np.isfinite(drawn)]
    if not len(known):
        return np.nan, np.nan
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)
