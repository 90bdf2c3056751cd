"""Find a circuit at every checkpoint, and measure how much of the model's behavior it keeps.

Edges are ranked by their scores on one half of the pairs. The circuit of n edges has the first n of
them. In a run of the circuit, all other edges carry the values of the corrupt run. The remaining
pairs show how faithful the circuits of all sizes are. Pairs of one cluster, such as a bridge, are
never in both halves.

Sources: Conmy et al. 2023, "ACDC"; Hanna et al. 2024, "Have faith in faithfulness" (growth from the
logits, faithfulness); Mueller et al. 2025, "MIB" (areas under the curve of faithfulness).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int, Key

from implicit_reasoning.analysis.chunks import map_in_chunks
from implicit_reasoning.analysis.circuits import scores, selection
from implicit_reasoning.analysis.circuits.curves import curve_points
from implicit_reasoning.analysis.circuits.discovery_figures import (
    curves_figure,
    over_training_figure,
)
from implicit_reasoning.analysis.circuits.edge_instrument import EdgeInstrument
from implicit_reasoning.analysis.instrument import Examples
from implicit_reasoning.analysis.patching.metrics import Metric, PairBatch, over_cells
from implicit_reasoning.analysis.patching.outcomes import answers_with
from implicit_reasoning.analysis.patching.pair_instrument import batch_of, mean_by_group
from implicit_reasoning.analysis.patching.pairs import PairsFunction
from implicit_reasoning.figures import Figure
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.graph import EdgeGraph, forward_edges
from implicit_reasoning.worlds import Dataset

ORDERS = ("exact, grown", "exact", "EAP, grown", "magnitude, grown", "random, grown")
"""How edges are ranked.

