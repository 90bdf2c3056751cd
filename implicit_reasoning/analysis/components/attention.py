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
from implicit_reasoning.analysis.claims import MIN_CLUSTERS, known_means
from implicit_reasoning.analysis.components.knock_out import (
    existing_edges,
    knock_out_sites,
    knock_outs,
    margin,
    match_edges,
    match_everywhere,
)
from implicit_reasoning.analysis.components.rows import answer_rows
from implicit_reasoning.analysis.drawing import heat_maps, some_steps
from implicit_reasoning.analysis.instrument import Examples, Instrument, NotApplicable
from implicit_reasoning.analysis.patching.outcomes import answers_with
from implicit_reasoning.figures import Figure
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.blocks import require_gpt2
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.clusters import clusters_of

UNCHANGED, OTHER = "unchanged", "other"
ALL_HEADS = "all heads"
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
        mass = (found["pattern"] * weight).sum(-1)
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
            "counts": edges[..., None] & correct,
            "clean_margin": margin(logits, answer),
            "correct": correct,
        }

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Draw patterns, weighted patterns and the effects of knock-outs."""
        return [_pattern_figure(result), _written_figure(result), _knock_out_figure(result)]


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


_MAX_HEADS = 12  # maximum number of heads in a figure
_LEAST_WRITTEN = 0.01  # a head that writes less than this share of the longest vector is not drawn


def _shown_heads(result: xr.Dataset) -> list[tuple[int, int]]:
    """Return the heads that write most at the last step, in the order of blocks."""
    of_group = result.isel(step=-1, group=0)
    size = of_group["written"].max(("query_pos", "key_pos")).transpose("block", "head").values
    best = np.argsort(-size.ravel(), kind="stable")[:_MAX_HEADS]
    best = best[size.ravel()[best] >= _LEAST_WRITTEN * size.max()]
    return [(int(n) // size.shape[1], int(n) % size.shape[1]) for n in sorted(best)]


def _square(maps: dict[str, xr.DataArray], label: str, ncols: int, **more: Any) -> Any:
    """Draw maps of query positions (from top to bottom) and key positions."""
    turned = {title: values.isel(query_pos=slice(None, None, -1)) for title, values in maps.items()}
    return heat_maps(
        turned, label, ncols=ncols, rows="query_pos", columns="key_pos", width=0.4, **more
    )


def _lower(values: xr.DataArray) -> xr.DataArray:
    """Replace the edges that do not exist, from later keys, by nan."""
    n_pos = values.sizes["query_pos"]
    exists = xr.DataArray(np.tril(np.ones((n_pos, n_pos), bool)), dims=("query_pos", "key_pos"))
    return values.where(exists)


def _pattern_figure(result: xr.Dataset) -> Figure:
    heads, steps = _shown_heads(result), some_steps(result, 3)
    group = str(result.group.values[0])
    maps = {
        f"a{block}.h{head}\nstep {step:,}": _lower(
            result.pattern.sel(step=step, group=group, block=block, head=head)
        )
        for block, head in heads
        for step in steps
    }
    caption = (
        f"The figure has the mean attention of each head over the queries of {group}. A row of a "
        "map is a query position, and its cells are the key positions that it attends to; the "
        "cells of a row sum to 1. A query attends to itself on the diagonal. A head that attends "
        "uniformly, as at step 0, is the null. Attention alone does not show that anything is "
        f"written; see the figure of written vectors. At most {_MAX_HEADS} heads are drawn, those "
        "that write the longest vectors at the last step."
    )
    drawing = _square(maps, "mean attention", len(steps) * 2)
    return Figure("attention", "Where do heads attend?", caption, drawing)


def _written_figure(result: xr.Dataset) -> Figure:
    heads, group = _shown_heads(result), str(result.group.values[0])
    last = result.written.isel(step=-1).sel(group=group)
    longest = float(last.max())
    scaled = last / longest if longest > 0 else last
    maps = {
        f"a{block}.h{head}": _lower(scaled.sel(block=block, head=head)) for block, head in heads
    }
    caption = (
        "A cell is the mean length of the vector A v W_O that a head adds to the residual stream "
        f"at the query position (row) from the key position (column), over the queries of {group} "
        f"at step {int(result.step[-1]):,}. Lengths are divided by the longest one, {longest:.3g}. "
        "A position that is attended to and writes next to nothing is an attention sink."
    )
    drawing = _square(maps, "length of the written vector (relative)", 6)
    return Figure("attention_written", "What do heads write?", caption, drawing)


def _knock_out_figure(result: xr.Dataset) -> Figure:
    group = str(result.group.values[0])
    steps = some_steps(result, 3)
    shares, everywhere, null, null_everywhere = (
        known_means(result, name).sel(group=group)
        for name in (
            *("fraction", "everywhere_fraction"),
            *("null_unchanged", "null_everywhere_unchanged"),
        )
    )
    series = {
        f"block {block}": (
            shares.sel(outcome=UNCHANGED, block=block, cut=ALL_HEADS),
            null.sel(block=block, cut=ALL_HEADS),
        )
        for block in result.block.values
    }
    series["all blocks"] = everywhere.sel(outcome=UNCHANGED), null_everywhere
    maps, nulls = {}, {}
    for name, (values, of_null) in series.items():
        for step in steps:
            title = f"{name}\nstep {step:,}"
            maps[title] = 1 - values.sel(step=step)
            nulls[title] = (1 - of_null.sel(step=step)).isel(query_pos=slice(None, None, -1))
    caption = (
        "An attention edge from a key position (column) to a query position (row) is knocked out "
        "in all heads of one block, or in all heads of all blocks. A cell is the share of right "
        f"answers that change, over the queries of {group} that are answered correctly without a "
        "knock-out. A high cell means that the answer needs what this edge moves. The number in "
        "brackets is the null: the knock-out of another edge to the same query position, with the "
        "most similar attention. White cells are edges that do not exist, or have fewer than "
        f"{MIN_CLUSTERS} clusters that count. The file analysis/attention.nc has single heads."
    )
    drawing = _square(maps, "share of changed answers", len(steps), nulls=nulls)
    return Figure("attention_knock_out", "Which attention edges are needed?", caption, drawing)
