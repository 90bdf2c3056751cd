"""Influence, scores and pruning of attribution graphs.

Rows of the adjacency are targets and columns are sources. The weights into a node are divided by
the sum of their sizes. The influence of a node on the logits is the sum over all paths of the
products of these shares, weighted by the probabilities of the logits. Edges go forward, so no path
is longer than the number of layers plus 1, and the sum has few terms. A triangular solve gives the
same sum. It is not used, because programs that solve in a loop sometimes do not end on CPUs with
jax 0.10.2.

Sources: Ameisen et al. 2025, "Circuit tracing", methods (influence, pruning, scores); Hanna et al.
2025, circuit-tracer (the same conventions).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from implicit_reasoning.runtime.machine import highest_precision

NODES, EDGES = 0.8, 0.98
"""The shares of influence that the kept nodes and edges have by default."""

_LEAST = 1e-10

Adjacency = Float[Array | np.ndarray, "target source"]


def shares(adjacency: Adjacency) -> Float[Array, "target source"]:
    """Return the size of each weight divided by the sum of the sizes of its row."""
    size = jnp.abs(adjacency)
    return size / jnp.maximum(size.sum(1, keepdims=True), _LEAST)


@highest_precision
def influence(normalized: Adjacency, weights: Float[Array, " node"]) -> Float[Array, " node"]:
    """Return the influence of each node on the weighted nodes, over all paths of one edge or more.

    Args:
      normalized: the weight of each edge, such as the shares from `shares`.
      weights: the weight of each node, such as the probabilities of the logits.
    """

    def follow(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        found, flow, length = state
        flow = flow @ normalized
        return found + flow, flow, length + 1

    def goes_on(state: tuple[Array, Array, Array]) -> Array:
        _, flow, length = state
        # No path is longer than the number of nodes. This also ends a loop over nan.
        return (flow != 0).any() & (length < len(weights))

    start = jnp.zeros_like(weights), weights, jnp.array(0)
    return jax.lax.while_loop(goes_on, follow, start)[0]


def share_through(
    normalized: Adjacency,
    weights: Float[Array, " node"],
    sources: Bool[Array, " node"],
    through: Bool[Array, " node"],
) -> Float[Array, ""]:
    """Return the share of the influence of some sources that passes through some nodes.

    With the embeddings of e1 and r1 as sources and features of the bridge e2 as nodes, this is the
    bridge share. It is 1 if every path passes through the bridge, and 0 if a graph skips it.

    Args:
      normalized: the shares, as from `shares`.
      weights: the weight of each node, such as the probabilities of the logits.
      sources: whether each node is a source.
      through: whether each node is one of those to pass through.

    Returns:
      The share; nan if the sources have no influence.
    """
    around = jnp.where(through[:, None] | through[None], 0, normalized)
    whole, past = (
        jnp.where(sources, influence(paths, weights), 0).sum() for paths in (normalized, around)
    )
    return jnp.where(whole > _LEAST, 1 - past / jnp.maximum(whole, _LEAST), jnp.nan)


class GraphScores(NamedTuple):
    """How much of a graph the features explain.

    Attributes:
      replacement: the share of the influence of embeddings in that of embeddings and errors.
      completeness: the share of the inputs of nodes, weighted by influence, that is not an error.
    """

    replacement: Float[Array, ""]
    completeness: Float[Array, ""]


def graph_scores(
    normalized: Adjacency,
    node_influence: Float[Array, " node"],
    weights: Float[Array, " node"],
    error: Bool[Array, " node"],
    token: Bool[Array, " node"],
) -> GraphScores:
    """Return the scores of a graph. They are defined for the graph before pruning.

    Args:
      normalized: the shares, as from `shares`.
      node_influence: the influence of each node, as from `influence`.
      weights: the probability of each logit node, and 0 for other nodes.
      error: whether each node is an error.
      token: whether each node is an embedding.
    """
    of_tokens, of_errors = (jnp.where(kind, node_influence, 0).sum() for kind in (token, error))
    explained = 1 - jnp.where(error[None], normalized, 0).sum(1)
    total = node_influence + weights
    return GraphScores(
        of_tokens / jnp.maximum(of_tokens + of_errors, _LEAST),
        (total * explained).sum() / jnp.maximum(total.sum(), _LEAST),
    )


class Pruned(NamedTuple):
    """Which nodes and edges are kept.

    Attributes:
      node: whether each node is kept.
      edge: whether each edge is kept.
    """

    node: Bool[Array, " node"]
    edge: Bool[Array, "target source"]


def prune(
    adjacency: Adjacency,
    weights: Float[Array, " node"],
    feature: Bool[Array, " node"],
    always: Bool[Array, " node"],
    *,
    nodes: float | Float[Array, ""] = NODES,
    edges: float | Float[Array, ""] = EDGES,
) -> Pruned:
    """Keep the nodes and edges with most of the influence.

    Args:
      adjacency: the weights of the edges.
      weights: the probability of each logit node, and 0 for other nodes.
      feature: whether each node is a feature. A feature without incoming edges is dropped.
      always: whether each node is always kept, such as embeddings and logits. Any other node
        without outgoing edges is dropped.
      nodes: the share of the influence of all nodes that the kept nodes have.
      edges: the share of the scores of all edges that the kept edges have.
    """
    found = influence(shares(adjacency), weights)
    node = ((found >= _threshold(found, nodes)) & (found > 0)) | always
    kept = jnp.where(node[:, None] & node[None], adjacency, 0)
    normalized = shares(kept)
    scores = normalized * (influence(normalized, weights) + weights)[:, None]
    edge = (scores >= _threshold(scores.ravel(), edges)) & (scores > 0)

    def drop(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        node, edge, _ = state
        edge = edge & node[:, None] & node[None]
        left = node & (edge.any(0) | always) & (edge.any(1) | ~feature)
        return left, edge & left[:, None] & left[None], (left != node).any()

    node, edge, _ = jax.lax.while_loop(lambda state: state[2], drop, (node, edge, jnp.array(True)))
    return Pruned(node, edge)


def _threshold(scores: Float[Array, " item"], share: float | Float[Array, ""]) -> Float[Array, ""]:
    """Return the smallest score among the largest scores that have a share of the sum."""
    ordered = -jnp.sort(-scores)
    cumulated = jnp.cumsum(ordered) / jnp.maximum(ordered.sum(), _LEAST)
    place = jnp.minimum(jnp.searchsorted(cumulated, share), len(ordered) - 1)
    return ordered[place]
