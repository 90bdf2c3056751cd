"""The paths of an attribution graph, from the embeddings and errors to a target.

A path goes from a leaf (an embedding, an error, or the constant part of a pre-activation) through
features to a target. Each arc of a path has a route, which names the heads that it passes through.
An active feature's activation is its pre-activation, so the value of a feature is the sum over its
arcs, and the value of the target is exactly the sum over all paths. The value of a path is the
product of its arcs, where each arc into a feature is divided by the pre-activation of the feature.

`top_paths` finds the paths of the largest size, in order, without a beam. `beam_paths` searches as
the published code does, and can miss them.

Source: Dunefsky, Chlenski and Nanda 2024, arXiv 2406.11944, and its code (`greedy_get_top_paths`,
`paths_to_graph`, `add_error_nodes`).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.dictionaries.graphs.attribution import Graph
from implicit_reasoning.errors import InputError


class Arc(NamedTuple):
    """One arc of a path.

    Attributes:
      target: the index of the target among the targets of `Paths`.
      route: the index of the route; -1 for the constant part of the target.
      source: the index of the source among the sources of `Paths`; the number of sources for the
        constant part.
    """

    target: int
    route: int
    source: int


class Path(NamedTuple):
    """A path from a leaf to the target.

    Attributes:
      arcs: the arcs, from the target to the leaf.
      value: the value of the path. The values of all paths sum to the value of the target.
    """

    arcs: tuple[Arc, ...]
    value: float


@dataclass(frozen=True)
class Paths:
    """The arcs of the graph of one prompt.

    Attributes:
      terms: the term of every arc, from `split_edges`, [target, route, source]. Targets are the
        features and then the logits. Sources are the features and then the leaves: errors and
        embeddings.
      total: the value of each target, `Graph.total`; 0 for targets that do not count.
      n_features: the number of places for features.
    """

    terms: Float[np.ndarray, "target route source"]
    total: Float[np.ndarray, " target"]
    n_features: int

    @classmethod
    def of(cls, terms: Float[Array | np.ndarray, "target route source"], graph: Graph) -> Paths:
        """Collect the arcs of one prompt; `graph` is a `Graph` without the batch axis."""
        counts = np.concatenate([graph.counts, np.asarray(graph.probability) > 0])
        total = np.where(counts, graph.total, 0)
        return cls(np.asarray(terms, np.float64), total, len(graph.layer))

    @cached_property
    def constant(self) -> Float[np.ndarray, " target"]:
        """The constant part of each target: the value that no term of `terms` explains.

        It contains biases and embeddings of positions. If the routes are limited to some number of
        steps, it also contains the terms of all longer routes.
        """
        constant: np.ndarray = self.total - self.terms.sum((1, 2))
        return constant

    @cached_property
    def factors(self) -> Float[np.ndarray, "target arc"]:
        """The factor of every arc in the values of paths; the constant part is the last arc."""
        n_targets = len(self.terms)
        terms = np.concatenate([self.terms.reshape(n_targets, -1), self.constant[:, None]], 1)
        divisor = np.ones(n_targets)
        divisor[: self.n_features] = self.total[: self.n_features]
        return terms / np.where(divisor == 0, 1, divisor)[:, None]

    @cached_property
    def _largest(self) -> Float[np.ndarray, " source"]:
        """The largest size of a product of factors from a leaf to each source; 1 for leaves."""
        n_sources = self.terms.shape[2]
        best = np.ones(n_sources)
        best[: self.n_features] = 0
        for target in range(self.n_features):  # Sources of a feature come before it.
            best[target] = self._bounds(target, best).max(initial=0)
        return best

    def _bounds(
        self, target: int, largest: Float[np.ndarray, " source"]
    ) -> Float[np.ndarray, " arc"]:
        """Return the largest size of a path that ends with each arc into the target."""
        size = np.abs(self.factors[target])
        by_source = size[:-1].reshape(self.terms.shape[1:]) * largest[None]
        return np.append(by_source.ravel(), size[-1])

    @cached_property
    def _ranked(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        return {}

    def ranked(self, target: int) -> tuple[Int[np.ndarray, " arc"], Float[np.ndarray, " arc"]]:
        """Rank the arcs into a target by the largest size of a path that ends with each.

        Returns:
          The indices of the arcs, and the largest sizes, from the largest to the smallest. A size
          is relative to the value at the target.
        """
        if target not in self._ranked:
            bounds = self._bounds(target, self._largest)
            order = np.argsort(-bounds, kind="stable")
            self._ranked[target] = order, bounds[order]
        return self._ranked[target]

    def start(self, target: int) -> float:
        """Return the value of the empty path at a target. It cancels the divisor of a feature.

        Raises:
          InputError: there is no such target.
        """
        if not 0 <= target < len(self.terms):
            raise InputError(
                f"there is no target {target}; the targets are 0 to {len(self.terms) - 1}"
            )
        return float(self.total[target]) if target < self.n_features else 1.0

    def arc(self, target: int, number: int) -> Arc:
        """Return the arc with a number among those of a target."""
        n_routes, n_sources = self.terms.shape[1:]
        if number == n_routes * n_sources:
            return Arc(target, -1, n_sources)
        return Arc(target, *divmod(number, n_sources))


def top_paths(paths: Paths, target: int) -> Iterator[Path]:
    """Yield all paths to a target, from the largest size to the smallest.

    The search is exact: it always extends the suffix whose best completion is the largest, and the
    best completion is known from one pass over the graph. Take as many paths as needed, such as
    with `itertools.islice`.

    Args:
      paths: the arcs of one prompt.
      target: the index of the target: a feature, or the number of features plus the index of a
        logit.

    Raises:
      InputError: there is no such target.
    """
    heap: list[tuple[float, int, float, tuple[Arc, ...], int, int]] = []
    numbers = itertools.count()  # Of two suffixes with equal bounds, the older one comes first.

    def push(value: float, arcs: tuple[Arc, ...], node: int, rank: int) -> None:
        """Add a suffix whose next arc is the one of some rank into a node."""
        bounds = paths.ranked(node)[1]
        if rank < len(bounds) and bounds[rank] > 0:
            entry = -abs(value) * bounds[rank], next(numbers), value, arcs, node, rank
            heapq.heappush(heap, entry)

    push(paths.start(target), (), target, 0)
    while heap:
        _, _, value, arcs, node, rank = heapq.heappop(heap)
        push(value, arcs, node, rank + 1)
        number = int(paths.ranked(node)[0][rank])
        longer = (*arcs, paths.arc(node, number))
        reached = value * float(paths.factors[node, number])
        if longer[-1].source >= paths.n_features:
            yield Path(longer, reached)
        else:
            push(reached, longer, longer[-1].source, 0)


class Contribution(NamedTuple):
    """A path of a beam search. It may end at a feature.

    Attributes:
      arcs: the arcs, from the target to the source.
      value: the product of the arcs, as for `Path`.
      capped: the contribution by which the search ranks the path.
    """

    arcs: tuple[Arc, ...]
    value: float
    capped: float


def beam_paths(
    paths: Paths, target: int, *, n_iters: int = 2, n_branches: int = 5, capped: bool = True
) -> list[list[Contribution]]:
    """Search paths with a beam, as the published code does.

    Each iteration extends every path by its arcs with the largest contributions, and keeps the
    paths with the largest. With `capped`, the contribution of a path is at most the smallest
    contribution of the features on it, because a feature cannot contribute more through another
    feature than that one contributes. (The published code takes the last feature in place of the
    smallest. It is the smallest, because contributions are capped as soon as they are found.)

    There is one difference from the published code: one iteration follows the whole route from one
    feature to the next, through any number of heads.

    Args:
      paths: the arcs of one prompt.
      target: the index of the target, as for `top_paths`.
      n_iters: the number of iterations.
      n_branches: the number of paths that are kept.
      capped: whether contributions are capped.

    Returns:
      The paths that were kept after each iteration, sorted by contribution.

    Raises:
      InputError: there is no such target.
    """
    start = paths.start(target)
    current = [Contribution((), start, start if target < paths.n_features else np.inf)]
    kept = []
    for _ in range(n_iters):
        found = []
        for path in current:
            node = path.arcs[-1].source if path.arcs else target
            if path.arcs and node >= paths.n_features:
                continue
            values = path.value * paths.factors[node, :-1]
            shown = np.minimum(values, path.capped) if capped else values
            order = np.argsort(-shown, kind="stable")
            for number in map(int, order[values[order] != 0][:n_branches]):
                arcs = (*path.arcs, paths.arc(node, number))
                found.append(Contribution(arcs, float(values[number]), float(shown[number])))
        current = sorted(found, key=lambda one: -one.capped)[:n_branches]
        kept.append(current)
    return kept


class Merged(NamedTuple):
    """A graph of the arcs of some paths.

    Attributes:
      adjacency: the sum of the terms of the kept routes of each edge, [target, source].
      kept: whether any route of each edge is kept.
      pruned: the part of each target that is in terms that are not kept, and not constant.
      constant: the constant part of each target.
    """

    adjacency: Float[np.ndarray, "target source"]
    kept: Bool[np.ndarray, "target source"]
    pruned: Float[np.ndarray, " target"]
    constant: Float[np.ndarray, " target"]


def merge_paths(paths: Paths, found: Iterable[Path]) -> Merged:
    """Merge paths into a graph, in which each arc has its own term.

    A target that is on no path has no terms, and nothing pruned. For every other target, the sum of
    the row of `adjacency`, `pruned` and `constant` is the value of the target.
    """
    chosen = np.zeros(paths.terms.shape, bool)
    used = np.zeros(len(paths.terms), bool)
    for path in found:
        for arc in path.arcs:
            used[arc.target] = True
            if arc.route >= 0:
                chosen[arc] = True
    terms = np.where(chosen, paths.terms, 0)
    left = paths.terms.sum((1, 2)) - terms.sum((1, 2))
    return Merged(
        terms.sum(1),
        np.asarray(chosen.any(1)),
        np.where(used, left, 0),
        np.where(used, paths.constant, 0),
    )
