"""Attention patterns, and the knock-out of attention edges.

An attention edge leads from a key position to a query position. Its knock-out sets the attention
score to minus infinity before the softmax, so the attention to all other positions is renormalized.
An edge is knocked out in one head, in all heads of one block, or in all heads of all blocks.

Sources: Geva et al. 2023, "Dissecting Recall of Factual Associations in Auto-Regressive Language
Models", section 5 (attention knock-out); Kobayashi et al. 2020 (patterns weighted by the norm of
the values).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Int, Key

from implicit_reasoning.analysis.chunks import map_in_chunks
from implicit_reasoning.analysis.components.attention_figures import (
    ALL_HEADS,
    OTHER,
    UNCHANGED,
    knock_out_figure,
    pattern_figure,
    written_figure,
)
from implicit_reasoning.analysis.components.knock_out import (
    existing_edges,
    knock_out_sites,
    knock_outs,
    match_edges,
    match_everywhere,
)
from implicit_reasoning.analysis.components.rows import answer_rows
from implicit_reasoning.analysis.instrument import Examples, Instrument, NotApplicable
from implicit_reasoning.analysis.patching.outcomes import answers_with, margin
from implicit_reasoning.figures import Figure
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.blocks import require_gpt2
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.clusters import clusters_of

ALTERNATIVES = ("decoy", "e2", "repeated_token", "source_token")
"""Truth columns with the token of another possible answer. The first existing column is used."""

_MAX_ROWS = 100  # maximum number of rows per split
_EDGE = ("query_pos", "key_pos", "example")
_CUT = ("block", "cut", *_EDGE)


class Attention(Instrument):
    """Instrument that measures attention patterns and knocks out attention edges."""

    name = "attention"
    definition = (
        "pattern: attention of a query position to a key position. written: length of the vector "
        "A v W_O that a head adds to the residual stream through this edge. Knock-out of an edge: "
        "its score is minus infinity before the softmax. cut: the head, or all heads of the block. "
        "fraction: share of predictions that are unchanged, the token of another truth column "
        "(the second label of `outcome`), or other; over queries that are answered correctly "
        "without a knock-out. margin: logit of the answer minus the highest logit of all other "
        "tokens. everywhere_...: the same with the edge knocked out in all heads of all blocks. "
        "mass: mean attention (of all heads: the sum) of the edge over these queries. null_...: "
        "the values of another edge to the same query position, with the most similar mass. Edges "
        "that the answer cannot depend on are not candidates for this null."
    )
    outputs = {
        "pattern": ("block", "head", *_EDGE),
        "written": ("block", "head", *_EDGE),
        "fraction": ("outcome", *_CUT),
        "margin": _CUT,
        "null_unchanged": _CUT,
        "null_margin": _CUT,
        "everywhere_fraction": ("outcome", *_EDGE),
        "everywhere_margin": _EDGE,
        "null_everywhere_unchanged": _EDGE,
        "mass": _CUT[:-1],
        "null_mass": _CUT[:-1],
        "counts": _EDGE,
        "clean_margin": ("example",),
        "correct": ("example",),
    }
    given = {
        **dict.fromkeys(("fraction", "margin", "null_unchanged", "null_margin"), "counts"),
        **dict.fromkeys(("everywhere_fraction", "everywhere_margin"), "counts"),
        "null_everywhere_unchanged": "counts",
        "clean_margin": "correct",
    }
    nulls = {
        "another edge of equal mass": "null_unchanged",
        "another edge of equal mass, in all blocks": "null_everywhere_unchanged",
    }
    default = False

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Choose rows of every split whose answers are at the most frequent position.

        In confidence intervals of chain tasks, rows with the same bridge (e2) form a cluster.

        Raises:
          NotApplicable: the blocks of the model are not `gpt2`, or `answer_rows` cannot be used.
        """
        require_gpt2(model.spec, "instrument attention", NotApplicable)
        chosen = answer_rows(dataset, _MAX_ROWS)
        answer = dataset.truth["answer"][chosen.rows]
        name, other = _alternative(dataset, chosen.rows)
        inputs = {
            "tokens": dataset.tokens[chosen.rows, : len(chosen.positions)],
            "answer": answer,
            "other": np.where(other == answer, -1, other).astype(np.int32),
        }
        coords = {
            "outcome": (UNCHANGED, name, OTHER),
            "query_pos": chosen.positions,
            "key_pos": chosen.positions,
        }
        clusters = clusters_of(dataset, chosen.rows)
        return Examples(inputs, chosen.splits, chosen.group, clusters, coords=coords)

    def coords(self, model: Transformer, dataset: Dataset) -> dict[str, Sequence[Any]]:
        """Return the labels of the blocks, the heads and the cuts."""
        heads = range(model.spec.n_heads)
        cuts = (*(f"head {head}" for head in heads), ALL_HEADS)
        return {"block": range(model.spec.depth), "head": heads, "cut": cuts}

    def sites(self, model: Transformer) -> tuple[str, ...]:
        """Return the names of the sites that the forward passes cache."""
        return knock_out_sites(model)

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Compute patterns, and the outcomes of all knock-outs for correctly answered queries."""
        tokens, answer = jnp.asarray(inputs["tokens"]), jnp.asarray(inputs["answer"])
        found = map_in_chunks(lambda e: _patterns(model, params, e), {"tokens": tokens})
        logits = jnp.moveaxis(found.pop("logits"), -1, 0)
        correct = answers_with(logits, answer)
        edges = existing_edges(tokens.shape[1])
        found |= map_in_chunks(
            lambda e: knock_outs(model, params, e),
            {"tokens": tokens, "answer": answer, "other": inputs["other"]},
            correct,
        )
        weight = correct / jnp.maximum(correct.sum(), 1)
        mass = jnp.einsum("...e,e->...", found["pattern"], weight, precision="highest")
        mass = jnp.concatenate([mass, mass.sum(1, keepdims=True)], axis=1)
        matched = match_edges(mass, edges)
        unchanged = found["fraction"][0]
        everywhere = match_everywhere(mass[:, -1].sum(0), edges)
        return found | {
            "null_unchanged": matched(unchanged),
            "null_margin": matched(found["margin"]),
            "null_everywhere_unchanged": everywhere(found["everywhere_fraction"][0]),
            "mass": mass,
            "null_mass": matched(mass[..., None])[..., 0],
            "counts": edges[..., None] & correct[None, None],
            "clean_margin": margin(logits, answer),
            "correct": correct,
        }

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Draw patterns, weighted patterns and the effects of knock-outs."""
        return [pattern_figure(result), written_figure(result), knock_out_figure(result)]


