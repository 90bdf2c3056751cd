"""Circuits through and around a position cut one way of the first token, and only this way."""

import numpy as np

from implicit_reasoning.analysis.circuits.routes import around, through
from implicit_reasoning.model import Spec
from implicit_reasoning.model.graph import EdgeGraph

GRAPH = EdgeGraph(Spec(d_vocab=5, n_ctx=4, n_layers=4, d_model=4, n_heads=2, d_mlp=4), n_pos=4)


def cut(circuit):
    """Return the edges and positions that a circuit lacks."""
    return {(str(GRAPH.edges[edge]), int(pos)) for edge, pos in np.argwhere(~circuit)}


def test_around_lacks_what_late_heads_read_of_early_blocks_at_the_position():
    lacks = cut(around(GRAPH, 2))
    assert {pos for _, pos in lacks} == {2}
    assert ("m0->a2.h0<v>", 2) in lacks and ("a1.h1->a3.h0<k>", 2) in lacks
    kept = ("input->a2.h0<v>", "a2.h0->a3.h0<v>", "m0->a1.h0<v>", "m0->a2.h0<q>", "m0->m2")
    assert not {(name, 2) for name in kept} & lacks


def test_through_lacks_early_blocks_at_the_end_and_late_reads_elsewhere():
    lacks = cut(through(GRAPH, 2))
    assert {pos for _, pos in lacks} == {0, 1, 3}
    assert ("m0->m2", 3) in lacks and ("m1->logits", 3) in lacks
    assert {("input->a2.h0<v>", 0), ("m0->a3.h1<k>", 1)} <= lacks
    kept = {("m2->logits", 3), ("input->a0.h0<v>", 0), ("m0->a1.h0<v>", 1), ("m0->a2.h0<v>", 2)}
    assert not kept & lacks
