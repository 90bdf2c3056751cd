"""Run circuits: the metric of many circuits, knock-outs, and the effect of single edges.

A circuit is a mask `[edge, pos]`, in which an axis `pos` of length 1 means all positions together.
In a run of a circuit, the edges of the circuit carry the values of the run itself, and all other
edges carry the other values of `scores.Runs`, such as those of a corrupt prompt.

Masks are arrays, so all circuits of a call are one compiled program. The numbers that follow from
saved metrics, such as faithfulness, are in `curves.py`.

Sources: Wang et al. 2023, "Interpretability in the wild", section 4 (completeness, minimality);
Hanna et al. 2024, "Have faith in faithfulness" (the other edges carry the values of the corrupt
run).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Num

from implicit_reasoning.analysis.circuits.scores import Metric, Runs
from implicit_reasoning.analysis.circuits.selection import selectable
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.graph import EdgeGraph, forward_edges

Mask = Num[Array | np.ndarray, "edge #pos"] | Bool[Array | np.ndarray, "edge #pos"]
"""A circuit: 1 for an edge of the circuit, and 0 for any other edge."""


def circuit_metrics(
    model: Transformer,
    params: Params,
    graph: EdgeGraph,
    runs: Runs,
    metric: Metric,
    circuits: Num[Array | np.ndarray, "circuit edge #pos"]
    | Bool[Array | np.ndarray, "circuit edge #pos"],
    *,
    at_once: int = 1,
) -> Float[Array, "circuit batch"]:
    """Run circuits, and return the metric of each circuit for each row.

    Args:
      model: the model.
      params: the parameters of one model.
      graph: the edge graph of the model.
      runs: the clean run, and the values of the edges outside of a circuit.
      metric: the metric.
      circuits: the circuits. A circuit of all edges is the clean run.
      at_once: the number of circuits that run together. More take more memory.
    """
    of = functools.partial(_metric_of, model, params, graph, runs, metric)
    return jax.lax.map(of, jnp.asarray(circuits, jnp.float32), batch_size=at_once)


EdgeSets = Bool[Array | np.ndarray, "knock_out edge pos"]
"""Sets of edges of a circuit, as from `random_knock_outs`."""


class KnockOuts(NamedTuple):
    """The metrics after edges of a circuit were knocked out.

    Attributes:
      circuit: the metric of the circuit without these edges, for each knock-out and row.
      model: the metric of the whole model without these edges.
    """

    circuit: Float[Array, "knock_out batch"]
    model: Float[Array, "knock_out batch"]

    @property
    def incompleteness(self) -> Float[Array, " knock_out"]:
        """The absolute difference of the two mean metrics; 0 if the circuit is complete."""
        return jnp.abs(self.circuit.mean(1) - self.model.mean(1))


def random_knock_outs(
    key: Key[Array, ""], circuit: Mask, count: int, *, share: float = 0.5
) -> Bool[Array, "knock_out edge pos"]:
    """Draw random sets of edges of a circuit.

    Args:
      key: the key of the draws.
      circuit: the circuit.
      count: the number of sets.
      share: the probability of each edge to be in a set.

    Source: Wang et al. 2023, section 4.1 (random sets of nodes).
    """
    drawn = jax.random.bernoulli(key, share, (count, *circuit.shape))
    return drawn & jnp.asarray(circuit, bool)[None]


def completeness(
    model: Transformer,
    params: Params,
    graph: EdgeGraph,
    runs: Runs,
    metric: Metric,
    circuit: Mask,
    knock_outs: EdgeSets,
) -> KnockOuts:
    """Knock out the same edges in a circuit and in the whole model.

    If the circuit contains everything that the model uses, both change alike. A circuit that lacks
    a second route is faithful, but the whole model keeps its answer without the first route.

    The arguments before `circuit` are those of `circuit_metrics`; `knock_outs` are sets of edges of
    the circuit, as from `random_knock_outs`.

    Source: Wang et al. 2023, section 4.1.
    """
    kept = ~jnp.asarray(knock_outs)
    both = jnp.concatenate([kept & jnp.asarray(circuit, bool)[None], kept])
    found = circuit_metrics(model, params, graph, runs, metric, both)
    return KnockOuts(*jnp.split(found, 2))


class Minimality(NamedTuple):
    """The effects of single edges of a circuit.

    Attributes:
      edge: the index of each edge.
      pos: the index of its position.
      effect: the largest absolute change of the mean metric when the edge is removed together with
        a set of edges, over all sets. It is nan in rows that contain no edge.
    """

    edge: Int[Array, " cell"]
    pos: Int[Array, " cell"]
    effect: Float[Array, " cell"]


def minimality(
    model: Transformer,
    params: Params,
    graph: EdgeGraph,
    runs: Runs,
    metric: Metric,
    circuit: Mask,
    knock_outs: EdgeSets,
    *,
    size: int,
) -> Minimality:
    """Measure for each edge of a circuit whether the circuit needs it.

    For a set K of other edges, the effect of an edge is the change from the circuit without K to
    the circuit without K and the edge. An edge whose effect is small for every K is not needed. The
    empty set is always among the sets.

    The arguments before `circuit` are those of `circuit_metrics`.

    Args:
      model: the model.
      params: the parameters of one model.
      graph: the edge graph of the model.
      runs: the clean run, and the values of the edges outside of the circuit.
      metric: the metric.
      circuit: the circuit.
      knock_outs: sets of edges of the circuit, as from `random_knock_outs`.
      size: the number of rows of the result. It must be at least the number of edges of the
        circuit; edges beyond are not measured.

    Source: Wang et al. 2023, section 4.2.
    """
    circuit = jnp.asarray(circuit, bool)
    edge, pos = jnp.nonzero(circuit, size=size, fill_value=-1)
    sets = jnp.concatenate([jnp.zeros_like(circuit)[None], jnp.asarray(knock_outs, bool)])

    def mean(live: Array) -> Array:
        return _metric_of(model, params, graph, runs, metric, live.astype(jnp.float32)).mean()

    def of_edge(cell: tuple[Array, Array]) -> Array:
        def of_set(removed: Array) -> Array:
            """Return the change when the edge is removed together with the other edges of a set."""
            kept = (circuit & ~removed).at[cell].set(True)
            both = jax.lax.map(mean, jnp.stack([kept, kept.at[cell].set(False)]))
            return jnp.abs(both[1] - both[0])

        return jax.lax.map(of_set, sets).max()

    def of_row(cell: tuple[Array, Array]) -> Array:
        """Return the effect of an edge; nan for rows beyond the circuit, which run nothing."""
        return jax.lax.cond(cell[0] >= 0, of_edge, lambda _: jnp.array(jnp.nan), cell)

    return Minimality(edge, pos, jax.lax.map(of_row, (edge, pos)))


def scorable(
    graph: EdgeGraph,
    change: Float[Array, "batch pos sender d_model"],
    *,
    by_position: bool = True,
    tolerance: float = 1e-6,
) -> Bool[Array, "edge _pos"]:
    """Return the edges that can have an effect: alive ones of senders whose value changes.

    All other edges have no effect above rounding errors, so AUROC and average precision leave
    them out.

    Args:
      graph: the edge graph.
      change: the other value of each sender minus the clean value, as from `Runs.change`.
      by_position: whether positions are separate. Otherwise the axis `pos` has length 1.
      tolerance: the smallest change, relative to the largest change of any sender.
    """
    size = jnp.abs(change).max((0, 3)).T
    changes = size > tolerance * size.max()
    if not by_position:
        changes = changes.any(1, keepdims=True)
    return changes[graph.sender] & jnp.asarray(selectable(graph, changes.shape[1]))


def _metric_of(
    model: Transformer, params: Params, graph: EdgeGraph, runs: Runs, metric: Metric, live: Array
) -> Float[Array, " batch"]:
    logits, _ = forward_edges(model, params, runs.tokens, graph, live, runs.other)
    return metric(logits[:, 0])
