"""Direct logit attribution: what each component writes directly into a logit difference.

The logit difference is the logit of the answer minus the logit of the counterfactual answer, which
is the answer to the same query with one replaced token. The state before the final norm is a sum of
embeddings, head outputs, MLP outputs and biases. Given the scale of the final norm, logits are
linear in this sum. The part of a component is `(x - mean(x)) / scale`, times the weight of the
final norm, times the difference of the two columns of the unembedding. The parts sum to the logit
difference. The scale depends on all components, and a part does not contain what later components
compute from the component.

Source: Elhage et al. 2021, "A mathematical framework for transformer circuits"; Wang et al. 2023,
"Interpretability in the wild", section 3 (direct effects).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int, Key
from matplotlib.figure import Figure as Drawing

from implicit_reasoning.analysis import queries
from implicit_reasoning.analysis.claims import MIN_CLUSTERS, known_means
from implicit_reasoning.analysis.drawing import some_groups
from implicit_reasoning.analysis.instrument import Examples, Instrument, NotApplicable
from implicit_reasoning.analysis.patching.query_pairs import replacements
from implicit_reasoning.analysis.states import another_of_group, chain_splits, choose_rows
from implicit_reasoning.figures import BLACK, GREY, SERIES_COLORS, Figure, new_drawing, step_axis
from implicit_reasoning.model import Params, Transformer, unembedding_matrix
from implicit_reasoning.model.blocks import require_gpt2
from implicit_reasoning.model.edits import expand_to_rank
from implicit_reasoning.model.wirings import forward_at
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.clusters import clusters_of

TRUTHS = ("own", "another query")
_MAX_ROWS = 150  # maximum number of rows per split
_SEED = 0
_SHOWN = 6  # number of components in the figure


class DirectLogitAttribution(Instrument):
    """Instrument that splits a logit difference into the parts that components write directly."""

    name = "direct_logit_attribution"
    definition = (
        "The logit of the answer minus the logit of the counterfactual answer (that of the query "
        "with one exchanged token), at the last position. part: the share of a component in this "
        "difference: its output at the last position, centered, divided by the scale of the final "
        "norm, times the norm's weight and the difference of the unembedding's columns. Components "
        "are embeddings, heads (a0.h1), attention biases, MLPs (m0, without their output bias), "
        "MLP biases, and the biases of final norm and unembedding. The parts sum to "
        "logit_difference. compared: whether the query with the exchanged token has another "
        "answer. Null: the two answers are those of another query of the group."
    )
    outputs = {
        "part": ("component", "truth", "token", "example"),
        "logit_difference": ("truth", "token", "example"),
        "compared": ("truth", "token", "example"),
    }
    given = dict.fromkeys(("part", "logit_difference"), "compared")
    nulls = {"answers of another query": {"truth": TRUTHS[1]}}
    version = 2

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Choose rows of every split whose prompts are full chains, such as (e1, r1, r2).

        In confidence intervals, rows with the same bridge (e2) form a cluster.

        Raises:
          NotApplicable: the task is not a chain task, or the blocks of the model are not `gpt2`.
        """
        require_gpt2(model.spec, f"the instrument {self.name!r}", NotApplicable)
        splits = chain_splits(dataset)
        rows, group = choose_rows(dataset, splits, _MAX_ROWS)
        asked, random = queries.queries_of_rows(dataset, rows), np.random.default_rng(_SEED)
        _, changed = replacements(dataset, asked, random)
        changed = changed[queries.prompt_order(dataset)]
        another = another_of_group(group, random)
        inputs = {
            "tokens": queries.prompt_tokens(dataset, asked.parts),
            "answer": np.stack([asked.answer, asked.answer[another]]).astype(np.int32),
            "counterfactual": np.stack([changed, changed[:, another]]).astype(np.int32),
        }
        coords = {"token": dataset.positions}
        return Examples(inputs, splits, group, clusters_of(dataset, rows), coords=coords)

    def coords(self, model: Transformer, dataset: Dataset) -> dict[str, Sequence[Any]]:
        """Return the labels of components and truths."""
        return {"component": component_names(model), "truth": TRUTHS}

    def sites(self, model: Transformer) -> tuple[str, ...]:
        """Return the names of the sites that the forward pass caches."""
        return written_sites(model)

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Compute the parts of all components."""
        tokens, sites = jnp.asarray(inputs["tokens"]), self.sites(model)
        logits, values = forward_at(model, params, tokens, sites=sites)
        answer, other = jnp.asarray(inputs["answer"])[:, None], inputs["counterfactual"]
        known = jnp.asarray(other) >= 0
        answer = jnp.broadcast_to(answer, known.shape)
        other = jnp.maximum(jnp.asarray(other), 0)
        rows = jnp.arange(len(tokens))
        difference = logits[rows, 0, answer] - logits[rows, 0, other]
        return {
            "part": direct_parts(model, params, values, answer, other),
            "logit_difference": difference,
            "compared": known,
        }

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Draw the largest parts over training, for the first replaced token."""
        token = str(result["token"].values[0])
        caption = (
            "The thick line is the mean logit of the right answer minus that of the answer to the "
            f"query with {token} exchanged. The thin lines are what single components write "
            "directly into this difference at the last position: heads (a0.h1: block 0, head 1), "
            "MLPs (m1: block 1), embeddings and biases. The thin lines sum to the thick line. A "
            "component with a part near 0 may still matter, because later components read its "
            f"output. The {_SHOWN} largest components of the last step are drawn by name. The "
            "dashed line is the null, the difference between the two answers of another query. "
            f"Lines are missing where fewer than {MIN_CLUSTERS} bridges count."
        )
        title = "Which components write the answer directly?"
        return [Figure(self.name, title, caption, _drawing(result, token))]