`grown` circuits grow from the logits (`selection.greedy`). `exact` has the edges with the largest
scores (`selection.top_n`). `magnitude` scores an edge by the size of the change of the sender's
output, and `random` at random. Both are baselines. They grow too: edges that are drawn without
regard to their places are mostly not connected to the logits.
"""

BASELINES = ("magnitude, grown", "random, grown")

_AT_ONCE = 32
_MIN_GAP = 1e-4  # faithfulness is not computed if the metrics of the two runs differ by less
_SEED = 0


class CircuitDiscovery(EdgeInstrument):
    """Instrument that finds circuits of all sizes, and measures their faithfulness."""

    name = "circuit_discovery"
    max_pairs = 96  # of each group; half of those of the first group find the circuit
    definition = (
        "Pairs of a clean and a corrupt prompt, of which the clean prompt is answered correctly. "
        "Edges at positions are ranked by their mean scores on half of the clusters of the first "
        "group. A circuit of n edges has the first n. In its run on the clean prompt, all other "
        "edges carry the values of the corrupt run. faithfulness: (metric of the circuit - metric "
        "of the corrupt run) / (metric of the clean run - metric of the corrupt run), on the pairs "
        "of the other clusters; the denominator is its mean over the pairs of the group that "
        "count. kept: share of answers that are still correct. rank: the place of an edge in an "
        "order; edges that are never selected have the number of all edges and positions. score: "
        "the mean exact effect of patching the edge alone. Null: circuits that grow by magnitude, "
        "the size of the change of the sender's output, and by random scores (one draw)."
    )
    outputs = {
        "faithfulness": ("order", "size", "example"),
        "kept": ("order", "size", "example"),
        "rank": ("order", "edge", "pos"),
        "score": ("edge", "pos"),
        "measured": ("example",),
    }
    given = {"faithfulness": "measured", "kept": "measured"}
    nulls = {
        "random scores": {"order": "random, grown"},
        "size of the change": {"order": "magnitude, grown"},
    }

    def __init__(
        self,
        pairs: str | PairsFunction = "bridge",
        metrics: Sequence[str | Metric] = ("logit_difference",),
        groups: Sequence[str] = (),
    ):
        """Find the function that makes the pairs, and the metric.

        Args:
          pairs: a key of `pairs.PAIRS`, an import path, or a function.
          metrics: one metric: a key of `metrics.METRICS`, an import path, or a function. It must be
            differentiable for the order of EAP.
          groups: names of the groups of pairs. Circuits are found on the first one and measured on
            all of them. Empty for all groups.

        Raises:
          InputError: a function is not found, or there is more than one metric.
        """
        super().__init__(pairs, metrics, groups)
        self.require_one_metric()

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Make the prompt pairs, and choose those on which circuits are found.

        Raises:
          NotApplicable: the blocks of the model are not `gpt2`.
          InputError: the pairs have no group with one of the chosen names.
        """
        made = super().examples(model, dataset)
        graph = EdgeGraph(model.spec, made.inputs["clean"].shape[1])
        finds = half_of_clusters(made.clusters, made.group == 0)
        coords = {
            **made.coords,
            "order": ORDERS,
            "size": tuple(curve_points(int(graph.alive.sum())).sizes.tolist()),
        }
        return dataclasses.replace(made, inputs=made.inputs | finds, coords=coords)

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Rank the edges on half of the clusters, and run circuits on all other pairs.

        Only pairs whose clean prompt is answered correctly are used.
        """
        batch = batch_of(model, params, inputs)
        graph = EdgeGraph(model.spec, batch.clean.shape[1])
        correct = self.counts(batch)
        finds = jnp.asarray(inputs["finds"]) & correct
        found = map_in_chunks(
            lambda example: self._scores(model, params, graph, example),
            {"batch": batch},
            finds,
            at_once=_AT_ONCE,
        )
        means = {
            name: jnp.where(finds, values, 0).sum(-1) / jnp.maximum(finds.sum(), 1)
            for name, values in found.items()
        }
        ranks = _ranks(graph, means, key)

        clean, corrupt = (
            over_cells(self.metrics, logits, batch)[0]
            for logits in (batch.clean_logits, batch.corrupt_logits)
        )
        counted = correct & ~jnp.asarray(inputs["same_half"])
        counted &= jnp.isfinite(clean) & jnp.isfinite(corrupt)
        gap = mean_by_group(clean - corrupt, counted, inputs["member"])
        wide = jnp.abs(gap) > _MIN_GAP
        measured = map_in_chunks(
            lambda example: self._circuits(model, params, graph, ranks, example),
            {"batch": batch, "corrupt": corrupt, "gap": jnp.where(wide, gap, 1)},
            counted & wide,
            at_once=_AT_ONCE,
        )
        return measured | {"rank": ranks, "score": means["exact"], "measured": counted & wide}

    def _scores(
        self, model: Transformer, params: Params, graph: EdgeGraph, example: Mapping[str, Any]
    ) -> dict[str, Array]:
        """Return the scores of each edge for some pairs, [edge, pos, example]."""
        batch: PairBatch = example["batch"]
        runs = scores.two_runs(model, params, batch.clean, batch.corrupt)

        def metric(logits: Array) -> Array:
            return self.metrics[0].call(logits, batch)

        size = jnp.linalg.norm(runs.change, axis=-1)
        return {
            "exact": scores.exact(model, params, graph, runs, metric),
            "EAP": scores.eap(model, params, graph, runs, metric),
            "magnitude": jnp.transpose(size, (2, 1, 0))[graph.sender],
        }

    def _circuits(
        self,
        model: Transformer,
        params: Params,
        graph: EdgeGraph,
        ranks: Int[Array, "order edge pos"],
        example: Mapping[str, Any],
    ) -> dict[str, Array]:
        """Run the circuits of all orders and sizes on some pairs."""
        batch: PairBatch = example["batch"]
        runs = scores.two_runs(model, params, batch.clean, batch.corrupt)
        sizes = curve_points(int(graph.alive.sum())).sizes

        def run(circuit: Array) -> dict[str, Array]:
            live = circuit.astype(jnp.float32)
            arguments = params, batch.clean, graph, live, runs.other
            logits = forward_edges(model, *arguments)[0][:, 0]
            metric = over_cells(self.metrics, logits, batch)[0]
            return {
                "faithfulness": (metric - example["corrupt"]) / example["gap"],
                "kept": answers_with(logits, batch.answer),
            }

        def of_order(rank: Array) -> dict[str, Array]:
            found: dict[str, Array] = jax.lax.map(run, selection.nested_circuits(rank, sizes))
            return found

        found: dict[str, Array] = jax.lax.map(of_order, ranks)
        return found

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Draw faithfulness by size at the last step, and summaries over training."""
        return [curves_figure(result), over_training_figure(result)]


def half_of_clusters(
    clusters: Int[np.ndarray, " pair"], candidates: np.ndarray
) -> dict[str, np.ndarray]:
    """Choose half of the clusters at random.

    Args:
      clusters: the cluster of each pair.
      candidates: whether each pair may be chosen.

    Returns:
      `finds`, the candidates of the chosen clusters, and `same_half`, all pairs of these clusters.
    """
    names = np.unique(clusters[candidates])
    chosen = np.random.default_rng(_SEED).permutation(names)[: len(names) // 2]
    same = np.isin(clusters, chosen)
    return {"finds": same & candidates, "same_half": same}


def _ranks(
    graph: EdgeGraph, means: Mapping[str, Float[Array, "edge pos"]], key: Key[Array, ""]
) -> Int[Array, "order edge pos"]:
    """Return the rank of each edge in each order of `ORDERS`."""
    random = jax.random.uniform(key, means["exact"].shape)
    ranks = {
        "exact, grown": selection.greedy(graph, means["exact"]),
        "exact": selection.top_n(graph, means["exact"]),
        "EAP, grown": selection.greedy(graph, means["EAP"]),
        "magnitude, grown": selection.greedy(graph, means["magnitude"]),
        "random, grown": selection.greedy(graph, random),
    }
    return jnp.stack([ranks[order] for order in ORDERS])
