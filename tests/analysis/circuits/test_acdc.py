"""ACDC equals a loop over edges, with a whole forward pass for each."""

import functools

import jax
import numpy as np
import pytest

from implicit_reasoning.analysis.circuits import acdc
from implicit_reasoning.errors import InputError
from tests.analysis.circuits import tiny

TAUS = np.array([0.0005, 0.004, 1.0], np.float32)


def orders(by_position):
    """Return two orders of edges; the second mixes the receivers of a block."""
    found = acdc.visiting_orders(tiny.GRAPH, 2, seed=3, by_position=by_position)
    n_pos = tiny.GRAPH.n_pos if by_position else 1
    block = tiny.GRAPH.receiver[found[1] // n_pos] // (3 * tiny.SPEC.n_heads + 1)
    mixed = np.random.default_rng(0).random(len(block))
    return np.stack([found[0], found[1][np.lexsort((mixed, -block))]])


@functools.cache
def found(by_position):
    def run(params, runs):
        arguments = tiny.MODEL, params, tiny.GRAPH, runs, None, TAUS, orders(by_position)
        return acdc.acdc(*arguments, by_position=by_position)

    return jax.device_get(jax.jit(run)(tiny.params(), tiny.runs()))


def distance(mask):
    """Return the mean KL divergence from the clean run, by numpy."""
    every = np.ones((len(tiny.GRAPH.edges), 1), np.float32)
    both = tiny.masked([every, mask]).astype(np.float64)
    clean, patched = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in both)
    return (np.exp(clean) * (clean - patched)).sum(-1).mean()


@pytest.mark.parametrize("by_position", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_it_is_a_loop_over_edges(by_position):
    n_pos = tiny.GRAPH.n_pos if by_position else 1
    got = found(by_position)
    tau, order = 1, 1
    mask, now, margins = np.ones((len(tiny.GRAPH.edges), n_pos), np.float32), 0.0, []
    for cell in orders(by_position)[order]:
        mask.flat[cell] = 0
        then = distance(mask)
        margins.append(abs(then - now - TAUS[tau]))
        if then - now < TAUS[tau]:
            now = then
        else:
            mask.flat[cell] = 1
    assert min(margins) > 1e-5  # no decision depends on rounding
    alive = tiny.GRAPH.alive if by_position else tiny.GRAPH.alive.any(1, keepdims=True)
    wanted = (mask == 1) & alive
    assert 5 < wanted.sum() < alive.sum() - 5
    np.testing.assert_array_equal(got.circuit[tau, order], wanted)
    assert got.metric[tau, order] == pytest.approx(now, abs=1e-5)


def test_thresholds_and_orders_matter():
    got = found(True)
    sizes = got.circuit.sum((2, 3))
    assert (np.diff(sizes, axis=0) < 0).all()  # a larger threshold leaves a smaller circuit
    assert (got.circuit[1, 0] != got.circuit[1, 1]).any()
    scores = acdc.thresholds_of(got.circuit, TAUS)
    patched = ~got.circuit
    first = patched[0]
    assert (scores[first] == TAUS[0]).all()
    assert (scores[~patched.any(0)] == np.inf).all()
    assert (scores[~first & patched[1]] == TAUS[1]).all()


def test_orders_go_from_the_logits_to_the_embeddings():
    found = acdc.visiting_orders(tiny.GRAPH, 3, seed=0)
    receivers = tiny.GRAPH.receiver[found // tiny.GRAPH.n_pos]
    assert (np.diff(receivers, axis=1) <= 0).all()
    assert len({tuple(order) for order in found}) == 3
    edges = [str(tiny.GRAPH.edges[cell // 3]) for cell in found[0][:3]]
    assert edges == ["m1->logits", "a1.h1->logits", "a1.h0->logits"]


def test_wrong_orders_are_refused():
    arguments = tiny.MODEL, tiny.params(), tiny.GRAPH, tiny.runs(), tiny.metric, TAUS
    order = acdc.visiting_orders(tiny.GRAPH, 1, seed=0)
    with pytest.raises(InputError, match="comes before an edge into a later block"):
        acdc.acdc(*arguments, order[:, ::-1])
    with pytest.raises(InputError, match=r"each of the \d+ edges that are alive once"):
        acdc.acdc(*arguments, order[:, 1:])
