"""Numbers that follow from saved metrics and scores: faithfulness, areas, AUROC and stability.

- Faithfulness of a circuit C is `f = (m_C - m_0) / (m_full - m_0)`, with the metric `m_0` of the
  empty circuit and `m_full` of the whole model. It may lie above 1 or below 0.
- CPR is the area under f, and CMD is the area under |1 - f|, over the share of edges in the
  circuit.
- AUROC and average precision compare scores with known edges.
- The Jaccard index compares two circuits.

Everything here is numpy.

Sources: Mueller et al. 2025, "MIB: a mechanistic interpretability benchmark", arXiv 2504.13151,
section 3 (faithfulness, CPR, CMD), and its code (trapezoids).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata

from implicit_reasoning.errors import InputError

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The shares of edges at which MIB measures circuits."""

_SMALL = 1_000  # below this number of edges, the first shares of MIB are less than one edge


def faithfulness(
    circuit: Float[np.ndarray, "*batch"],
    empty: Float[np.ndarray, "*#batch"] | float,
    full: Float[np.ndarray, "*#batch"] | float,
) -> Float[np.ndarray, "*batch"]:
    """Return the faithfulness of circuits.

    Args:
      circuit: the mean metric of each circuit.
      empty: the mean metric of the empty circuit.
      full: the mean metric of the whole model.

    Returns:
      The faithfulness. It is nan where `full` equals `empty`.
    """
    span = np.asarray(full, np.float64) - empty
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (np.asarray(circuit, np.float64) - empty) / span
    return np.where(span == 0, np.nan, found)


class CurvePoints(NamedTuple):
    """The sizes of circuits at which a curve is measured.

    Attributes:
      sizes: the numbers of edges.
      fractions: the shares of edges, which are the horizontal axis of areas.
    """

    sizes: Int[np.ndarray, " point"]
    fractions: Float[np.ndarray, " point"]


def curve_points(n_edges: int) -> CurvePoints:
    """Return the sizes of circuits at which a curve is measured.

    From 1,000 edges on, the sizes and shares are those of MIB: `int(fraction * n_edges)` edges for
    each of `FRACTIONS`. In smaller graphs, the first shares of MIB are less than one edge. Such
    graphs have the sizes 0, 1, 2, 4, ... in addition, and each share is `size / n_edges`.

    Args:
      n_edges: the number of edges that a circuit can contain.

    Raises:
      InputError: there is no edge.
    """
    if n_edges < 1:
        raise InputError(f"n_edges is {n_edges}; a curve needs a graph with at least 1 edge")
    sizes = [int(fraction * n_edges) for fraction in FRACTIONS]
    if n_edges >= _SMALL:
        return CurvePoints(np.array(sizes), np.array(FRACTIONS))
    powers = [2**power for power in range(n_edges.bit_length()) if 2**power <= n_edges]
    found = np.unique([0, *sizes, *powers])
    return CurvePoints(found, found / n_edges)


def circuit_performance_ratio(
    fractions: Float[np.ndarray, " point"], faithful: Float[np.ndarray, "*batch point"]
) -> Float[np.ndarray, "*batch"]:
    """Return CPR, the area under the curve of faithfulness. More is better.

    Args:
      fractions: the shares of edges, as in `curve_points`.
      faithful: the faithfulness of the circuit at each point.
    """
    return np.asarray(np.trapezoid(faithful, fractions, axis=-1))


def circuit_model_distance(
    fractions: Float[np.ndarray, " point"], faithful: Float[np.ndarray, "*batch point"]
) -> Float[np.ndarray, "*batch"]:
    """Return CMD, the area between the curve of faithfulness and 1. 0 is best.

    Args:
      fractions: the shares of edges, as in `curve_points`.
      faithful: the faithfulness of the circuit at each point. As in MIB, the trapezoids connect the
        values of `|1 - f|`.
    """
    return np.asarray(np.trapezoid(np.abs(1 - faithful), fractions, axis=-1))


def size_at(
    sizes: Int[np.ndarray, " point"],
    faithful: Float[np.ndarray, "*batch point"],
    level: float = 0.9,
) -> Float[np.ndarray, "*batch"]:
    """Return the smallest measured size that is faithful enough; nan if there is none.

    Args:
      sizes: the numbers of edges, in ascending order.
      faithful: the faithfulness of the circuit of each size.
      level: the least faithfulness.
    """
    reached = np.asarray(faithful) >= level
    return np.where(reached.any(-1), np.asarray(sizes)[reached.argmax(-1)], np.nan)


def auroc(scores: Float[np.ndarray, " edge"], known: Bool[np.ndarray, " edge"]) -> float:
    """Return the area under the ROC curve of scores, with ties counted one half.

    This is the probability that a random edge of the known circuit has a higher score than a random
    other edge.

    Args:
      scores: the scores, such as absolute effects.
      known: whether each edge belongs to the known circuit.

    Returns:
      The area, or nan if all edges or no edges are known.
    """
    positive, negative = int(known.sum()), int((~known).sum())
    if not positive or not negative:
        return float("nan")
    ranks = rankdata(scores)[known].sum()
    return float((ranks - positive * (positive + 1) / 2) / (positive * negative))


def average_precision(
    scores: Float[np.ndarray, " edge"], known: Bool[np.ndarray, " edge"]
) -> float:
    """Return the average precision: precision at each threshold, weighted by the gain in recall.

    Edges with equal scores are selected together, as in scikit-learn's `average_precision_score`.

    Args:
      scores: the scores, such as absolute effects.
      known: whether each edge belongs to the known circuit.

    Returns:
      The average precision, or nan if no edge is known.
    """
    if not known.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    hits, count = known[order].cumsum(), np.arange(1, len(order) + 1)
    last = np.append(np.diff(scores[order]) != 0, True)  # the last edge of each group of ties
    gained = np.diff(hits[last], prepend=0)
    return float((gained * hits[last] / count[last]).sum() / hits[-1])


class Stability(NamedTuple):
    """The similarity of circuits that were found in bootstrap resamples of the examples.

    Attributes:
      mean: the mean Jaccard index.
      low: the lower end of the interval of percentiles.
      high: the upper end.
    """

    mean: float
    low: float
    high: float


def jaccard(
    one: Bool[np.ndarray, "*batch edge pos"], other: Bool[np.ndarray, "*batch edge pos"]
) -> Float[np.ndarray, "*batch"]:
    """Return the Jaccard index of two circuits: shared edges divided by edges in either.

    Two empty circuits have the index 1.
    """
    shared, either = (one & other).sum((-2, -1)), (one | other).sum((-2, -1))
    return np.where(either == 0, 1.0, shared / np.maximum(either, 1))


def stability(
    resampled: Bool[np.ndarray, "resample edge pos"],
    circuit: Bool[np.ndarray, "edge pos"] | None = None,
    *,
    level: float = 0.95,
) -> Stability:
    """Return the Jaccard index of circuits from bootstrap resamples, with its interval.

    Args:
      resampled: the circuit of each resample.
      circuit: the circuit of all examples, with which the others are compared. By default, all
        pairs of resamples are compared.
      level: the share of Jaccard indices between the ends of the interval.

    Raises:
      InputError: there are no resamples, or there is one resample and no circuit.
    """
    if len(resampled) < (2 if circuit is None else 1):
        raise InputError(f"there are {len(resampled)} resamples; stability needs at least 2")
    if circuit is None:
        one, other = np.triu_indices(len(resampled), 1)
        found = jaccard(resampled[one], resampled[other])
    else:
        found = jaccard(resampled, np.broadcast_to(circuit, resampled.shape))
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Stability(float(found.mean()), float(low), float(high))
