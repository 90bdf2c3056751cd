"""Classify the answers of a model, and compare the answers with the answers of shortcuts.

A shortcut is a rule that predicts an answer without composing facts (see `worlds.shortcuts`).

The kind of a wrong answer gives evidence about the mechanism:

- If the answer is the bridge (e2), the model may have skipped the second hop.
- If the answer is the tail of a fact with relation r2 and a head other than the bridge, the first
  hop may be wrong.
- If the answer is the most frequent answer after r2, the model may have used r2 only.
- If the answer is the answer of the shortcut "row completion", the model may have used no facts.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Bool, Int, Key
from matplotlib.axes import Axes

from implicit_reasoning.analysis.claims import MIN_CLUSTERS, MIN_LOWER_BOUND, Claim
from implicit_reasoning.analysis.instrument import Examples, Instrument
from implicit_reasoning.analysis.states import chain_splits, choose_rows, prompts
from implicit_reasoning.analysis.suffix import final_logits
from implicit_reasoning.figures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    Figure,
    new_drawing,
    step_axis,
)
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.clusters import clusters_of
from implicit_reasoning.worlds.dataset import columns, world_of
from implicit_reasoning.worlds.shortcuts import RULES

ANSWER_KINDS = {
    "right": BLUE,
    "bridge": ORANGE,
    "row completion": PURPLE,
    "modal after r2": SKY,
    "r2 of another bridge": GREEN,
    "another entity": VERMILION,
    "no entity": GREY,
}
"""Kinds of answers with their colors. An answer has the first kind in this list that matches."""

_MAX_ROWS = 1000  # maximum number of rows per split
_ABOVE = 0.05  # an accuracy at most this much above the modal shortcuts is not composition
_CHEAP = ("modal_r2", "modal_e1_r2")
_COMPARED = (*_CHEAP, "row_completion")  # rules that results of this instrument have


class Behaviour(Instrument):
    """Instrument that classifies each answer, for example as right or as the bridge (e2).

    The instrument also measures how often the answers agree with shortcuts. A shortcut is a rule
    that predicts an answer without composing facts.
    """

    name = "behaviour"
    definition = (
        "The most likely token after the prompt gets the first kind that fits: right; the "
        "bridge (the entity before the last hop); the answer of row completion; the most "
        "frequent answer after the last relation; a tail of the last relation from another "
        "entity; another entity; no entity. fraction: share of answers of each kind. chance: "
        "share of all entities that have each kind. agreement: whether the answer is that of a "
        "shortcut. shortcut: whether the shortcut is right."
    )
    outputs = {
        "fraction": ("kind", "example"),
        "chance": ("kind", "example"),
        "agreement": ("rule", "example"),
        "shortcut": ("rule", "example"),
    }
    nulls = {"an entity at random": "chance"}

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Choose rows with full chains as prompts, such as (e1, r1, r2), from every split.

        In confidence intervals, rows with the same bridge (e2) form a cluster.
        """
        splits = chain_splits(dataset)
        rows, group = choose_rows(dataset, splits, _MAX_ROWS)
        rules = {name: RULES[name].predict(dataset, rows) for name in _COMPARED}
        answers = dataset.truth["answer"][rows]
        kind = kinds_of_tokens(dataset, rows, rules)
        entities = world_of(dataset).n_entities
        inputs = {
            "tokens": prompts(dataset, rows),
            "kind": kind,
            "chance": _shares_of(kind[:, :entities]).astype(np.float32),
            "predicted": np.stack(list(rules.values())).astype(np.int32),
            "answer": answers,
        }
        coords = {"kind": tuple(ANSWER_KINDS), "rule": tuple(rules)}
        return Examples(inputs, splits, group, clusters_of(dataset, rows), coords=coords)

    def sites(self, model: Transformer) -> tuple[str, ...]:
        """Return no sites, because the instrument uses answers only."""
        return ()

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Compute the kind of each answer, and whether each shortcut predicts the answer."""
        answer = final_logits(model, params, inputs["tokens"]).argmax(-1)
        kind = jnp.take_along_axis(inputs["kind"], answer[:, None], axis=1)[:, 0]
        predicted = inputs["predicted"]
        return {
            "fraction": jnp.arange(len(ANSWER_KINDS))[:, None] == kind[None],
            "chance": inputs["chance"],
            "agreement": predicted == answer[None],
            "shortcut": predicted == inputs["answer"][None],
        }

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Draw the shares of the kinds of answers, and the agreement with shortcuts."""
        return [_kinds(result), _agreement(result)]

    def claims(self, result: xr.Dataset) -> set[Claim]:
        """Claim "memorised" if the model answers only the chains that it was trained on.

        Every training split, such as "train_ii", is compared with its test split, such as
        "test_ii". The claim needs three conditions for every such pair of splits:

        - The lower end of the interval of the training accuracy is at least `MIN_LOWER_BOUND`.
        - The upper end of the interval of the test accuracy is at most u + 0.05. The number u is
          the upper end for the shortcut `modal_r2` or for the shortcut `modal_e1_r2`, whichever is
          larger.
        - The test split has at least `MIN_CLUSTERS` clusters.

        Right answers to held-out chains support no claim about the mechanism. They do not show
        whether prefixes share a code, and they are the truth for trained models; see
        `truth.by_answers`.
        """
        trained = [str(g) for g in result["group"].values if str(g).startswith("train_i")]
        pairs = [(g, g.replace("train", "test")) for g in trained]
        pairs = [(g, test) for g, test in pairs if test in result["group"].values]
        right = result.sel(kind="right")
        cheap = [rule for rule in _CHEAP if rule in result["rule"].values]
        by_shortcut = result["shortcut_high"].sel(rule=cheap).max("rule")
        memorised = [
            float(right["fraction_low"].sel(group=train)) >= MIN_LOWER_BOUND
            and float(right["fraction_high"].sel(group=test))
            <= float(by_shortcut.sel(group=test)) + _ABOVE
            and int(result["n_states"].sel(group=test)) >= MIN_CLUSTERS
            for train, test in pairs
        ]
        return {Claim("memorised", "e2")} if memorised and all(memorised) else set()


