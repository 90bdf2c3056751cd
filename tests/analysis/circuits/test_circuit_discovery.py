"""Circuits that are found on one half of the pairs keep the answers of the other half."""

import functools
import unittest.mock

import numpy as np
import pytest
import xarray as xr

from implicit_reasoning.analysis import measure
from implicit_reasoning.analysis.circuits.circuit_discovery import (
    BASELINES,
    ORDERS,
    CircuitDiscovery,
    half_of_clusters,
)
from implicit_reasoning.analysis.circuits.discovery_figures import LEVEL, summary
from tests.analysis.planted_subject import known


@functools.cache
def discovered():
    instrument = CircuitDiscovery(pairs="exchange_e1", groups=("train_ii",))
    with unittest.mock.patch.object(CircuitDiscovery, "max_pairs", 24):
        return instrument, measure(instrument, known("idle_copy").subject, progress=False)


def carriers():
    [route] = known("idle_copy").routes
    return {str(edge) for edge, token in route.carried if token == "e1"}


@pytest.mark.slow
def test_the_first_edges_are_those_of_the_circuit():
    """The order by exact scores begins with the edges that carry the exchanged token."""
    _, result = discovered()
    rank = result["rank"].isel(step=0).sel(order="exact").min("pos")
    first = rank.sortby(rank)["edge"].values[: len(carriers())]
    assert set(first) == carriers()


@pytest.mark.slow
def test_small_circuits_are_faithful_and_the_baselines_are_not():
    _, result = discovered()
    means = result.faithfulness.isel(step=0, group=0)
    n_carry = len(carriers())
    enough = {
        str(order): int(result["size"][means.sel(order=order) >= LEVEL][0]) for order in ORDERS
    }
    assert all(n_carry <= enough[order] <= 2 * n_carry for order in ORDERS[:2])
    assert all(enough[order] > 4 * n_carry for order in BASELINES)
    ends = result.isel(step=0, group=0, size=[0, -1])
    for order in ORDERS:
        np.testing.assert_allclose(ends.faithfulness.sel(order=order), [0, 1], atol=1e-4)
        np.testing.assert_array_equal(ends.kept.sel(order=order), [0, 1])


@pytest.mark.slow
def test_the_summary_reads_the_curves():
    _, result = discovered()
    line = np.linspace(0, 1, 5)
    curves = xr.Dataset(
        {"faithfulness": (("order", "size"), [line, np.minimum(2 * line, 1)])},
        {"order": ["slow", "fast"], "size": 10 * np.arange(5)},
    )
    numbers = summary(curves.assign(faithfulness_n=xr.full_like(curves.faithfulness, 20)))
    np.testing.assert_allclose(numbers.cpr, [0.5, 0.75])
    np.testing.assert_allclose(numbers.cmd, [0.5, 0.25])
    np.testing.assert_array_equal(numbers.smallest, [40, 20])
    few = summary(curves.assign(faithfulness_n=xr.full_like(curves.faithfulness, 19)))
    assert few.smallest.isnull().all() and summary(result).sizes["order"] == len(ORDERS)


def test_no_cluster_is_in_both_halves():
    clusters = np.random.default_rng(0).integers(0, 9, 60)
    candidates = np.arange(60) < 40
    halves = half_of_clusters(clusters, candidates)
    assert halves["finds"][:40].any() and not halves["finds"][40:].any()
    assert not set(clusters[halves["finds"]]) & set(clusters[~halves["same_half"]])
    inside = set(clusters[candidates])
    assert len(set(clusters[halves["finds"]])) == len(inside) // 2


@pytest.mark.slow
def test_the_figures_draw_every_order():
    instrument, result = discovered()
    curves, over_training = instrument.figures(result)
    for figure in (curves, over_training):
        assert len(figure.drawing.axes[0].get_lines()) >= len(ORDERS)
