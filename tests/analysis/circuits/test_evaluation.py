"""Runs of circuits equal masks by hand, and what a second route hides is found by knock-outs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis.circuits import evaluation, selection
from tests.analysis.circuits import tiny

CIRCUIT = tiny.GRAPH.alive & (np.random.default_rng(0).random(tiny.GRAPH.alive.shape) < 0.8)
SETS = CIRCUIT & (np.random.default_rng(1).random((2, *CIRCUIT.shape)) < 0.1)
CELLS = np.argwhere(CIRCUIT)[-12::2]
FEW = np.zeros_like(CIRCUIT)
FEW[tuple(CELLS.T)] = True


@functools.cache
def found():
    """Return the metrics of all functions that run circuits, from one program."""

    def run(params, runs):
        of = tiny.MODEL, params, tiny.GRAPH, runs, tiny.metric
        ranks = selection.top_n(tiny.GRAPH, jnp.asarray(tiny.GRAPH.alive, jnp.float32))
        circuits = selection.nested_circuits(ranks, np.array([0, 3, 10**6]))
        return {
            "nested": evaluation.circuit_metrics(*of, circuits),
            "knock-outs": evaluation.completeness(*of, CIRCUIT, SETS),
            "minimality": evaluation.minimality(*of, FEW, SETS & FEW, size=len(CELLS) + 2),
        }

    return jax.device_get(jax.jit(run)(tiny.params(), tiny.runs()))


def test_circuits_between_none_and_all_edges():
    first = np.zeros(tiny.GRAPH.alive.shape)
    first.flat[np.flatnonzero(tiny.GRAPH.alive)[:3]] = 1
    wanted = tiny.metrics([np.zeros((1, 1)), first, np.ones((1, 1))])
    np.testing.assert_allclose(found()["nested"], wanted, atol=1e-5)


def test_knock_outs_are_masks():
    got = found()["knock-outs"]
    np.testing.assert_allclose(got.circuit, tiny.metrics(CIRCUIT & ~SETS), atol=1e-5)
    np.testing.assert_allclose(got.model, tiny.metrics(~SETS), atol=1e-5)
    assert np.abs(got.circuit - got.model).min() > 0.01
    wanted = np.abs(got.circuit.mean(1) - got.model.mean(1))
    np.testing.assert_allclose(got.incompleteness, wanted, rtol=1e-6)


def test_minimality_is_the_largest_change_by_one_edge():
    got = found()["minimality"]
    assert np.isfinite(got.effect).tolist() == [True] * len(CELLS) + [False] * 2
    np.testing.assert_array_equal(np.transpose(got[:2])[: len(CELLS)], CELLS)
    assert np.nanmax(got.effect) > 0.1
    for (edge, pos), effect in zip(CELLS, got.effect, strict=False):
        one = np.zeros_like(CIRCUIT)
        one[edge, pos] = True
        changes = []
        for removed in [np.zeros_like(FEW), *SETS]:
            kept = FEW & ~removed
            both = tiny.metrics([kept | one, kept & ~one]).mean(1)
            changes.append(abs(both[0] - both[1]))
        assert effect == pytest.approx(max(changes), abs=1e-5)


def test_random_knock_outs_are_edges_of_the_circuit():
    sets = np.asarray(evaluation.random_knock_outs(jax.random.key(0), CIRCUIT, 50, share=0.3))
    assert not (sets & ~CIRCUIT).any()
    assert abs(sets[:, CIRCUIT].mean() - 0.3) < 0.03


def test_edges_of_senders_that_do_not_change_are_not_scored():
    change = np.zeros((2, 3, len(tiny.GRAPH.senders), 8), np.float32)
    change[1, 1, 0] = change[0, 2, 3] = 1
    change[0, 0, 1] = 1e-9  # rounding
    got = np.asarray(evaluation.scorable(tiny.GRAPH, jnp.asarray(change)))
    wanted = np.zeros_like(got)
    wanted[tiny.GRAPH.sender == 0, 1] = wanted[tiny.GRAPH.sender == 3, 2] = True
    np.testing.assert_array_equal(got, wanted & tiny.GRAPH.alive)
    together = evaluation.scorable(tiny.GRAPH, jnp.asarray(change), by_position=False)
    np.testing.assert_array_equal(together[:, 0], np.isin(tiny.GRAPH.sender, (0, 3)))
