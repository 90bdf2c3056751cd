"""Scores of attention heads: previous token, duplicate token, induction, copying and successor.

The scores of attention use the patterns of a head on the rows of any task. The scores of copying
and of the successor use the weights of a head and say what it would write if it attended to a
single position. Every score has a null: other keys, shuffled tokens, or shuffled successors.

Sources: see `detection.py` and `token_maps.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Int, Key

from implicit_reasoning.analysis.chunks import map_in_chunks
from implicit_reasoning.analysis.components.detection import (
    DETECTIONS,
    attention_to,
    has_queries,
)
from implicit_reasoning.analysis.components.rows import answer_rows
from implicit_reasoning.analysis.components.token_maps import (
    SPACES,
    Means,
    derangement,
    head_outputs,
    is_copied,
    mean_states,
    says_successor,
    share,
    successors,
)
from implicit_reasoning.analysis.facts import first_known_position
from implicit_reasoning.analysis.instrument import Examples, Instrument, NotApplicable
from implicit_reasoning.analysis.states import chain_variables
from implicit_reasoning.figures import SERIES_COLORS, Figure, new_drawing, step_axis
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.blocks import require_gpt2
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.clusters import clusters_of

TRUTHS = ("true", "shuffled")
_MAX_ROWS = 200  # maximum number of rows per split
_HEAD = ("block", "head")


class HeadScores(Instrument):
    """Instrument that scores attention heads by what they attend to and what they write."""

    name = "head_scores"
    definition = (
        "attention: mean attention to the token before the query (previous token), to earlier "
        "occurrences of the query's token (duplicate token), or to the tokens after these "
        "occurrences (induction); over the queries of a row that have such a key. other_keys: the "
        "attention of the same queries to as many other keys. offset_attention: mean attention to "
        "the key that is `offset` positions before the query. copying: share of tokens t whose "
        "embedding E_t gives norm(E_t) W_V W_O that is nearest to E_t (by cosine), or that "
        "unembeds to t. mean_copying: the same for the values of a variable, with the mean state "
        "of each value in place of the embedding, at the first position that determines the "
        "variable. successor: share of ordered tokens t for which unembed(OV(MLP0(E_t))) is "
        "highest at the next token (in the tasks successor and modular_addition, the first token "
        "follows the last one); nan if the task has no ordered tokens. truth: tokens and "
        "successors are true, or shuffled among the tokens. loss: cross-entropy over the "
        "supervised positions of a row, in nats. correct: whether the last answer is right."
    )
    outputs = {
        "attention": ("target", *_HEAD, "example"),
        "other_keys": ("target", *_HEAD, "example"),
        "exists": ("target", "example"),
        "offset_attention": ("offset", *_HEAD, "example"),
        "copying": ("truth", "space", *_HEAD),
        "mean_copying": ("truth", "variable", "space", *_HEAD),
        "n_values": ("variable",),
        "successor": ("truth", *_HEAD),
        "n_ordered": (),
        "loss": ("example",),
        "correct": ("example",),
    }
    given = {"attention": "exists", "other_keys": "exists"}
    nulls = {"other keys": "other_keys", "shuffled tokens": {"truth": "shuffled"}}
    version = 2
    default = False

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Choose rows of every split whose answers are at the most frequent position.

        Raises:
          NotApplicable: the blocks of the model are not `gpt2`, or `answer_rows` cannot be used.
        """
        require_gpt2(model.spec, "instrument head_scores", NotApplicable)
        chosen = answer_rows(dataset, _MAX_ROWS)
        n_pos, rows = len(chosen.positions), chosen.rows
        targets = dataset.targets[rows, :n_pos]
        means = _means(dataset, rows, chosen.positions)
        following = successors(dataset)
        all_tokens = np.arange(dataset.n_vocab, dtype=np.int32)
        ordered = following >= 0
        ordered[following[ordered]] = True
        values = np.stack([np.isin(all_tokens, mean.token) for mean in means])
        shuffled = [derangement(there, seed) for seed, there in enumerate(values)]
        of_order = derangement(ordered, len(means))
        inputs = {
            "tokens": dataset.tokens[rows, :n_pos],
            "targets": targets,
            "answer": dataset.truth["answer"][rows],
            "token": np.stack([all_tokens, derangement(all_tokens >= 0, 0)]).astype(np.int32),
            "place": np.stack([mean.place for mean in means]).astype(np.int32),
            "value": np.stack([mean.token for mean in means]).astype(np.int32),
            "of_value": np.stack([np.stack([all_tokens] * len(means)), shuffled]).astype(np.int32),
            "values": values,
            "following": np.stack(
                [following, np.where(following >= 0, of_order[following], -1)]
            ).astype(np.int32),
            "ordered": ordered,
        }
        coords = {
            "target": tuple(DETECTIONS),
            "offset": range(n_pos),
            "truth": TRUTHS,
            "space": SPACES,
            "variable": [mean.name for mean in means],
        }
        clusters = clusters_of(dataset, rows)
        return Examples(inputs, chosen.splits, chosen.group, clusters, coords=coords)

    def coords(self, model: Transformer, dataset: Dataset) -> dict[str, Sequence[Any]]:
        """Return the labels of the blocks and heads."""
        return {"block": range(model.spec.depth), "head": range(model.spec.n_heads)}

    def sites(self, model: Transformer) -> tuple[str, ...]:
        """Return the names of the sites of attention patterns and of the inputs of blocks."""
        names = ("hook_resid_pre", "attn.hook_pattern")
        return tuple(f"blocks.{n}.{name}" for n in range(model.spec.depth) for name in names)

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Compute the scores of all heads."""
        inputs = jax.tree.map(jnp.asarray, inputs)
        names = ("tokens", "targets", "answer")
        rows = {name: inputs[name] for name in names} | {"place": inputs["place"].T}
        found = map_in_chunks(lambda e: _on_rows(model, params, self.sites(model), e), rows)
        states = jnp.moveaxis(found.pop("states"), -1, 2)  # [variable, block, row, d_model]

        everything = jnp.ones(model.spec.d_vocab, bool)
        embedding = params["embed"]["W_E"].astype(jnp.float32)
        alone = head_outputs(
            model, params, jnp.broadcast_to(embedding, (model.spec.depth, *embedding.shape))
        )
        copying = jnp.stack(
            [
                share(is_copied(model, params, alone, token, everything), everything)
                for token in inputs["token"]
            ]
        )

        def of_variable(one: tuple[Array, ...]) -> Array:
            state, value, there, wanted = one
            means, counted = mean_states(state, value, model.spec.d_vocab)
            outputs = head_outputs(model, params, means)
            both = [is_copied(model, params, outputs, token, there) for token in wanted]
            return jnp.stack([share(copied, counted) for copied in both])

        wanted = jnp.swapaxes(inputs["of_value"], 0, 1)
        by_variable = jax.lax.map(of_variable, (states, inputs["value"], inputs["values"], wanted))
        successor = jnp.stack(
            [
                share(says_successor(model, params, after, inputs["ordered"]), after >= 0)
                for after in inputs["following"]
            ]
        )
        return found | {
            "copying": copying,
            "mean_copying": jnp.swapaxes(by_variable, 0, 1),
            "n_values": inputs["values"].sum(1),
            "successor": successor,
            "n_ordered": (inputs["following"][0] >= 0).sum(),
        }

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Draw the scores of heads over training, beside the loss."""
        return [_attention_figure(result), _copying_figure(result)]


