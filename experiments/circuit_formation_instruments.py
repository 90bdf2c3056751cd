"""The instruments of `circuit_formation.py`.

`Discovery` is the built-in instrument with the pairs of the study. `Estimates` compares estimates
of edge scores and ACDC with exact scores. `Routes` runs the circuits through and around the first
relation.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from circuit_formation_pairs import COLD, pairs_of, pairs_of_first_group, year_difference
from jaxtyping import Array, Bool, Float, Key

from implicit_reasoning.analysis.chunks import map_in_chunks
from implicit_reasoning.analysis.circuits import scores, selection
from implicit_reasoning.analysis.circuits.acdc import acdc, visiting_orders
from implicit_reasoning.analysis.circuits.circuit_discovery import (
    CircuitDiscovery,
    half_of_clusters,
)
from implicit_reasoning.analysis.circuits.edge_instrument import EdgeInstrument
from implicit_reasoning.analysis.circuits.routes import around, through
from implicit_reasoning.analysis.instrument import Examples, NotApplicable
from implicit_reasoning.analysis.patching.metrics import PairBatch, over_cells
from implicit_reasoning.analysis.patching.outcomes import answers_with, divergence
from implicit_reasoning.analysis.patching.pair_instrument import batch_of, mean_by_group
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.graph import EdgeGraph, forward_edges
from implicit_reasoning.worlds import Dataset

ESTIMATORS = ("exact", *scores.ESTIMATES, "magnitude")
TAUS = (1e-2, 1e-1)
"""Thresholds of ACDC, in nats of KL divergence."""

ORDERS = 5
"""Orders in which ACDC visits the edges."""

ROUTES = ("through r1", "around r1")
CUTS = ("own", "random edges")
"""The edges of the corrupt run: those of the definition of a route, or as many random ones."""

DRAWS = 5
"""Draws of random edges, over which the null of a route is averaged."""

_R1 = 1  # the position of r1
_AT_ONCE = 32
_MIN_GAP = 1e-4  # faithfulness is not computed if the metrics of the two runs differ by less


class Discovery(CircuitDiscovery):
    """Instrument `circuit_discovery` with the pairs of the study.

    The clusters that find circuits are none of those of cold facts, which are few.
    """

    name = "discovery"

    def __init__(self, metric: Any = "logit_difference") -> None:
        """Set the function that makes the pairs, and the metric."""
        super().__init__(pairs_of, (metric,))

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Make the prompt pairs, and choose those on which circuits are found."""
        made = super().examples(model, dataset)
        cold = made.groups.index(COLD) if COLD in made.groups else -1
        of_cold = np.isin(made.clusters, made.clusters[made.group == cold])
        finds = half_of_clusters(made.clusters, (made.group == 0) & ~of_cold)
        return dataclasses.replace(made, inputs=made.inputs | finds)