def _alternative(
    dataset: Dataset, rows: Int[np.ndarray, " row"]
) -> tuple[str, Int[np.ndarray, " row"]]:
    """Return the name of another truth column with a token, and the token of each row or -1."""
    for name in ALTERNATIVES:
        if name in dataset.truth:
            return name, dataset.truth[name][rows]
    return "no other column", np.full(len(rows), -1, np.int32)


def _patterns(model: Transformer, params: Params, example: dict[str, Array]) -> dict[str, Array]:
    """Return the logits, the patterns, and the lengths of the vectors that edges write."""
    names = ("attn.hook_pattern", "attn.hook_v")
    sites = [f"blocks.{block}.{name}" for block in range(model.spec.depth) for name in names]
    logits, found = model.forward(params, example["tokens"], sites=sites)
    patterns, lengths = [], []
    for block in range(model.spec.depth):
        pattern, v = (found[f"blocks.{block}.{name}"] for name in names)
        weight = params["blocks"][str(block % model.spec.n_layers)]["attn"]["W_O"]
        vectors = jnp.einsum("bkhe,hed->bhkd", v, weight, precision="highest")
        length = jnp.sqrt(jnp.square(vectors).sum(-1))[:, :, None]  # [example, head, 1, key]
        patterns.append(pattern)
        lengths.append(pattern * length)
    return {
        "logits": logits[:, -1].T,
        "pattern": jnp.moveaxis(jnp.stack(patterns), 1, -1),
        "written": jnp.moveaxis(jnp.stack(lengths), 1, -1),
    }
