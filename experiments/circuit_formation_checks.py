"""The instrument of `circuit_formation.py` that checks circuits of one size.

Is the circuit complete, does it need its edges, and would other pairs give the same circuit?
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from circuit_formation_instruments import OfYears, overlap, scores_of_pairs
from circuit_formation_pairs import pairs_of_first_group, year_difference
from jaxtyping import Array, Bool, Float, Int, Key

from implicit_reasoning.analysis.chunks import map_in_chunks
from implicit_reasoning.analysis.circuits import scores, selection
from implicit_reasoning.analysis.circuits.circuit_discovery import half_of_clusters
from implicit_reasoning.analysis.circuits.curves import curve_points
from implicit_reasoning.analysis.circuits.edge_instrument import EdgeInstrument
from implicit_reasoning.analysis.circuits.evaluation import (
    circuit_metrics,
    completeness,
    minimality,
    random_knock_outs,
)
from implicit_reasoning.analysis.instrument import Examples
from implicit_reasoning.analysis.patching.metrics import PairBatch
from implicit_reasoning.analysis.patching.pair_instrument import batch_of
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.graph import EdgeGraph
from implicit_reasoning.worlds import Dataset

ORDERS = ("exact", "EAP", "magnitude", "random")
"""What ranks the edges. `magnitude` and `random` are the nulls."""

REMOVED = ("exact", "random")
"""The orders of circuits whose edges are removed one by one, which takes most of the time."""

LEVEL = 0.9
NEEDED = 0.01
KNOCK_OUTS, SETS, RESAMPLES = 50, 1, 10
_AT_ONCE = 32
_MIN_GAP = 1e-4  # no share is computed if the metrics of the two runs differ by less


class Checks(EdgeInstrument):
    """Instrument that checks the completeness, minimality and stability of circuits."""

    name = "checks"
    max_pairs = 96
    definition = (
        "Pairs of a clean and a corrupt prompt of the first group, of which the clean prompt is "
        "answered correctly. Circuits grow on half of the clusters and are checked on the other "
        "half. size: the smallest circuit of exact scores with a faithfulness of .9; the circuits "
        "of all orders have this size. incompleteness: the absolute difference between the mean "
        "metrics of circuit and model after the same random edges of the circuit were knocked "
        "out, as a share of the difference between clean and corrupt run; mean over 50 sets, of "
        "which each has half of the edges. needed: share of the edges whose removal, alone or "
        "together with a random set, changes the mean metric by at least .01 of this "
        "difference. stability: Jaccard index of circuits from bootstrap resamples of clusters, "
        "mean over all pairs of ten resamples. Nulls: circuits by magnitude, the size of the "
        "change of the sender, and by random scores."
    )
    outputs: ClassVar = {
        "size": (),
        "incompleteness": ("order",),
        "needed": ("removed",),
        "stability": ("order",),
        "n_pairs": (),
        "n_clusters": (),
    }
    nulls: ClassVar = {
        "random scores": {"order": "random"},
        "size of the change": {"order": "magnitude"},
    }

    def __init__(self, metric: Any = "logit_difference") -> None:
        """Set the function that makes the pairs, and the metric."""
        super().__init__(pairs_of_first_group, (metric,))

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Make the pairs, choose those that find circuits, and draw the resamples."""
        made = super().examples(model, dataset)
        labels = {"order": ORDERS, "removed": REMOVED}
        half = half_of_clusters(made.clusters, np.ones(len(made.clusters), bool))["finds"]
        cluster = np.unique(made.clusters, return_inverse=True)[1]
        inputs = {
            "finds": half,
            "finding_rows": np.flatnonzero(half),
            "checking_rows": np.flatnonzero(~half),
            "cluster": cluster,
            "times": resamples(cluster, half),
        }
        return dataclasses.replace(
            made, inputs=made.inputs | inputs, coords={**made.coords, **labels}
        )

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Grow the circuits of all orders, and check them."""
        batch = batch_of(model, params, inputs)
        counted = self.counts(batch)
        finds, checks = (counted & half for half in (inputs["finds"], ~inputs["finds"]))
        graph = EdgeGraph(model.spec, batch.clean.shape[1])
        # Each half runs its own pairs only, which saves half of the time.
        (finding, of_finding), (runs, of_checking) = (
            self._half(model, params, batch, counted, inputs[rows])
            for rows in ("finding_rows", "checking_rows")
        )
        found = map_in_chunks(
            functools.partial(scores_of_pairs, model, params, graph, self.metrics[0], ("EAP",)),
            batch,
            counted,
            at_once=_AT_ONCE,
        )
        weights = jnp.concatenate([finds[None], inputs["times"] * finds[None]])
        noise = jax.random.uniform(key, (len(weights), *found["exact"].shape[:2]))
        ranks = jnp.stack([_ranks(graph, found, weights, name, noise) for name in ORDERS])
        size = _faithful_size(model, params, graph, finding, of_finding, ranks[0, 0])
        circuits = ranks < size

        none_and_all = np.stack([np.zeros_like(graph.alive), graph.alive])
        ends = circuit_metrics(model, params, graph, runs, of_checking, none_and_all).mean(1)
        gap = _known_gap(jnp.abs(ends[1] - ends[0]))
        check = functools.partial(_lost, model, params, graph, runs, of_checking, key=key)
        remove = functools.partial(_needed, model, params, graph, runs, of_checking, gap, key=key)
        removed = circuits[np.array([ORDERS.index(name) for name in REMOVED]), 0]
        return {
            "size": jnp.where(jnp.isfinite(gap), size, jnp.nan),
            "incompleteness": jax.lax.map(check, circuits[:, 0]) / gap,
            "needed": jax.lax.map(remove, removed),
            "stability": jax.vmap(mean_overlap)(circuits[:, 1:]),
            "n_pairs": checks.sum(),
            "n_clusters": jnp.zeros(checks.size).at[inputs["cluster"]].max(checks).sum(),
        }

    def _half(
        self,
        model: Transformer,
        params: Params,
        batch: PairBatch,
        counted: Bool[Array, " example"],
        rows: Int[Array, " row"],
    ) -> tuple[scores.Runs, scores.Metric]:
        """Return the two runs of some pairs, and a metric with the mean of those that count."""
        half, counts = jax.tree.map(lambda leaf: leaf[rows], (batch, counted))
        share = counts / jnp.maximum(counts.sum(), 1) * counts.size

        def metric(logits: Array) -> Array:
            return jnp.where(counts, self.metrics[0].call(logits, half), 0) * share

        return scores.two_runs(model, params, half.clean, half.corrupt), metric


class YearsChecks(OfYears, Checks):
    """Instrument `checks` for spans of years."""

    name = "checks_of_years"

    def __init__(self) -> None:
        """Set the metric."""
        super().__init__(year_difference)


def resamples(
    cluster: Int[np.ndarray, " pair"], chosen: Bool[np.ndarray, " pair"]
) -> Int[np.ndarray, "resample pair"]:
    """Return how often each pair is in bootstrap resamples of the clusters of the chosen pairs."""
    names = np.unique(cluster[chosen])
    times = np.zeros((RESAMPLES, cluster.max() + 1), np.int32)
    if len(names):
        shares = np.full(len(names), 1 / len(names))
        times[:, names] = np.random.default_rng(0).multinomial(len(names), shares, RESAMPLES)
    return times[:, cluster] * chosen


def mean_overlap(circuits: Bool[Array, "circuit edge pos"]) -> Float[Array, ""]:
    """Return the mean Jaccard index over all pairs of circuits."""
    one, other = np.triu_indices(len(circuits), 1)
    return overlap(circuits[one], circuits[other]).mean()


def _ranks(
    graph: EdgeGraph, found: dict[str, Array], weights: Array, name: str, noise: Array
) -> Int[Array, "resample edge pos"]:
    """Return the ranks of the edges by one order, for each row of weights of pairs."""
    if name == "random":
        means = noise
    else:
        total = jnp.maximum(weights.sum(1), 1)[:, None, None]
        values = jnp.where(weights.any(0), found[name], 0)
        means = jnp.einsum("rb,epb->rep", weights, values, precision="highest") / total
    return jax.lax.map(lambda one: selection.greedy(graph, one), means)


def _faithful_size(
    model: Transformer,
    params: Params,
    graph: EdgeGraph,
    runs: scores.Runs,
    metric: scores.Metric,
    ranks: Int[Array, "edge pos"],
) -> Float[Array, ""]:
    """Return the size of the smallest faithful circuit, of those that MIB's curve measures.

    The size is nan if the metrics of the clean and the corrupt run do not differ.
    """
    sizes = jnp.asarray(np.unique([0, *curve_points(int(graph.alive.sum())).sizes]))
    circuits = selection.nested_circuits(ranks, sizes)
    curve = circuit_metrics(model, params, graph, runs, metric, circuits).mean(1)
    faithful = (curve - curve[0]) / _known_gap(curve[-1] - curve[0]) >= LEVEL
    return jnp.where(faithful.any(), sizes[jnp.argmax(faithful)], jnp.nan)


def _lost(
    model: Transformer,
    params: Params,
    graph: EdgeGraph,
    runs: scores.Runs,
    metric: scores.Metric,
    circuit: Bool[Array, "edge pos"],
    *,
    key: Key[Array, ""],
) -> Float[Array, ""]:
    """Return the mean incompleteness of a circuit, in the unit of the metric."""
    sets = random_knock_outs(key, circuit, KNOCK_OUTS)
    return completeness(model, params, graph, runs, metric, circuit, sets).incompleteness.mean()


def _needed(
    model: Transformer,
    params: Params,
    graph: EdgeGraph,
    runs: scores.Runs,
    metric: scores.Metric,
    gap: Float[Array, ""],
    circuit: Bool[Array, "edge pos"],
    *,
    key: Key[Array, ""],
) -> Float[Array, ""]:
    """Return the share of the edges of a circuit that it needs; nan if the gap is nan."""
    sets = random_knock_outs(key, circuit, SETS)
    size = int(graph.alive.sum())
    found = minimality(model, params, graph, runs, metric, circuit, sets, size=size)
    needed = (found.effect >= NEEDED * gap).sum() / jnp.maximum(circuit.sum(), 1)
    return jnp.where(jnp.isfinite(gap), needed, jnp.nan)


def _known_gap(gap: Float[Array, ""]) -> Float[Array, ""]:
    """Return the difference of two metrics; nan if it is too small to divide by."""
    return jnp.where(jnp.abs(gap) > _MIN_GAP, gap, jnp.nan)
