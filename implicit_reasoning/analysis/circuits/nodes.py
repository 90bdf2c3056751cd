"""Scores of nodes: the effect of patching all edges of a sender together.

A node is a sender at a position, or at all positions. If all its edges carry the other value, the
node is patched as in activation patching. The node scores are a coarse version of the edge scores:
the graph has far fewer nodes than edges.

Source: Syed et al. 2023, "Attribution patching outperforms automated circuit discovery", section 2.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from implicit_reasoning.analysis.circuits.scores import Metric, Runs, Scores
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.graph import EdgeGraph, forward_edges

NodeScores = Float[Array, "sender pos batch"]
"""The effect of each node at each position, for each row. It is 0 where the node is not alive."""


def alive_nodes(graph: EdgeGraph, *, by_position: bool = True) -> Bool[np.ndarray, "sender pos"]:
    """Return whether any edge of a node is alive.

    Args:
      graph: the edge graph.
      by_position: whether positions are separate. Otherwise the axis `pos` has length 1.
    """
    found = np.zeros((len(graph.senders), graph.n_pos), bool)
    np.logical_or.at(found, graph.sender, graph.alive)
    return found if by_position else np.asarray(found.any(1, keepdims=True))


def exact_nodes(
    model: Transformer,
    params: Params,
    graph: EdgeGraph,
    runs: Runs,
    metric: Metric,
    *,
    by_position: bool = True,
    at_once: int = 1,
) -> NodeScores:
    """Patch all edges of each node together, and return the change of the metric.

    Args:
      model: the model.
      params: the parameters of one model.
      graph: the edge graph of the model.
      runs: the clean run, and the values to patch.
      metric: the metric.
      by_position: whether each run patches one position. Otherwise a run patches a node at all
        positions, and the axis `pos` of the result has length 1.
      at_once: the number of runs that are computed together.
    """
    alive = alive_nodes(graph, by_position=by_position)
    nodes = np.argwhere(alive)
    run = functools.partial(forward_edges, model, params, runs.tokens, graph)

    def patched(node: Array) -> Array:
        kept = jnp.ones(alive.shape).at[node[0], node[1]].set(0, mode="drop")
        return metric(run(graph.node_mask(kept), runs.other)[0][:, 0])

    # The last run patches a sender that does not exist, so it is the clean run.
    cells = jnp.asarray(np.concatenate([nodes, [[len(graph.senders), 0]]]))
    found = jax.lax.map(patched, cells, batch_size=at_once)
    empty = jnp.zeros((*alive.shape, found.shape[1]), found.dtype)
    return empty.at[nodes[:, 0], nodes[:, 1]].set(found[:-1] - found[-1:])


def node_sums(graph: EdgeGraph, scores: Scores) -> NodeScores:
    """Sum the scores of the edges of each node.

    For scores from gradients at the receivers (EAP, EAP-IG, RelP), the sum is the score of the
    node: the gradient at the output of a sender is the sum of the gradients at its receivers. For
    exact scores, the sum is not the exact score of the node.

    Args:
      graph: the edge graph.
      scores: the score of each edge for each row.
    """
    return jax.ops.segment_sum(scores, jnp.asarray(graph.sender), len(graph.senders))
