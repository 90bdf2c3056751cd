"""Measure attribute enrichment at e1 while the MLPs or the attention of early blocks are off.

If the facts of e1 have m different tails, attribute enrichment is the share of these tails among
the m entities with the highest logits in the unembedded state at e1. A model that looks up facts
when it reads e1, before it reads the relation, has a high share. Geva et al. call the share of
attributes among the tokens with the highest logits the attribute rate. They switch off MLPs or
attention of some blocks to find out which of them write the attributes.

Here, the MLPs (or the attention) of the first n blocks are off at the position e1. Their output
there is replaced by its mean over entities, which does not depend on e1. The answers to single
facts and to chains show whether the model needs what was switched off.

Source: Geva et al. 2023, "Dissecting recall of factual associations in auto-regressive language
models", section 5 (they set outputs to zero).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Key

from implicit_reasoning.analysis.drawing import curves, layer_colors
from implicit_reasoning.analysis.facts import fact_rows, first_known_position
from implicit_reasoning.analysis.instrument import Examples, Instrument, NotApplicable
from implicit_reasoning.analysis.patching.outcomes import answers_with
from implicit_reasoning.analysis.reading.attributes import WHOSE, tail_shares, tails_of
from implicit_reasoning.analysis.states import prompts
from implicit_reasoning.figures import GREY, Figure, new_drawing, step_axis
from implicit_reasoning.model import Edit, HookContext, Params, Transformer, mask
from implicit_reasoning.model.blocks import require_gpt2
from implicit_reasoning.worlds import Dataset

PARTS = {"MLPs": "hook_mlp_out", "attention": "hook_attn_out"}
_MAX_FACTS = 300


class Enrichment(Instrument):
    """Instrument that decodes tails of e1 at e1 while early MLPs or attention are off."""

    name = "enrichment"
    definition = (
        "Chains with distinct first facts, at most 300. off: whether the MLPs or the attention of "
        "the first n_off blocks are off. Their output at the position e1 is replaced by its mean "
        "over entities. attributes: share of the m entities that unembed(norm(S[layer, e1])) ranks "
        "highest that are tails of e1 (own), or of another entity (null); m is the number of those "
        "tails. fact_right: whether the answer at the position where e2 is first known is the "
        "training target of the atomic prompt. chain_right: whether the answer to the chain is "
        "right. n_off = 0 is the unchanged model."
    )
    outputs = {
        "attributes": ("off", "n_off", "whose", "layer", "example"),
        "fact_right": ("off", "n_off", "example"),
        "chain_right": ("off", "n_off", "example"),
    }
    nulls = {"tails of another entity": {"whose": WHOSE[1]}}
    default = False

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Choose one chain for each fact. The role of the fact determines the group.

        In confidence intervals, chains with the same e1 form a cluster.

        Raises:
          NotApplicable: the task is not a chain task, prompts do not begin with e1, or the model
            has another block than `gpt2`.
        """
        require_gpt2(model.spec, f"the instrument {self.name!r}", NotApplicable)
        facts = fact_rows(dataset, _MAX_FACTS)
        if dataset.positions[0] != "e1":
            raise NotApplicable(
                "enrichment at e1 needs prompts that begin with e1; these prompts begin with "
                f"{dataset.positions[0]} (see task.order)"
            )
        truth, e1 = dataset.truth, dataset.truth["e1"][facts.rows]
        inputs = {
            "tokens": prompts(dataset, facts.rows),
            "answer": truth["answer"][facts.rows],
            "bridge": truth["decoy" if "decoy" in truth else "e2"][facts.rows],
            "known": np.int32(
                dataset.positions.index(first_known_position("e2", dataset.positions))
            ),
            "tails": tails_of(dataset, e1),
            # Each entity has the same weight in the mean.
            "weight": (1 / np.bincount(e1)[e1] / len(np.unique(e1))).astype(np.float32),
        }
        return Examples(inputs, facts.groups, facts.group, e1.astype(np.int64))

    def coords(self, model: Transformer, dataset: Dataset) -> dict[str, Sequence[Any]]:
        """Return the labels of all dimensions."""
        return super().coords(model, dataset) | {
            "off": tuple(PARTS),
            "n_off": range(model.spec.depth + 1),
            "whose": WHOSE,
        }

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Run the model with the parts of the first blocks off, for each number of blocks."""
        tokens, depth = jnp.asarray(inputs["tokens"]), model.spec.depth
        tails, network = jnp.asarray(inputs["tails"]), model.bind(params)
        sites = [[f"blocks.{block}.{site}" for block in range(depth)] for site in PARTS.values()]
        clean = model.forward(params, tokens, sites=[name for names in sites for name in names])[1]
        weight = jnp.asarray(inputs["weight"])[:, None]
        first = (jnp.arange(tokens.shape[1]) == 0)[:, None]

        def one(off: Array, n_off: Array) -> dict[str, Array]:
            edits = {
                name: Edit(
                    mask,
                    (first & (off == part) & (block < n_off), (clean[name][:, 0] * weight).sum(0)),
                )
                for part, names in enumerate(sites)
                for block, name in enumerate(names)
            }
            logits, states = model.forward(params, tokens, edits=edits, sites=model.resid_sites)
            at_e1 = jnp.stack([states[site][:, 0] for site in model.resid_sites])
            shares = jax.lax.map(
                lambda state: tail_shares(network.readout(state, HookContext()), tails), at_e1
            )
            return {
                "attributes": jnp.swapaxes(shares, 0, 1),
                "fact_right": answers_with(
                    logits[:, inputs["known"]], jnp.asarray(inputs["bridge"])
                ),
                "chain_right": answers_with(logits[:, -1], jnp.asarray(inputs["answer"])),
            }

        counts = jnp.arange(depth + 1)
        found: dict[str, Array] = jax.lax.map(
            lambda off: jax.lax.map(lambda n_off: one(off, n_off), counts), jnp.arange(len(PARTS))
        )
        return found

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Draw attribute enrichment and answers over training, for each number of blocks off."""
        return [_enrichment(result), _answers(result)]