class Estimates(EdgeInstrument):
    """Instrument that compares estimates of edge scores, and ACDC, with exact scores."""

    name = "estimates"
    max_pairs = 32
    definition = (
        "Pairs of a clean and a corrupt prompt of the first group, of which the clean prompt is "
        "answered correctly. score: mean score of each edge at each position. ACDC runs "
        "with several thresholds and orders of the edges, and keeps the KL divergence from the "
        "clean run low. acdc_size: edges and positions of its circuit. acdc_overlap: Jaccard index "
        "of this circuit and the circuit of as many edges that grows from exact scores. n_pairs: "
        "pairs that count. n_clusters: their clusters. Null: the estimator magnitude, the size of "
        "the change of the sender."
    )
    outputs: ClassVar = {
        "score": ("estimator", "edge", "pos"),
        "acdc_size": ("tau", "order"),
        "acdc_overlap": ("tau", "order"),
        "n_pairs": (),
        "n_clusters": (),
    }
    nulls: ClassVar = {"size of the change": {"estimator": "magnitude"}}

    def __init__(self, metric: Any = "logit_difference") -> None:
        """Set the function that makes the pairs, and the metric."""
        super().__init__(pairs_of_first_group, (metric,))

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Make the pairs, and name the estimators, thresholds and orders."""
        made = super().examples(model, dataset)
        coords = {"estimator": ESTIMATORS, "tau": TAUS, "order": range(ORDERS)}
        clusters = {"cluster": np.unique(made.clusters, return_inverse=True)[1]}
        return dataclasses.replace(
            made, inputs=made.inputs | clusters, coords={**made.coords, **coords}
        )

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Score the edges by all estimators, and run ACDC."""
        batch = batch_of(model, params, inputs)
        counted = self.counts(batch)
        graph = EdgeGraph(model.spec, batch.clean.shape[1])
        found = map_in_chunks(
            functools.partial(
                scores_of_pairs, model, params, graph, self.metrics[0], tuple(scores.ESTIMATES)
            ),
            batch,
            counted,
            at_once=_AT_ONCE,
        )
        share = counted / jnp.maximum(counted.sum(), 1)
        means = {name: jnp.where(counted, values, 0) @ share for name, values in found.items()}

        def shared(logits: Array) -> Array:
            """Return divergences whose mean is that of the pairs that count."""
            values = divergence(logits, batch.clean_logits)
            return jnp.where(counted, values, 0) * share * share.size

        runs = scores.two_runs(model, params, batch.clean, batch.corrupt)
        orders = visiting_orders(graph, ORDERS, seed=0)
        circuits = acdc(model, params, graph, runs, shared, jnp.array(TAUS), orders).circuit
        sizes = circuits.sum((-2, -1))
        grown = selection.nested_circuits(selection.greedy(graph, means["exact"]), sizes.ravel())
        return {
            "score": jnp.stack([means[name] for name in ESTIMATORS]),
            "acdc_size": sizes,
            "acdc_overlap": overlap(circuits, grown.reshape(circuits.shape)),
            "n_pairs": counted.sum(),
            "n_clusters": jnp.zeros(counted.size).at[inputs["cluster"]].max(counted).sum(),
        }


def scores_of_pairs(
    model: Transformer,
    params: Params,
    graph: EdgeGraph,
    metric: Any,
    estimates: Sequence[str],
    batch: PairBatch,
) -> dict[str, Array]:
    """Return exact scores, estimates and the null of some pairs, [edge, pos, example].

    Args:
      model: the model.
      params: the parameters of one model.
      graph: the edge graph of the model.
      metric: the metric of an instrument of pairs.
      estimates: keys of `scores.ESTIMATES`.
      batch: the pairs.
    """
    runs = scores.two_runs(model, params, batch.clean, batch.corrupt)

    def of_pairs(logits: Array) -> Array:
        return metric.call(logits, batch)

    of_edges = {"exact": scores.exact, **{name: scores.ESTIMATES[name] for name in estimates}}
    size = jnp.linalg.norm(runs.change, axis=-1)[:, :, graph.sender]
    return {
        **{name: of(model, params, graph, runs, of_pairs) for name, of in of_edges.items()},
        "magnitude": jnp.transpose(size, (2, 1, 0)) * graph.alive[..., None],
    }


