"""Select circuits from scores of edges: by rank, by growth from the logits, and by threshold.

Scores and circuits have the axes `[edge, pos]` of `EdgeGraph`. If the axis `pos` has length 1, an
edge is selected at all positions together. `top_n` and `greedy` return the rank of each edge, so
`rank < n` is the circuit of `n` edges, and all sizes come from one call. Edges that are not alive
(`EdgeGraph.alive`) are never selected. Every function can be traced, so `jax.vmap` maps it over
checkpoints.

    ranks = greedy(graph, scores.mean(-1))
    circuits = nested_circuits(ranks, np.array([4, 16, 64]))

The growth and the pruning of circuits need to know which inputs of a node change its output at a
position. The output of an MLP depends on its input at the same position. The output of a head
depends on its query input at the same position, and on its key and value inputs at this position
and at earlier positions. The first position attends only to itself, so its queries and keys have no
effect there.

Sources: Hanna et al. 2024, "Have faith in faithfulness" (greedy growth, pruning; without
positions); Nikankin et al. 2025, arXiv 2510.25786 (edges with consistent signs over bootstraps).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from implicit_reasoning.errors import InputError
from implicit_reasoning.model.graph import EdgeGraph


def selectable(graph: EdgeGraph, n_pos: int) -> Bool[np.ndarray, "edge pos"]:
    """Return the edges that a circuit can contain.

    Args:
      graph: the edge graph.
      n_pos: length of the axis `pos` of scores and circuits: the number of positions of the graph,
        or 1 for all positions together.

    Raises:
      InputError: `n_pos` is neither.
    """
    if n_pos == graph.n_pos:
        return graph.alive
    if n_pos == 1:
        return np.asarray(graph.alive.any(axis=1, keepdims=True))
    raise InputError(
        f"scores and circuits have {n_pos} positions; the graph has {graph.n_pos}, so the axis pos "
        f"must have length {graph.n_pos} or 1"
    )


def top_n(
    graph: EdgeGraph, scores: Float[Array | np.ndarray, "edge pos"]
) -> Int[Array, "edge pos"]:
    """Rank the edges by the absolute value of their scores.

    Args:
      graph: the edge graph.
      scores: the mean score of each edge.

    Returns:
      The rank of each edge, from 0 for the largest absolute value. Of equal values, the first one
      in the order of the array ranks first. Edges that are not alive have the rank `edge * pos`.

    Raises:
      InputError: the scores have another number of positions than the graph.
    """
    can = jnp.asarray(selectable(graph, scores.shape[1]))
    key = jnp.where(can, -jnp.abs(scores), jnp.inf).ravel()
    order = jnp.argsort(key, stable=True)
    ranks = jnp.zeros(order.size, jnp.int32).at[order].set(jnp.arange(order.size, dtype=jnp.int32))
    return jnp.where(can, ranks.reshape(scores.shape), order.size)


def greedy(
    graph: EdgeGraph, scores: Float[Array | np.ndarray, "edge pos"]
) -> Int[Array, "edge pos"]:
    """Rank the edges in the order in which a circuit grows from the logits.

    Only an edge whose receiver is part of the circuit can be added. At first, only the logits are.
    Of all edges that can be added, the one with the largest absolute value is added. The inputs on
    which the output of its sender depends then become part of the circuit. A circuit of any size
    therefore has no edge whose effect cannot reach the logits.

    Args:
      graph: the edge graph.
      scores: the mean score of each edge.

    Returns:
      The ranks, as in `top_n`. Edges that are never added have the rank `edge * pos`.

    Raises:
      InputError: the scores have another number of positions than the graph.
    """
    n_pos = scores.shape[1]
    can, size = selectable(graph, n_pos), scores.size
    magnitude = jnp.where(jnp.asarray(can), jnp.abs(scores), -jnp.inf)
    inputs = node_inputs(graph, n_pos)
    node, reads = jnp.asarray(inputs.node), jnp.asarray(inputs.reads)
    sender, receiver = jnp.asarray(graph.sender), jnp.asarray(graph.receiver)

    def add(carry: tuple[Array, Array], rank: Array) -> tuple[tuple[Array, Array], None]:
        ranks, within = carry
        candidates = within[receiver] & (ranks == size) & jnp.asarray(can)
        best = jnp.argmax(jnp.where(candidates, magnitude, -jnp.inf))
        edge, pos = jnp.divmod(best, n_pos)
        found = candidates[edge, pos]
        ranks = ranks.at[edge, pos].set(jnp.where(found, rank, ranks[edge, pos]))
        new = (node == sender[edge])[:, None] & reads[:, pos] & found
        return (ranks, within.at[:-1].max(new)), None

    start = jnp.full(scores.shape, size, jnp.int32), jnp.asarray(_logits(graph, n_pos))
    steps = jnp.arange(int(can.sum()), dtype=jnp.int32)
    return jax.lax.scan(add, start, steps)[0][0]


def by_threshold(
    graph: EdgeGraph,
    scores: Float[Array | np.ndarray, "edge pos"],
    threshold: Float[Array, ""] | float,
) -> Bool[Array, "edge pos"]:
    """Return the circuit of all edges whose absolute score is at least the threshold.

    Raises:
      InputError: the scores have another number of positions than the graph.
    """
    return jnp.asarray(selectable(graph, scores.shape[1])) & (jnp.abs(scores) >= threshold)


def nested_circuits(
    ranks: Int[Array, "edge pos"], sizes: Int[Array | np.ndarray, " size"]
) -> Bool[Array, "size edge pos"]:
    """Return the circuits of the given numbers of edges.

    A circuit has fewer edges if the graph does not have as many that can be selected.
    """
    most = ranks.size  # the rank of edges that are never selected
    return ranks[None] < jnp.minimum(jnp.asarray(sizes), most)[:, None, None]


def prune(
    graph: EdgeGraph, circuit: Bool[Array | np.ndarray, "edge pos"]
) -> Bool[Array, "edge pos"]:
    """Remove the edges that are on no path from the embeddings to the logits.

    The logits are those at the last position. All edges of a path are in the circuit.

    Raises:
      InputError: the circuit has another number of positions than the graph.
    """
    n_pos = circuit.shape[1]
    circuit = circuit & jnp.asarray(selectable(graph, n_pos))
    inputs = node_inputs(graph, n_pos)
    node, reads = jnp.asarray(inputs.node), jnp.asarray(inputs.reads)
    sender, receiver = jnp.asarray(graph.sender), jnp.asarray(graph.receiver)
    none = jnp.zeros((len(graph.senders), n_pos), bool)

    def step(_: Array, found: tuple[Array, Array]) -> tuple[Array, Array]:
        """Go one node further from the embeddings, and one node further from the logits."""
        reached, leads = found
        read = jnp.zeros_like(leads).at[receiver].max(circuit & reached[sender])[:-1]
        reached = reached.at[node].max((reads & read[:, None]).any(2))
        written = none.at[sender].max(circuit & leads[receiver])
        return reached, leads.at[:-1].max((reads & written[node][:, :, None]).any(1))

    start = none.at[0].set(True), jnp.asarray(_logits(graph, n_pos))
    nodes = 2 * graph.spec.depth  # a path has at most as many between embeddings and logits
    reached, leads = jax.lax.fori_loop(0, nodes, step, start)
    return circuit & reached[sender] & leads[receiver]


class NodeInputs(NamedTuple):
    """The inputs on which the outputs of heads and MLPs depend directly.

    The rows are the receivers without the logits.

    Attributes:
      node: the sender whose input the receiver is.
      reads: whether the output at the first position depends on the input at the second position.
    """

    node: Int[np.ndarray, " receiver"]
    reads: Bool[np.ndarray, "receiver pos pos"]


def node_inputs(graph: EdgeGraph, n_pos: int) -> NodeInputs:
    """Return the inputs on which the outputs of heads and MLPs depend directly.

    Args:
      graph: the edge graph.
      n_pos: the number of positions, or 1 for all positions together.
    """
    same, earlier = np.eye(n_pos, dtype=bool), np.tri(n_pos, dtype=bool)
    keys = earlier.copy()
    keys[0] = n_pos == 1  # the first position attends only to itself
    rules = {"q": same, "k": keys, "v": earlier}
    numbers = {name: number for number, name in enumerate(graph.senders)}
    names = [name.partition("<") for name in graph.receivers[:-1]]
    node = np.array([numbers[name] for name, _, _ in names])
    return NodeInputs(node, np.stack([rules.get(part[:1], same) for _, _, part in names]))


def _logits(graph: EdgeGraph, n_pos: int) -> Bool[np.ndarray, "receiver pos"]:
    """Return the mask of the receivers that is true for the logits at the last position only."""
    found = np.zeros((len(graph.receivers), n_pos), bool)
    found[-1, -1] = True
    return found


def bootstrap_means(
    scores: Float[Array, "edge pos batch"],
    clusters: Int[np.ndarray, " batch"],
    key: Key[Array, ""],
    count: int,
) -> Float[Array, "resample edge pos"]:
    """Return the mean scores of bootstrap resamples of clusters.

    A resample draws as many clusters as there are, with replacement. All rows of a cluster are
    drawn together.

    Args:
      scores: the score of each edge for each row.
      clusters: the cluster of each row. Rows of a cluster are dependent.
      key: the key of the resamples.
      count: the number of resamples.
    """
    _, cluster, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    n_clusters = len(sizes)
    drawn = jax.random.randint(key, (count, n_clusters), 0, n_clusters)
    times = (
        jnp.zeros((count, n_clusters), scores.dtype).at[jnp.arange(count)[:, None], drawn].add(1)
    )
    sums = jax.ops.segment_sum(jnp.moveaxis(scores, -1, 0), jnp.asarray(cluster), n_clusters)
    rows = times @ jnp.asarray(sizes, scores.dtype)
    return jnp.einsum("rc,cep->rep", times, sums, precision="highest") / rows[:, None, None]


def of_one_sign(
    means: Float[Array, "resample edge pos"], mean: Float[Array, "edge pos"], share: float = 0.95
) -> Bool[Array, "edge pos"]:
    """Return the edges whose mean score has the same sign in most bootstrap resamples.

    Args:
      means: the mean score of each edge in each resample, as from `bootstrap_means`.
      mean: the mean score over all rows.
      share: the smallest share of resamples whose sign is that of `mean`. An edge whose mean is 0
        is not selected.
    """
    agrees = (jnp.sign(means) == jnp.sign(mean)[None]).mean(0)
    return (mean != 0) & (agrees >= share)
