"""ACDC: patch edges for good, one after another, as long as a metric stays close to the full model.

The edges are visited from the logits to the embeddings. An edge is patched for good if the metric
then rises by less than `tau` above its present value. All other edges form the circuit. The metric
is one that grows with the distance from the full model, such as the KL divergence.

The result depends on the order of the edges within a block, so several orders are run. All
thresholds and all orders are one compiled program. When the edges into a block are visited, no
edge into an earlier block is patched, so each run starts at the block of its receiver
(`forward_edges_from`). Edges into the logits need the unembedding only.

    orders = visiting_orders(graph, 10, seed=0)
    found = acdc(model, params, graph, runs, divergence, np.geomspace(1e-4, 1, 9), orders)

Sources: Conmy et al. 2023, "Towards automated circuit discovery for mechanistic interpretability",
algorithm 1; Miller et al. 2024, AutoCircuit (edges by position).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.analysis.circuits.scores import Metric, Runs
from implicit_reasoning.analysis.circuits.selection import selectable
from implicit_reasoning.analysis.patching import outcomes
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.graph import (
    BlockStart,
    EdgeGraph,
    block_starts,
    forward_edges_from,
)


class AcdcCircuits(NamedTuple):
    """The circuits of all thresholds and orders.

    Attributes:
      circuit: the edges that were not patched.
      metric: the mean metric of the circuit.
    """

    circuit: Bool[Array, "tau order edge pos"]
    metric: Float[Array, "tau order"]


def acdc(
    model: Transformer,
    params: Params,
    graph: EdgeGraph,
    runs: Runs,
    metric: Metric | None,
    taus: Float[Array | np.ndarray, " tau"],
    orders: Int[np.ndarray, "order cell"],
    *,
    by_position: bool = True,
) -> AcdcCircuits:
    """Find the circuits of several thresholds, with several orders of the edges.

    Args:
      model: the model.
      params: the parameters of one model.
      graph: the edge graph of the model.
      runs: the clean run, and the values to patch.
      metric: the metric to keep low. None means the KL divergence from the clean run, in nats.
      taus: the thresholds. An edge is patched if the mean metric rises by less.
      orders: the orders in which the edges are visited, as from `visiting_orders`.
      by_position: whether each position of an edge is visited by itself. Otherwise an edge is
        patched at all positions, and the axis `pos` of the circuits has length 1.

    Raises:
      InputError: an order does not visit every edge that is alive once, or visits an edge into an
        earlier block before an edge into a later block.
    """
    n_pos = graph.n_pos if by_position else 1
    _check_orders(graph, orders, n_pos)
    starts = block_starts(model, params, runs.tokens)
    if metric is None:
        live = jnp.ones((len(graph.edges), 1))
        clean = forward_edges_from(model, params, starts[-1], graph, live, runs.other)[:, 0]
        metric = divergence_from(clean)
    by_block = _cells_by_block(graph, orders, n_pos)

    def run(start: BlockStart, circuit: Array) -> Array:
        live = circuit.astype(jnp.float32)
        logits = forward_edges_from(model, params, start, graph, live, runs.other)
        return metric(logits[:, 0]).mean()

    def of(tau: Array, order: list[Array]) -> tuple[Array, Array]:
        alive = jnp.asarray(selectable(graph, n_pos))
        carry = alive, run(starts[-1], jnp.ones_like(alive))
        for start, cells in zip(reversed(starts), order, strict=True):

            def visit(
                carry: tuple[Array, Array], cell: Array, start: BlockStart = start
            ) -> tuple[tuple[Array, Array], None]:
                circuit, now = carry
                without = circuit.at[jnp.divmod(cell, n_pos)].set(False)
                then = run(start, without)
                patched = then - now < tau
                return (
                    jnp.where(patched, without, circuit),
                    jnp.where(patched, then, now),
                ), None

            carry = jax.lax.scan(visit, carry, cells)[0]
        return carry

    over_orders = jax.vmap(of, (None, 0))
    return AcdcCircuits(*jax.vmap(over_orders, (0, None))(jnp.asarray(taus), by_block))


def divergence_from(clean: Float[Array, "batch d_vocab"]) -> Metric:
    """Return the metric KL(p_clean || p_patched), in nats, for `acdc`.

    Args:
      clean: the logits of the clean run at the last position.
    """
    return lambda logits: outcomes.divergence(logits, clean)


def visiting_orders(
    graph: EdgeGraph, count: int, *, seed: int, by_position: bool = True
) -> Int[np.ndarray, "order cell"]:
    """Return orders in which `acdc` visits the edges.

    Receivers are visited from the logits to the first block. In the first order, the last sender of
    a receiver comes first. In all other orders, the senders and positions of a receiver are
    shuffled.

    Args:
      graph: the edge graph.
      count: the number of orders.
      seed: the seed of the shuffles.
      by_position: whether each position of an edge is visited by itself.

    Returns:
      Numbers `edge * pos + position` of all edges that are alive, where `pos` is the number of
      positions, or 1 if they are not separate.
    """
    n_pos = graph.n_pos if by_position else 1
    cells = np.flatnonzero(selectable(graph, n_pos))
    receiver = graph.receiver[cells // n_pos]
    rng = np.random.default_rng(seed)
    shuffled = [rng.random(len(cells)) for _ in range(count - 1)]
    keys = [-cells.astype(np.float64), *shuffled][:count]
    return np.stack([cells[np.lexsort((key, -receiver))] for key in keys])


def thresholds_of(
    circuit: Bool[np.ndarray, "tau *order edge pos"], taus: Float[np.ndarray, " tau"]
) -> Float[np.ndarray, "*order edge pos"]:
    """Return the smallest threshold at which each edge is patched; inf if it never is.

    AutoCircuit uses this number as the score of an edge.

    Args:
      circuit: the circuits of all thresholds, as in `AcdcCircuits`.
      taus: the thresholds.
    """
    column = taus.reshape(-1, *[1] * (circuit.ndim - 1))
    return np.where(circuit, np.inf, column).min(0)


def _block_of(graph: EdgeGraph, cells: Int[np.ndarray, "*rest"], n_pos: int) -> np.ndarray:
    """Return the block of the receiver of each edge; the logits belong to a block of their own."""
    return graph.receiver[cells // n_pos] // (3 * graph.spec.n_heads + 1)


def _cells_by_block(graph: EdgeGraph, orders: np.ndarray, n_pos: int) -> list[Array]:
    """Return the orders of the edges into the logits, into the last block, and so on."""
    blocks = _block_of(graph, orders[0], n_pos)
    where = [blocks == block for block in range(graph.spec.depth, -1, -1)]
    return [jnp.asarray(orders[:, here]) for here in where]


def _check_orders(graph: EdgeGraph, orders: np.ndarray, n_pos: int) -> None:
    cells = np.flatnonzero(selectable(graph, n_pos))
    if orders.shape[1] != len(cells) or (np.sort(orders, 1) != cells).any():
        raise InputError(
            f"an order must visit each of the {len(cells)} edges that are alive once; use "
            "visiting_orders with the same graph and by_position"
        )
    if (np.diff(_block_of(graph, orders, n_pos), axis=1) > 0).any():
        raise InputError(
            "an order must visit the edges into the logits first, then those into the last block, "
            "and so on; an edge into an earlier block comes before an edge into a later block"
        )