def kinds_of_tokens(
    dataset: Dataset, rows: Int[np.ndarray, " row"], rules: dict[str, Int[np.ndarray, " row"]]
) -> Int[np.ndarray, "row token"]:
    """Return the kind of every possible answer token, for each row.

    Args:
      dataset: a dataset of a chain task.
      rows: indices of dataset rows.
      rules: for each shortcut, by name, the answer that the shortcut predicts in each row.

    Returns:
      int8 [row, token], the index of the kind in `ANSWER_KINDS`.
    """
    world, truth = world_of(dataset), dataset.truth
    last = columns(truth, "r")[-1][rows]
    bridge = columns(truth, "e")[dataset.hops - 1][rows]
    tokens = np.arange(dataset.n_vocab)[None]
    elsewhere = _reached(world.tail)[last]
    is_of = {
        "right": tokens == truth["answer"][rows, None],
        "bridge": tokens == bridge[:, None],
        "row completion": tokens == rules["row_completion"][:, None],
        "modal after r2": tokens == rules["modal_r2"][:, None],
        "r2 of another bridge": np.pad(
            elsewhere, ((0, 0), (0, dataset.n_vocab - world.n_entities))
        ),
        "another entity": np.broadcast_to(tokens < world.n_entities, (len(rows), tokens.size)),
        "no entity": np.ones((len(rows), tokens.size), bool),
    }
    return np.stack([is_of[kind] for kind in ANSWER_KINDS]).argmax(0).astype(np.int8)


def _reached(tail: Int[np.ndarray, "entity relation"]) -> Bool[np.ndarray, "relation entity"]:
    """Return for each relation and entity whether a fact has this relation and this tail."""
    reached = np.zeros((tail.shape[1], tail.shape[0]), bool)
    head, relation = np.nonzero(tail >= 0)
    reached[relation, tail[head, relation]] = True
    return reached


def _shares_of(kind: Int[np.ndarray, "row token"]) -> np.ndarray:
    """Return the share of tokens that have each kind, as an array [kind, row]."""
    return np.stack([(kind == place).mean(1) for place in range(len(ANSWER_KINDS))])