def _enrichment(result: xr.Dataset) -> Figure:
    group, most = str(result["group"].values[0]), int(result["n_off"][-1])
    panels: dict[str, dict[str, Any]] = {"nothing off": {"off": "MLPs", "n_off": 0}}
    for part in PARTS:
        panels |= {
            f"{part} off, first {n} of {most} blocks": {"off": part, "n_off": n}
            for n in range(1, most + 1)
        }
    null = {"group": group, "whose": WHOSE[1]}
    drawing = curves(
        result,
        "attributes",
        panels,
        select={"group": group, "whose": WHOSE[0]},
        nulls={"null: tails of\nanother entity": (null, GREY)},
        label="share of the first m entities",
        ncols=min(3, len(panels)),
    )
    caption = (
        "The logit lens ranks all entities by the state at position e1. Each curve shows, for one "
        "layer, the share of the first m entities that are tails of e1, where m is the number of "
        "these tails. In each panel, the MLPs or the attention of the first blocks are off at e1: "
        "their output there is replaced by its mean over entities. If a curve falls to the dashed "
        "line, the part that is off writes the tails. The dashed line is the null: the tails of "
        f"another entity, as the maximum over layers. Facts of the group {group}; the shading is "
        "the 95% interval, clustered by e1."
    )
    return Figure("enrichment", "Which parts write the tails of e1 at e1?", caption, drawing)


def _answers(result: xr.Dataset) -> Figure:
    group = str(result["group"].values[0])
    kinds = {"fact_right": "single facts", "chain_right": "chains"}
    panels = [(kind, part) for part in PARTS for kind in kinds]
    drawing, axes = new_drawing(
        8.5, 5.4, nrows=len(PARTS), ncols=len(kinds), sharey=True, sharex=True
    )
    colors = layer_colors(result.sizes["n_off"])
    for ax, (kind, part) in zip(axes, panels, strict=True):
        for n_off, color in zip(result["n_off"].values, colors, strict=True):
            at = {"group": group, "off": part, "n_off": n_off}
            low, high = (result[f"{kind}_{end}"].sel(at) for end in ("low", "high"))
            ax.fill_between(result["step"], low, high, color=color, alpha=0.15, linewidth=0)
            marker = "o" if result.sizes["step"] == 1 else None
            ax.plot(
                result["step"],
                result[kind].sel(at),
                color=color,
                marker=marker,
                label=f"first {n_off} blocks off" if n_off else "nothing off",
            )
        step_axis(ax, int(result["step"][-1]))
        ax.set_ylim(-0.02, 1.02)
        ax.set_title(f"{kinds[kind]}, {part} off at e1", fontsize=10)
    for number, ax in enumerate(axes):
        ax.set_xlabel("training step (log)" if number >= len(axes) - len(kinds) else "")
    drawing.supylabel("share of right answers", fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8.5)
    caption = (
        "Each curve shows the share of right answers while the MLPs (top) or the attention "
        "(bottom) of the first blocks are off at position e1, where their output is replaced by "
        "its mean over entities. Left: the answer to the single fact (e1, r1). Right: the answer "
        "to a chain. If a curve stays at that of the unchanged model (nothing off), the answers "
        "do not need what these parts write at e1. The null is the curve of step 0, if it was "
        f"measured. Facts of the group {group}; the shading is the 95% interval, clustered by e1."
    )
    return Figure("enrichment_answers", "Are the parts at e1 needed?", caption, drawing)
