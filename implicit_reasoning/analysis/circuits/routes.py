"""Circuits through and around a position: one way of a token to the answer is cut as a whole.

Early blocks are the first half of the blocks. A token at the first position can reach the answer
through a position in between: early blocks write there, and heads of late blocks read there. It can
also go around this position.

    circuits = np.stack([through(graph, 1), around(graph, 1)])
    evaluation.circuit_metrics(model, params, graph, runs, metric, circuits)

The pairs of prompts must differ at the first position only.
"""

from __future__ import annotations

import re

import numpy as np
from jaxtyping import Bool

from implicit_reasoning.model.graph import EdgeGraph

Circuit = Bool[np.ndarray, "edge pos"]


def around(graph: EdgeGraph, pos: int) -> Circuit:
    """Return all edges except those on which heads of late blocks read early blocks at `pos`."""
    early, late_reads = _parts(graph)
    found = np.ones(graph.alive.shape, bool)
    found[late_reads & early, pos] = False
    return found


def through(graph: EdgeGraph, pos: int) -> Circuit:
    """Return the edges of the way through `pos`.

    These are all edges except those of early blocks at the last position, and those on which heads
    of late blocks read other positions than `pos` and the last one.
    """
    early, late_reads = _parts(graph)
    found = np.ones(graph.alive.shape, bool)
    found[early, -1] = False
    others = np.setdiff1d(np.arange(graph.n_pos - 1), pos)
    found[np.ix_(late_reads, others)] = False
    return found


def _parts(graph: EdgeGraph) -> tuple[Bool[np.ndarray, " edge"], Bool[np.ndarray, " edge"]]:
    """Return which edges have a sender in an early block, and which are read by late heads."""
    half = graph.spec.depth // 2
    senders = np.array([_block(edge.sender) for edge in graph.edges])
    receivers = np.array([_block(edge.receiver) for edge in graph.edges])
    reads = np.array([edge.receiver.endswith(("<k>", "<v>")) for edge in graph.edges])
    return (senders >= 0) & (senders < half), reads & (receivers >= half)


def _block(node: str) -> int:
    """Return the block of a head, of one of its inputs or of an MLP; -1 for other nodes."""
    found = re.match(r"[am](\d+)", node)
    return int(found[1]) if found else -1
