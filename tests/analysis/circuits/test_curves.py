"""Areas, AUROC, average precision and stability equal counts by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from implicit_reasoning.analysis.circuits import curves
from implicit_reasoning.errors import InputError


def test_faithfulness_is_0_at_the_empty_and_1_at_the_full_circuit():
    found = curves.faithfulness(np.array([2.0, 5.0, 8.0, 11.0]), 2.0, 8.0)
    np.testing.assert_allclose(found, [0, 0.5, 1, 1.5])
    assert np.isnan(curves.faithfulness(np.array([1.0]), 2.0, 2.0)).all()


def test_points_of_a_large_graph_are_those_of_mib():
    points = curves.curve_points(12_345)
    assert points.sizes.tolist() == [12, 24, 61, 123, 246, 617, 1234, 2469, 6172, 12345]
    assert tuple(points.fractions) == curves.FRACTIONS


def test_points_of_a_small_graph_begin_with_no_edge():
    points = curves.curve_points(100)
    assert points.sizes.tolist() == [0, 1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 64, 100]
    np.testing.assert_allclose(points.fractions, points.sizes / 100)
    with pytest.raises(InputError, match="at least 1 edge"):
        curves.curve_points(0)


def test_areas_are_trapezoids():
    fractions = np.array([0.0, 0.25, 1.0])
    faithful = np.array([[0.0, 1.0, 1.0], [0.0, 2.0, 1.0]])
    areas = curves.circuit_performance_ratio(fractions, faithful)
    np.testing.assert_allclose(areas, [0.125 + 0.75, 0.25 + 1.125])
    # |1 - f| is 1, 0, 0 and 1, 1, 0: too much is as far from the model as too little.
    distances = curves.circuit_model_distance(fractions, faithful)
    np.testing.assert_allclose(distances, [0.125, 0.25 + 0.375])


def test_the_first_size_that_is_faithful_enough():
    sizes = np.array([1, 2, 4, 8])
    faithful = np.array([[0.1, 0.9, 0.5, 1.0], [0.1, 0.2, 0.3, 0.4]])
    found = curves.size_at(sizes, faithful)
    assert found[0] == 2 and np.isnan(found[1])


# Few different values, so that most draws contain ties.
edges = st.lists(st.tuples(st.integers(-2, 2), st.booleans()), min_size=2, max_size=12)


@given(edges)
def test_auroc_is_the_share_of_pairs(drawn):
    scores, known = (np.array(x) for x in zip(*drawn, strict=True))
    pairs = list(itertools.product(scores[known], scores[~known]))
    found = curves.auroc(scores.astype(float), known)
    if not pairs:
        assert np.isnan(found)
    else:
        wanted = np.mean([(one > other) + (one == other) / 2 for one, other in pairs])
        assert found == pytest.approx(wanted)


@given(edges)
def test_average_precision_is_a_sum_over_thresholds(drawn):
    scores, known = (np.array(x) for x in zip(*drawn, strict=True))
    found = curves.average_precision(scores.astype(float), known)
    if not known.any():
        assert np.isnan(found)
        return
    total, recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        chosen = scores >= threshold
        new = known[chosen].sum() / known.sum()
        total += (new - recall) * known[chosen].mean()
        recall = new
    assert found == pytest.approx(total)


def test_average_precision_of_the_example_of_scikit_learn():
    """The example in the documentation of `average_precision_score`, which gives 0.83."""
    known = np.array([False, False, True, True])
    scores = np.array([0.1, 0.4, 0.35, 0.8])
    assert curves.average_precision(scores, known) == pytest.approx(5 / 6)
    assert curves.auroc(scores, known) == pytest.approx(0.75)


def test_stability_of_circuits():
    circuits = np.zeros((3, 4, 1), bool)
    circuits[0, :2] = circuits[1, 1:3] = circuits[2, :2] = True
    pairs = curves.stability(circuits)  # 1/3, 1 and 1/3
    assert pairs.mean == pytest.approx(5 / 9)
    assert (pairs.low, pairs.high) == pytest.approx((1 / 3, 1 - 0.05 / 3 * 2), abs=0.05)
    whole = curves.stability(circuits, circuits[0])
    assert whole.mean == pytest.approx((1 + 1 / 3 + 1) / 3)
    assert curves.jaccard(np.zeros((2, 1), bool), np.zeros((2, 1), bool)) == 1
    with pytest.raises(InputError, match="at least 2"):
        curves.stability(circuits[:1])