class Routes(EdgeInstrument):
    """Instrument that runs the circuits through and around the first relation."""

    name = "routes"
    max_pairs = 96
    definition = (
        "Pairs of a clean and a corrupt prompt (e1, r1, r2) that differ in e1, of which the clean "
        "prompt is answered correctly. Early blocks are the first half of the blocks. around r1: "
        "what heads of late blocks read at r1 from early blocks is that of the corrupt run. "
        "through r1: what early blocks wrote at the last position is that of the corrupt run, and "
        "so is what heads of late blocks read at e1. faithfulness: (metric of the circuit - metric "
        "of the corrupt run) / (metric of the clean run - metric of the corrupt run); the "
        "denominator is its mean over the pairs of the group that count. kept: share of answers "
        "that are still correct. Null: as many random edges, of those whose sender differs between "
        "the runs, are those of the corrupt run; mean over five draws."
    )
    outputs: ClassVar = {
        "faithfulness": ("route", "cut", "example"),
        "kept": ("route", "cut", "example"),
        "measured": ("example",),
    }
    nulls: ClassVar = {"random edges": {"cut": "random edges"}}
    given: ClassVar = {"faithfulness": "measured", "kept": "measured"}

    def __init__(self) -> None:
        """Set the function that makes the pairs."""
        super().__init__(pairs_of)

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Make the pairs.

        Raises:
          NotApplicable: the prompts are not (e1, r1, r2), or the model has only one block.
        """
        if tuple(dataset.positions[:3]) != ("e1", "r1", "r2") or model.spec.depth < 2:
            raise NotApplicable("routes need prompts (e1, r1, r2) and a model with two blocks")
        made = super().examples(model, dataset)
        return dataclasses.replace(made, coords={**made.coords, "route": ROUTES, "cut": CUTS})

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Run both circuits on all pairs that count."""
        batch = batch_of(model, params, inputs)
        clean, corrupt = (
            over_cells(self.metrics, logits, batch)[0]
            for logits in (batch.clean_logits, batch.corrupt_logits)
        )
        counted = self.counts(batch) & jnp.isfinite(clean) & jnp.isfinite(corrupt)
        gap = mean_by_group(clean - corrupt, counted, inputs["member"])
        wide = jnp.abs(gap) > _MIN_GAP
        gap = jnp.where(wide, gap, 1)
        graph = EdgeGraph(model.spec, batch.clean.shape[1])
        runs = scores.two_runs(model, params, batch.clean, batch.corrupt)

        own = [through(graph, _R1), around(graph, _R1)]  # the order of `ROUTES`
        circuits = np.stack([[one, *(like(graph, one, n) for n in range(DRAWS))] for one in own])

        def run(live: Array) -> dict[str, Array]:
            logits = forward_edges(model, params, batch.clean, graph, live, runs.other)[0][:, 0]
            metric = over_cells(self.metrics, logits, batch)[0]
            return {
                "faithfulness": (metric - corrupt) / gap,
                "kept": answers_with(logits, batch.answer),
            }

        live = jnp.asarray(circuits, jnp.float32).reshape(-1, *circuits.shape[2:])
        found = {"measured": counted & wide}
        for name, values in jax.lax.map(run, live).items():
            of_route = values.astype(jnp.float32).reshape(*circuits.shape[:2], -1)
            null = of_route[:, 1:].mean(1, keepdims=True)
            found[name] = jnp.concatenate([of_route[:, :1], null], axis=1)
        return found


def like(
    graph: EdgeGraph, circuit: Bool[np.ndarray, "edge pos"], draw: int
) -> Bool[np.ndarray, "edge pos"]:
    """Return a circuit without as many random edges as another circuit lacks.

    The prompts of a pair differ at position 0 only. The input at other positions is the same in
    both runs, so its edges are not among the random ones.
    """
    same = (graph.sender == 0)[:, None] & (np.arange(graph.n_pos) > 0)
    changing = np.flatnonzero(graph.alive & ~same)
    n_cut = int((graph.alive & ~circuit).sum())
    cut = np.random.default_rng(draw).permutation(changing)[:n_cut]
    found = np.array(graph.alive)
    found.ravel()[cut] = False
    return found


class OfYears:
    """Which pairs of spans of years count."""

    def counts(self, batch: PairBatch) -> Bool[Array, " example"]:
        """Return where right years are more probable than wrong years."""
        return year_difference(batch.clean_logits, batch) > 0


class YearsDiscovery(OfYears, Discovery):
    """Instrument `discovery` for spans of years."""

    name = "discovery_of_years"

    def __init__(self) -> None:
        """Set the metric."""
        super().__init__(year_difference)


class YearsEstimates(OfYears, Estimates):
    """Instrument `estimates` for spans of years."""

    name = "estimates_of_years"

    def __init__(self) -> None:
        """Set the metric."""
        super().__init__(year_difference)


def overlap(
    one: Bool[Array, "*batch edge pos"], other: Bool[Array, "*batch edge pos"]
) -> Float[Array, "*batch"]:
    """Return the Jaccard index of two circuits; 1 if both are empty."""
    shared, either = (one & other).sum((-2, -1)), (one | other).sum((-2, -1))
    return jnp.where(either == 0, 1.0, shared / jnp.maximum(either, 1))