def _means(
    dataset: Dataset, rows: Int[np.ndarray, " row"], positions: Sequence[str]
) -> list[Means]:
    """Return the variables whose mean states are copied, with the token of each row.

    In chain tasks, the variables are those that a position before the last one determines. In other
    tasks, it is the token that a head must move (`source_token`), or else the last token.
    """
    if "r2" in dataset.truth:
        variables, found = chain_variables(dataset, rows), []
        for name, tokens in zip(variables.names, variables.tokens, strict=True):
            place = list(positions).index(first_known_position(name, positions))
            if place < len(positions) - 1:
                found.append(Means(name, np.full(len(rows), place), tokens))
        return found
    if "source_token" in dataset.truth:
        truth = dataset.truth
        places, tokens = truth["source_position"][rows], truth["source_token"][rows]
        return [Means("source_token", places, tokens)]
    last = len(positions) - 1
    return [Means("last token", np.full(len(rows), last), dataset.tokens[rows, last])]


def _on_rows(
    model: Transformer, params: Params, sites: Sequence[str], example: dict[str, Array]
) -> dict[str, Array]:
    """Compute the scores of attention, the loss, and the states of variables, for some rows."""
    tokens, targets = example["tokens"], example["targets"]
    logits, found = model.forward(params, tokens, sites=sites)
    n_pos, blocks = tokens.shape[1], range(model.spec.depth)
    patterns = [found[f"blocks.{block}.attn.hook_pattern"] for block in blocks]
    detections = [detect(tokens) for detect in DETECTIONS.values()]
    scores = [[attention_to(pattern, one) for pattern in patterns] for one in detections]
    offsets = jnp.arange(n_pos)
    distance = (offsets[:, None] - offsets[None])[None]
    diagonal = (offsets[:, None, None] == distance).astype(jnp.float32)
    diagonal /= (n_pos - offsets)[:, None, None]
    by_offset = [
        jnp.einsum("bhqk,oqk->ohb", pattern, diagonal, precision="highest") for pattern in patterns
    ]
    supervised = targets >= 0
    chosen = jnp.maximum(targets, 0)[..., None]
    nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), chosen, axis=-1)[..., 0]
    states = jnp.stack([found[f"blocks.{block}.hook_resid_pre"] for block in blocks])
    picked = [
        jnp.take_along_axis(states, place[None, :, None, None], axis=2)[:, :, 0]
        for place in example["place"].T
    ]
    return {
        "attention": jnp.stack([jnp.stack([at for at, _ in one]) for one in scores]),
        "other_keys": jnp.stack([jnp.stack([rest for _, rest in one]) for one in scores]),
        "exists": jnp.stack([has_queries(one) for one in detections]),
        "offset_attention": jnp.stack(by_offset, axis=1),
        "loss": jnp.where(supervised, nats, 0.0).sum(1) / jnp.maximum(supervised.sum(1), 1),
        "correct": logits[:, -1].argmax(-1) == example["answer"],
        "states": jnp.moveaxis(jnp.stack(picked), 2, -1),
    }