def _drawing(result: xr.Dataset, token: str) -> Drawing:
    """Draw the lines of the largest components, of all others together, and of the sums."""
    parts, totals = (
        known_means(result, name).sel(token=token) for name in ("part", "logit_difference")
    )
    groups, own = some_groups(result), parts.sel(truth=TRUTHS[0])
    last = own.sel(group=groups).isel(step=-1).transpose("component", "group").fillna(0)
    order = np.argsort(-np.abs(last.values).max(1), kind="stable")[:_SHOWN]
    shown = [str(result["component"].values[place]) for place in order]
    lines = {name: own.sel(component=name) for name in shown}
    lines["all others"] = own.drop_sel(component=shown).sum("component", skipna=False)
    styles: list[dict[str, Any]] = [{"color": color} for color in (*SERIES_COLORS[:_SHOWN], GREY)]
    names = ("logit difference", "null: answers of\nanother query")
    for truth, name, dashes in zip(TRUTHS, names, ("-", "--"), strict=True):
        lines[name] = totals.sel(truth=truth)
        styles.append({"color": BLACK, "linestyle": dashes, "linewidth": 2})
    drawing, axes = new_drawing(
        2.2 + 3.4 * len(groups), 3.4, ncols=len(groups), sharey=True, sharex=True
    )
    marker = "o" if result.sizes["step"] == 1 else None  # a line of one point is invisible
    for ax, group in zip(axes, groups, strict=True):
        for (name, line), style in zip(lines.items(), styles, strict=True):
            ax.plot(result["step"], line.sel(group=group), marker=marker, label=name, **style)
        step_axis(ax, int(result["step"][-1]))
        ax.set_title(group, fontsize=10)
        ax.set_xlabel("training step (log)")
    axes[0].set_ylabel("part of the logit difference")
    handles, labels = axes[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
    return drawing


def component_names(model: Transformer) -> tuple[str, ...]:
    """Return the names of the components, in the order of `direct_parts`."""
    heads = [f"h{head}" for head in range(model.spec.n_heads)]
    names = ["embed", "pos_embed"]
    for block in range(model.spec.depth):
        names += [f"a{block}.{name}" for name in (*heads, "bias")] + [f"m{block}", f"m{block}.bias"]
    return (*names, "final norm bias", "unembedding bias")


def written_sites(model: Transformer) -> tuple[str, ...]:
    """Return the sites (hook points) from which `direct_parts` computes its result."""
    inside = [
        f"blocks.{block}.{name}"
        for block in range(model.spec.depth)
        for name in ("attn.hook_z", "hook_mlp_out")
    ]
    scale = [site for site in model.sites if site == "ln_final.hook_scale"]
    return ("hook_embed", "hook_pos_embed", *inside, *scale)


def direct_parts(
    model: Transformer,
    params: Params,
    values: dict[str, Array],
    answer: Int[Array, "*case example"],
    other: Int[Array, "*case example"],
) -> Float[Array, "component *case example"]:
    """Split logit differences at the last position into the parts of all components.

    Args:
      model: the model, with GPT-2's blocks.
      params: parameters of the model.
      values: the values at `written_sites` in a run.
      answer: the tokens whose logits are split.
      other: the tokens whose logits are subtracted.
    """
    spec = model.spec
    last = {site: value[:, -1].astype(jnp.float32) for site, value in values.items()}
    n_examples = answer.shape[-1]
    written = [last["hook_embed"][None], last["hook_pos_embed"][None]]
    for block in range(spec.depth):
        own = params["blocks"][str(block % spec.n_layers)]
        bias = jnp.broadcast_to(own["mlp"]["b_out"], last["hook_embed"].shape)
        heads = jnp.einsum("ehd,hdm->hem", last[f"blocks.{block}.attn.hook_z"], own["attn"]["W_O"])
        of_attention = jnp.broadcast_to(own["attn"]["b_O"], bias.shape)
        mlp = last[f"blocks.{block}.hook_mlp_out"] - bias
        written += [heads, of_attention[None], mlp[None], bias[None]]
    x = jnp.concatenate(written)
    columns = unembedding_matrix(params).T
    direction = columns[answer] - columns[other]  # [*case, example, d_model]
    of_norm = jnp.zeros(answer.shape)
    if "ln_final.hook_scale" in last:
        norm = params["ln_final"]
        of_norm = direction @ norm["b"]
        x = (x - x.mean(-1, keepdims=True)) / last["ln_final.hook_scale"][None]
        direction = direction * expand_to_rank(norm["w"], direction)
    cases = direction.reshape(-1, n_examples, direction.shape[-1])
    parts = jnp.einsum("xem,cem->xce", x, cases).reshape(len(x), *answer.shape)
    biases = params.get("unembed", {}).get("b_U", jnp.zeros(spec.d_vocab))
    of_unembedding = biases[answer] - biases[other]
    return jnp.concatenate([parts, of_norm[None], of_unembedding[None]])
