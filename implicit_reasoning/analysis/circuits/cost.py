"""The cost of scores of edges, before anything runs.

The numbers are FLOPs of matrix products. One multiplication and one addition are two FLOPs. A
backward pass counts as much as its forward pass, because no gradient of a weight is computed.
"""

from __future__ import annotations

from collections.abc import Mapping

from implicit_reasoning.analysis.circuits.scores import NODES
from implicit_reasoning.errors import InputError
from implicit_reasoning.model.blocks import find_block
from implicit_reasoning.model.edge_patches import edge_cells
from implicit_reasoning.model.graph import EdgeGraph

_BACKWARD = 2  # a forward and a backward pass cost this many forward passes

BY_ACCURACY = ("exact", "EAP-IG activations", "mask gradients", "EAP-IG inputs", "EAP")
"""The methods from the most to the least expensive approximation of the exact scores.

`fitting_method` chooses the first one within a budget. RelP costs as much as EAP. It has rules of
its own for norms and products, so it has no place in this order.
"""


def score_costs(
    graph: EdgeGraph, n_pairs: int, *, by_position: bool = True, nodes: int = NODES
) -> Mapping[str, int]:
    """Estimate the FLOPs of the scores of all edges, for each method of `scores`.

    Args:
      graph: the edge graph.
      n_pairs: the number of prompt pairs.
      by_position: whether exact scores patch positions separately. The estimates always do.
      nodes: the number of points of an average.

    Returns:
      The FLOPs by name of the method, with the runs of both prompts of every pair.
    """
    run = _run(graph)
    pairs = 2 * _senders(graph)
    estimate = _BACKWARD * run + 2 * graph.spec.d_model * int(graph.alive.sum())
    groups = 2 * graph.spec.depth + 1
    costs = {
        "exact": pairs + _exact(graph, by_position),
        "EAP": pairs + estimate,
        "RelP": pairs + estimate,
        "EAP-IG inputs": pairs + nodes * estimate,
        "EAP-IG activations": pairs + groups * nodes * estimate,
        "mask gradients": pairs + nodes * _BACKWARD * (run + _exchange(graph)),
    }
    return {name: n_pairs * flops for name, flops in costs.items()}


def fitting_method(costs: Mapping[str, int], budget: float) -> str:
    """Return the most exact method whose cost is within a budget.

    Args:
      costs: the FLOPs of each method, as from `score_costs`.
      budget: the largest number of FLOPs.

    Raises:
      InputError: no method is within the budget.
    """
    for method in BY_ACCURACY:
        if costs[method] <= budget:
            return method
    cheapest = min(costs, key=lambda name: costs[name])
    raise InputError(
        f"no method fits {budget:.3g} FLOPs; the cheapest, {cheapest}, needs {costs[cheapest]:.3g}"
    )


def _run(graph: EdgeGraph) -> int:
    """Return the FLOPs of a forward pass on one prompt, with logits at the last position."""
    spec, n_pos = graph.spec, graph.n_pos
    block = find_block(spec.block)
    whole = (spec.depth - 1) * block.flops(spec, n_pos, n_pos) + block.flops(spec, n_pos, 1)
    return whole + _readout(graph)


def _senders(graph: EdgeGraph) -> int:
    """Return the FLOPs of a run that computes all blocks at all positions."""
    block = find_block(graph.spec.block)
    return graph.spec.depth * block.flops(graph.spec, graph.n_pos, graph.n_pos) + _readout(graph)


def _readout(graph: EdgeGraph) -> int:
    return 2 * graph.spec.d_model * graph.spec.d_vocab


def _exchange(graph: EdgeGraph) -> int:
    """Return the FLOPs of the sums over senders in the inputs of all receivers."""
    return 2 * graph.spec.d_model * graph.n_pos * len(graph.edges)


def _exact(graph: EdgeGraph, by_position: bool) -> int:
    """Return the FLOPs of `model.edge_patches.edge_logits` for one pair."""
    spec, n_pos, depth = graph.spec, graph.n_pos, graph.spec.depth
    block = find_block(spec.block)
    heads = spec.n_heads * spec.d_head
    total = 0
    for layer in range(depth):
        # The inputs of all senders' runs are projected once for all heads.
        senders = graph.senders_before(graph.receivers_of(layer, "q").start)
        total += 3 * 2 * spec.d_model * heads * senders * n_pos
    cells = edge_cells(graph, by_position=by_position)
    for edge, pos in zip(*cells, strict=True):
        receiver = graph.edges[edge].receiver
        total += _readout(graph)
        if receiver == "logits":
            continue
        layer, first = int(receiver[1:].partition(".")[0]), int(pos)
        # Own positions: those that differ from the clean run after the receiver's block.
        own = 1 if by_position and receiver.startswith("m") else n_pos - first
        if layer == depth - 1:
            own = 1
        mlp = 4 * spec.d_model * spec.d_mlp * own
        written = 2 * spec.d_head * spec.d_model * own
        mixing = 4 * spec.d_head * n_pos * own
        total += mlp if receiver.startswith("m") else mlp + written + mixing
        for later in range(layer + 1, depth):
            after = n_pos - first
            total += block.flops(spec, after, 1 if later == depth - 1 else after)
    return total
