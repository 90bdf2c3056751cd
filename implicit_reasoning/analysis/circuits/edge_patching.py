"""Patch every edge of the model alone, from the run on another prompt, at every checkpoint.

An edge carries the output of a sender (the embeddings, a head or an MLP) into the input of one
receiver (the query, key or value of a head, an MLP, or the logits). In a patched run, the receiver
reads the sender's output in the corrupt run of the pair. The other inputs of the receiver are
clean, and all later nodes run on what it writes.

The effect is the change of the metric, as a share of the mean difference between the two runs. It
is 0 if the edge carries nothing that matters, and 1 if patching the edge alone has the effect of
the whole corrupt prompt. A route that a second route can replace has no effect: patching single
edges cannot find it.

Sources: Goldowsky-Dill et al. 2023, "Localizing model behavior with path patching"; Conmy et al.
2023, "ACDC"; Miller et al. 2024, AutoCircuit (the convention for the receiver's other inputs).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Bool, Key

from implicit_reasoning.analysis.chunks import map_in_chunks
from implicit_reasoning.analysis.circuits.edge_figures import edges_figure, map_figure
from implicit_reasoning.analysis.circuits.edge_instrument import EdgeInstrument
from implicit_reasoning.analysis.claims import (
    MAJORITY,
    MAX_UPPER_BOUND,
    Claim,
    has_min_clusters,
)
from implicit_reasoning.analysis.patching.metrics import PairBatch, over_cells
from implicit_reasoning.analysis.patching.outcomes import answers_with
from implicit_reasoning.analysis.patching.pair_instrument import batch_of, mean_by_group
from implicit_reasoning.figures import Figure
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.edge_patches import edge_cache_sites, edge_cells, edge_logits
from implicit_reasoning.model.graph import EdgeGraph, sender_outputs
from implicit_reasoning.model.units import Edge
from implicit_reasoning.model.wirings import forward_at
from implicit_reasoning.worlds import Dataset

DONORS = ("pair", "another pair", "zero")
"""The values that an edge gets: those of the pair's corrupt run, of another pair's, or zeros."""

_MIN_GAP = 1e-4  # effects are not computed if the metrics of the two runs differ by less
_MIN_CHANGE = 1e-6  # a sender whose output changes by less, relative to its norm, does not differ
_AT_ONCE = 32  # pairs per chunk; all edges of a pair are patched at the same time


class EdgePatching(EdgeInstrument):
    """Instrument that patches each edge at each position."""

    name = "edge_patching"
    max_pairs = 60  # of each group, because every pair is patched at all edges
    definition = (
        "Pairs of a clean and a corrupt prompt, of which the clean prompt is answered correctly. "
        "One receiver reads the output of one sender, at one position, from the donor run. effect: "
        "(patched - clean) / (corrupt - clean) of a metric; the denominator is its mean over the "
        "pairs of the group that count. donor zero: the receiver reads zeros. broken: share of "
        "answers that are no longer correct. differs: share of pairs whose corrupt run gives the "
        "sender another output at the position; other edges have no effect by construction. "
        "compared: whether the metric counts for the pair, and its group means differ between the "
        "two runs. Null: the donor run is that of another pair of the group."
    )
    outputs = {
        "effect": ("metric", "donor", "edge", "pos", "example"),
        "broken": ("donor", "edge", "pos", "example"),
        "differs": ("edge", "pos", "example"),
        "compared": ("metric", "example"),
        "correct": ("example",),
    }
    given = {"effect": "compared", "broken": "correct", "differs": "correct"}
    nulls = {"another pair's run": {"donor": DONORS[1]}}

    def coords(self, model: Transformer, dataset: Dataset) -> dict[str, Sequence[Any]]:
        """Return the labels of `donor`; `examples` returns those that depend on the pairs."""
        return {"donor": DONORS}

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Patch every edge that is alive, at every position.

        Only pairs whose clean prompt is answered correctly without a patch are patched.
        """
        batch = batch_of(model, params, inputs)
        correct = self.counts(batch)
        clean, corrupt = (
            over_cells(self.metrics, logits, batch)
            for logits in (batch.clean_logits, batch.corrupt_logits)
        )
        counted = correct[None] & jnp.isfinite(clean) & jnp.isfinite(corrupt)
        gap = mean_by_group(corrupt - clean, counted, inputs["member"])
        wide = jnp.abs(gap) > _MIN_GAP
        examples = {
            "batch": batch,
            "other": jnp.asarray(inputs["other_corrupt"]),
            # The example axis comes first, because examples are evaluated in chunks.
            "clean": clean.T,
            "gap": jnp.where(wide, gap, 1).T,
        }
        found = map_in_chunks(
            lambda example: self._outcomes(model, params, example),
            examples,
            correct,
            at_once=_AT_ONCE,
        )
        return found | {"compared": counted & wide, "correct": correct}

    def _outcomes(
        self, model: Transformer, params: Params, example: Mapping[str, Any]
    ) -> dict[str, Array]:
        """Compute the outcomes of some pairs, for one donor at a time."""
        batch: PairBatch = example["batch"]
        graph = EdgeGraph(model.spec, batch.clean.shape[1])
        cells = edge_cells(graph, by_position=True)
        _, cache = forward_at(model, params, batch.clean, sites=edge_cache_sites(model))
        prompts = jnp.stack([batch.clean, batch.corrupt, example["other"]])
        _, sent = jax.lax.map(lambda tokens: sender_outputs(model, params, tokens), prompts)

        def placed(values: Array) -> Array:
            """Return values [*, cell, example] as [*, edge, pos, example]; 0 if not alive."""
            shape = (*values.shape[:-2], len(graph.edges), graph.n_pos, values.shape[-1])
            return jnp.zeros(shape, values.dtype).at[..., cells.edge, cells.pos, :].set(values)

        def patched(other: Array) -> dict[str, Array]:
            logits = edge_logits(model, params, cache, other - sent[0], graph)
            metrics = over_cells(self.metrics, logits, batch)
            effect = (metrics - example["clean"].T[:, None]) / example["gap"].T[:, None]
            broken = ~answers_with(logits, batch.answer)
            return {"effect": placed(effect), "broken": placed(broken)}

        found = jax.lax.map(patched, jnp.concatenate([sent[1:], jnp.zeros_like(sent[:1])]))
        change = _differs(sent[1] - sent[0], sent[0])[graph.sender] & graph.alive[..., None]
        return {
            "effect": jnp.moveaxis(found["effect"], 0, 1),
            "broken": found["broken"],
            "differs": change,
        }

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Draw the edges with the largest effects over training, and the graph at the last step."""
        return [edges_figure(result), map_figure(result)]

    def claims(self, result: xr.Dataset) -> set[Claim]:
        """Claim which edges the answers of chains are computed through, and which not.

        "part": at some position, in some group, patching the edge from the corrupt run breaks most
        answers. The lower interval end of their share is at least `MAJORITY`. The null, the run of
        another pair, breaks such an edge just as well, so it is no bound here.

        "idle": at every position and in every group, the corrupt run breaks few answers, and so
        does removing the edge (zeros): the upper interval end is at most `MAX_UPPER_BOUND`. The
        corrupt run alone would not show that an edge is idle, because a receiver may read what no
        token changes, such as the position embedding.

        Pairs that a user defines give no claims.
        """
        pairs = result.attrs.get("options", self.options())["pairs"]["name"]
        if pairs != "bridge" and not pairs.startswith("exchange_"):
            return set()
        enough = has_min_clusters(result, "broken")
        own = {"donor": DONORS[0]}
        used = (enough & (result.broken_low >= MAJORITY)).sel(own).any(("group", "pos"))
        few = ~enough | (result.broken_high <= MAX_UPPER_BOUND)
        silent = few.sel(donor=[DONORS[0], DONORS[2]]).all(("donor", "group", "pos"))
        tested = enough.any(("donor", "group", "pos"))
        return _claims("part", used) | _claims("idle", silent & tested & ~used)


def _differs(change: Array, own: Array) -> Bool[Array, "sender pos batch"]:
    """Return whether the output of each sender changes, relative to its norm."""
    norms = (jnp.linalg.norm(x, axis=-1) for x in (change, own))
    moved, size = (jnp.transpose(norm, (2, 1, 0)) for norm in norms)
    return moved > _MIN_CHANGE * size


def _claims(kind: str, there: xr.DataArray) -> set[Claim]:
    edges = there["edge"].values[np.asarray(there.values, bool)]
    return {Claim(kind, "answer", Edge.parse(str(edge))) for edge in edges}