_LINES = ("-", "--", ":", "-.")


def _lines(ax: Any, values: xr.DataArray) -> None:
    """Draw a line for each head; colors are blocks, and line styles are heads."""
    marker = "o" if values.sizes["step"] == 1 else None
    for place, block in enumerate(values.block.values):
        for number, head in enumerate(values["head"].values):
            ax.plot(
                values.step,
                values.sel(block=block, head=head),
                color=SERIES_COLORS[place % len(SERIES_COLORS)],
                linestyle=_LINES[number % len(_LINES)],
                linewidth=1.3,
                marker=marker,
                label=f"a{block}.h{head}",
            )


def _attention_figure(result: xr.Dataset) -> Figure:
    group = str(result.group.values[-1])
    at = result.sel(group=group)
    shown = [
        str(name) for name in result.target.values if at.attention.sel(target=name).notnull().any()
    ]
    drawing, axes = new_drawing(
        2.2 + 3.0 * (1 + len(shown)), 3.2, ncols=1 + len(shown), sharex=True
    )
    axes[0].plot(at.step, at.loss, color="black", marker="." if at.sizes["step"] < 3 else None)
    axes[0].fill_between(at.step, at.loss_low, at.loss_high, color="black", alpha=0.15, linewidth=0)
    axes[0].set_title("loss", fontsize=10)
    axes[0].set_ylabel("cross-entropy (nats)")
    for ax, name in zip(axes[1:], shown, strict=True):
        _lines(ax, at.attention.sel(target=name))
        null = at.other_keys.sel(target=name).max(("block", "head"))
        ax.plot(at.step, null, color="grey", linewidth=3, alpha=0.6, label="null: other keys")
        ax.set_ylim(-0.02, 1.02)
        ax.set_title(name, fontsize=10)
        ax.set_ylabel("mean attention" if name == shown[0] else "")
    for ax in axes:
        step_axis(ax, int(result.step[-1]))
        ax.set_xlabel("training step (log)")
        ax.tick_params(labelsize=8)
    handles, labels = axes[-1].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
    caption = (
        "The first panel has the cross-entropy over all supervised positions. The other panels "
        "have the attention of each head to the keys that give a type of head its name, over "
        f"{group}: the token before the query, earlier occurrences of the query's token, and the "
        "tokens after these occurrences. The gray line is the null: the attention of the same "
        "queries to as many other keys, as the maximum over heads. A drop of the loss at the "
        "steps at which induction rises is the induction bump of Olsson et al. 2022."
    )
    return Figure("head_scores", "When do heads form?", caption, drawing)


def _copying_figure(result: xr.Dataset) -> Figure:
    panels = {f"tokens,\n{space}": result.copying.sel(space=space) for space in result.space.values}
    for name in result.variable.values:
        for space in result.space.values:
            values = result.mean_copying.sel(variable=name, space=space)
            panels[f"means of {name},\n{space}"] = values
    if result.successor.notnull().any():
        panels["successor"] = result.successor
    ncols = min(4, len(panels))
    nrows = -(-len(panels) // ncols)
    drawing, axes = new_drawing(
        2.0 + 2.6 * ncols, 0.6 + 2.5 * nrows, nrows=nrows, ncols=ncols, sharex=True, sharey=True
    )
    for ax, (title, values) in zip(axes, panels.items(), strict=False):
        _lines(ax, values.sel(truth=TRUTHS[0]))
        null = values.sel(truth=TRUTHS[1]).max(("block", "head"))
        ax.plot(result.step, null, color="grey", linewidth=3, alpha=0.6, label="null")
        step_axis(ax, int(result.step[-1]))
        ax.set_ylim(-0.02, 1.02)
        ax.set_title(title, fontsize=9)
        ax.tick_params(labelsize=8)
    for index, ax in enumerate(axes):
        ax.set_visible(index < len(panels))
        ax.set_xlabel("training step (log)" if index + ncols >= len(panels) else "")
    drawing.supylabel("share", fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
    caption = (
        "A panel has the share of tokens, or of values of a variable, that the OV circuit of a "
        "head maps to themselves: the output is nearest to the token's own embedding, or unembeds "
        "to the token. Means are the mean states of the values at the position that determines "
        "the variable. For the successor, the output must unembed to the next token. The gray "
        "line is the null, the maximum over heads with shuffled tokens. A head that copies into "
        "a subspace that no embedding has scores 0 here; `head_moves` finds it."
    )
    return Figure("head_copying", "What do heads write for a single token?", caption, drawing)