def _kinds(result: xr.Dataset) -> Figure:
    """Draw the shares of all kinds of answers, stacked.

    The narrow panels on the right show the shares for an entity that is drawn at random.
    """
    groups, steps = [str(group) for group in result["group"].values], result["step"].values
    drawing, axes = new_drawing(
        8.4,
        1.9 * len(groups) + 0.6,
        nrows=len(groups),
        ncols=2,
        sharex="col",
        sharey=True,
        width_ratios=[14, 1],
    )
    for group, ax, beside in zip(groups, axes[::2], axes[1::2], strict=True):
        of_group = result.sel(group=group)
        _stack(ax, steps, of_group["fraction"])
        # Chance depends on the queries only, so it is the same at every checkpoint.
        _stack(beside, np.array([0, 1]), of_group["chance"].isel(step=[0, 0]))
        for rule, style in zip(result["rule"].values, (":", "-.", "--"), strict=False):
            level = float(of_group["shortcut"].sel(rule=rule).isel(step=0))
            label = f"accuracy of the\nshortcut {rule}"
            ax.axhline(level, color="black", linestyle=style, linewidth=1, label=label)
        ax.set_ylim(0, 1)
        ax.set_ylabel(f"{group}\nshare of answers")
        step_axis(ax, int(steps[-1]))
        ax.set_xlabel("")
        beside.set_xlim(0, 1)
        beside.set_xticks([])
    axes[-2].set_xlabel("training step (log scale above 1)")
    axes[-1].set_xlabel("chance")
    handles, labels = axes[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=7.5)
    caption = (
        "The stacked areas are the shares of the model's answers that have each kind, by split. "
        "An answer has the first kind that fits, counted from the bottom. The black lines show "
        "how often a shortcut, which composes nothing, is right. If the model is not right more "
        "often than a shortcut, its answers are no evidence of composition. The narrow panels "
        "at the right are the null (chance): the kinds of entities that are drawn at random. "
        "This null is high for some kinds, because many entities are tails of r2. A kind that "
        "is no more frequent than in the null says nothing about the mechanism."
    )
    return Figure("behaviour", "Kinds of answers", caption, drawing)


def _stack(ax: Axes, x: np.ndarray, share: xr.DataArray) -> None:
    """Draw the areas of all kinds, stacked in the order of `ANSWER_KINDS`."""
    below = np.zeros(len(x))
    for kind, color in ANSWER_KINDS.items():
        above = below + share.sel(kind=kind).values
        ax.fill_between(x, below, above, color=color, label=kind, linewidth=0)
        below = above


def _agreement(result: xr.Dataset) -> Figure:
    """Draw how often the answer agrees with a shortcut, and how often the shortcut is right."""
    groups, steps = [str(group) for group in result["group"].values], result["step"].values
    ncols = min(3, len(groups))
    nrows = -(-len(groups) // ncols)
    drawing, axes = new_drawing(
        2.0 + 2.9 * ncols, 0.6 + 2.4 * nrows, nrows=nrows, ncols=ncols, sharey=True
    )
    for group, ax in zip(groups, axes, strict=False):
        for rule, color in zip(result["rule"].values, (SKY, GREEN, PURPLE), strict=False):
            of_rule = result.sel(group=group, rule=rule)
            low, high = of_rule["agreement_low"], of_rule["agreement_high"]
            ax.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
            # A line of one point is invisible, so a single checkpoint has a marker.
            marker = "o" if len(steps) == 1 else None
            ax.plot(steps, of_rule["agreement"], color=color, marker=marker, label=str(rule))
            level = float(of_rule["shortcut"].isel(step=0))
            ax.axhline(level, color=color, linestyle="--", linewidth=1, label=f"accuracy of {rule}")
        step_axis(ax, int(steps[-1]))
        ax.set_ylim(-0.02, 1.02)
        ax.set_title(group, fontsize=10)
        ax.set_xlabel("training step (log)")
        ax.tick_params(labelsize=8)
    for ax in axes[len(groups) :]:
        ax.set_visible(False)
    drawing.supylabel("share of answers equal to the shortcut's", fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
    caption = (
        "Each curve shows how often the model gives the answer of a shortcut, right or wrong, "
        "by split. The shading is the 95% interval, clustered by bridge. The dashed lines show "
        "how often the shortcut is right, which is the agreement of a model without mistakes. A "
        "curve above its dashed line means that the model also makes mistakes of the shortcut. "
        "A curve that falls to its dashed line means that the model no longer uses the shortcut."
    )
    return Figure("behaviour_shortcuts", "Agreement with shortcuts", caption, drawing)
