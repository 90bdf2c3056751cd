"""Path patching: the effect of a value that travels along one path of the edge graph only.

A path is a sequence of edges, each of which leaves the node that the previous edge enters. The
first edge carries the other value of its sender. Every further edge of the path carries the value
that its sender then has. All other inputs of the nodes on the path are those of the clean run, so
all other nodes are frozen. If the path ends before the logits, everything after its last receiver
runs on what this receiver then writes. A path of one edge is therefore `scores.exact`.

Positions: a head reads keys and values at earlier positions, so the position of a path can move
forward there.

    path = EdgePath.parse("input -> a0.h1<v> -> m1 -> logits")
    effects = path_effects(model, params, graph, runs, metric, path_masks(graph, [path]))

Source: Goldowsky-Dill et al. 2023, "Localizing model behavior with path patching", section 2; Wang
et al. 2023, "Interpretability in the wild", section 3.1 (the end of the path before the logits).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.analysis.circuits.scores import Metric, Runs
from implicit_reasoning.analysis.circuits.selection import node_inputs
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.graph import EdgeGraph, forward_edges
from implicit_reasoning.model.units import Edge


@dataclass(frozen=True)
class EdgePath:
    """A path of the edge graph.

    Attributes:
      edges: the edges of the path. The sender of an edge is the node of the previous receiver.
      positions: the position of each edge; None means all positions.

    Raises:
      InputError: the path has no edge, an edge does not begin where the previous one ends, or there
        is not one position for each edge.
    """

    edges: tuple[Edge, ...]
    positions: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not self.edges:
            raise InputError("a path needs at least one edge")
        for one, other in itertools.pairwise(self.edges):
            if one.receiver.partition("<")[0] != other.sender:
                raise InputError(f"{other} does not begin where {one} ends, so they are no path")
        if self.positions is not None and len(self.positions) != len(self.edges):
            raise InputError(
                f"a path of {len(self.edges)} edges needs {len(self.edges)} positions; got "
                f"{len(self.positions)}"
            )

    @classmethod
    def parse(cls, text: str, positions: Sequence[int] | None = None) -> EdgePath:
        """Return the path with a text such as `input -> a0.h1<v> -> m1 -> logits`.

        Args:
          text: the sender of the first edge, and the receivers of all edges.
          positions: the position of each edge.

        Raises:
          InputError: the text is not a path.
        """
        names = [name.strip() for name in text.split("->")]
        pairs = itertools.pairwise(names)
        edges = tuple(Edge(sender.partition("<")[0], receiver) for sender, receiver in pairs)
        return cls(edges, None if positions is None else tuple(positions))

    def __str__(self) -> str:
        return " -> ".join([self.edges[0].sender, *(edge.receiver for edge in self.edges)])


class PathMasks(NamedTuple):
    """The runs that patch paths, as arrays.

    Attributes:
      live: whether each edge carries the value of the run itself.
      sender: the first sender of each path, which is the only one with another value.
    """

    live: Bool[np.ndarray, "path edge pos"]
    sender: Int[np.ndarray, " path"]


def path_masks(graph: EdgeGraph, paths: Sequence[EdgePath]) -> PathMasks:
    """Return the masks of edges that patch each path.

    Raises:
      InputError: an edge or a position does not exist, or the path moves to a position that its
        receiver does not reach.
    """
    live = np.stack([_live(graph, path) for path in paths])
    senders = [graph.senders.index(path.edges[0].sender) for path in paths]
    return PathMasks(live, np.array(senders))


def path_effects(
    model: Transformer,
    params: Params,
    graph: EdgeGraph,
    runs: Runs,
    metric: Metric,
    masks: PathMasks,
) -> Float[Array, "path batch"]:
    """Patch each path alone, and return the change of the metric.

    Args:
      model: the model.
      params: the parameters of one model.
      graph: the edge graph of the model.
      runs: the clean run, and the values to patch.
      metric: the metric.
      masks: the paths, as from `path_masks`.
    """

    def patched(path: tuple[Array, Array]) -> Array:
        live, sender = path
        other = runs.own.at[:, :, sender].set(runs.other[:, :, sender])
        weights = live.astype(jnp.float32)
        logits, _ = forward_edges(model, params, runs.tokens, graph, weights, other)
        return metric(logits[:, 0])

    # The first run has all edges live, so it is the clean run.
    live = np.concatenate([np.ones_like(masks.live[:1]), masks.live])
    sender = np.concatenate([masks.sender[:1], masks.sender])
    found = jax.lax.map(patched, (jnp.asarray(live), jnp.asarray(sender)))
    return found[1:] - found[:1]


def _live(graph: EdgeGraph, path: EdgePath) -> Bool[np.ndarray, "edge pos"]:
    """Return the edges that carry the run's own values; the others carry frozen values."""
    numbers, where = [graph.index(edge) for edge in path.edges], _positions(graph, path)
    first, last = path.edges[0].sender, path.edges[-1].receiver.partition("<")[0]
    live = np.zeros((len(graph.edges), graph.n_pos), bool)
    # The first sender is clean in the run itself, and its other value is for the first edge only.
    live[graph.sender == graph.senders.index(first)] = True
    live[numbers[0], where[0]] = False
    for number, at in zip(numbers[1:], where[1:], strict=True):
        live[number, at] = True
    if last != "logits":
        end = graph.senders.index(last)
        after = graph.senders_before(_receiver_of_next(graph, end))
        live[(graph.sender == end) | (graph.sender >= after)] = True
    return live


def _receiver_of_next(graph: EdgeGraph, sender: int) -> int:
    """Return the first receiver that reads a sender."""
    return int(np.flatnonzero(graph.number[sender] >= 0)[0])


def _positions(graph: EdgeGraph, path: EdgePath) -> list[slice]:
    """Return the positions of each edge.

    Raises:
      InputError: the path moves to a position that its receiver does not reach.
    """
    if path.positions is None:
        return [slice(None)] * len(path.edges)
    for pos in path.positions:
        if not 0 <= pos < graph.n_pos:
            raise InputError(f"position {pos} does not exist; prompts have {graph.n_pos} positions")
    reads = node_inputs(graph, graph.n_pos).reads
    for edge, (pos, then) in zip(path.edges, itertools.pairwise(path.positions), strict=False):
        if not reads[graph.receivers.index(edge.receiver), then, pos]:
            raise InputError(
                f"{path} moves from position {pos} to {then}, but the output of {edge.receiver} at "
                f"position {then} does not depend on its input at position {pos}"
            )
    if path.edges[-1].receiver == "logits" and path.positions[-1] != graph.n_pos - 1:
        raise InputError(f"{path} enters the logits at another position than the last one")
    return [slice(pos, pos + 1) for pos in path.positions]
