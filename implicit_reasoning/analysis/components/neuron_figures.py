"""Draw the figures of the instruments for neurons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from implicit_reasoning.analysis.claims import MAJORITY, MIN_CLUSTERS, known_means
from implicit_reasoning.analysis.drawing import layer_colors
from implicit_reasoning.figures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    SERIES_COLORS,
    Figure,
    new_drawing,
    step_axis,
)

_POINTS = 3000  # most neurons of one panel of a scatter plot


def kinds_of_keys(result: xr.Dataset) -> Figure:
    """Draw the number of neurons by kind of key over training."""
    activities, positions = result["activity"].values, result["pos"].values
    counts = result["kinds"].sum("block")
    shown = [str(name) for name in counts["trigger"].values if counts.sel(trigger=name).any()]
    colors = dict(zip(shown, _cycle(SERIES_COLORS, len(shown)), strict=True))
    drawing, axes = new_drawing(
        2.2 + 2.7 * len(positions),
        0.7 + 2.5 * len(activities),
        nrows=len(activities),
        ncols=len(positions),
        sharex=True,
        sharey="row",
    )
    panels = [{"activity": activity, "pos": pos} for activity in activities for pos in positions]
    for ax, panel in zip(axes, panels, strict=True):
        null = result["null_kinds"].sel(panel).sum("block", skipna=True)
        _line(ax, null, color=GREY, linestyle="--", label="null: permuted facts")
        rare = result["rarely_active"].sel({**panel, "active_in": [2, 3]}).sum("block")
        _line(ax, rare.mean("active_in"), color=GREY, linestyle=":", label="null: rarely active")
        for number, name in enumerate(shown):
            style = ("-", ":")[number // len(SERIES_COLORS) % 2]
            _line(
                ax,
                counts.sel({**panel, "trigger": name}),
                color=colors[name],
                linestyle=style,
                label=name,
            )
        ax.set_title(f"{panel['pos']}, {panel['activity']}", fontsize=9.5)
        step_axis(ax, int(result["step"][-1]))
    _step_labels(axes, len(positions))
    drawing.supylabel("number of neurons", fontsize=10)
    _legend(drawing, axes[0])
    states = ", ".join(
        f"{int(result['n_states'].isel(step=-1).sel(pos=p))} at {p}" for p in positions
    )
    caption = (
        "The key of a neuron is the trigger (token, bridge, answer, fact or chain) that matches "
        "its activity best, over the distinct states at a position. Each curve counts the "
        f"neurons of all blocks whose key has an F1 of at least {MAJORITY}, by the variable of "
        "the key. The key is chosen on one half of the states, and F1 is that on the other half. "
        "A trigger that is present in one state only (a fact at the position where it becomes "
        "known, a chain at the last position) is scored on all states. Rows: a neuron is active "
        "where its activation is positive, or above half of its maximum. The dashed line is the "
        "null: the number of neurons whose best trigger reaches this F1 if facts are permuted "
        "among the states, counting triggers that are present in several states. The dotted line "
        "is the null for triggers that are present in one state: the number of neurons that are "
        f"active in two or in three states, as the mean of both. States: {states}."
    )
    return Figure("neuron_keys", "What activates the neurons?", caption, drawing)


def key_scores(result: xr.Dataset) -> Figure:
    """Draw F1 of the best shared trigger of all neurons, and of permuted facts."""
    last = result.isel(step=-1)
    positions = [
        pos for pos in last["pos"].values if last["shared_f1"].sel(pos=pos).notnull().any()
    ]
    activities = last["activity"].values
    drawing, axes = new_drawing(
        2.2 + 2.9 * len(positions),
        0.7 + 2.5 * len(activities),
        nrows=len(activities),
        ncols=len(positions),
        sharex=True,
        sharey=True,
    )
    panels = [{"activity": activity, "pos": pos} for activity in activities for pos in positions]
    colors = layer_colors(last.sizes["block"])
    for ax, panel in zip(axes, panels, strict=True):
        for block, color in zip(last["block"].values, colors, strict=True):
            at = {**panel, "block": block}
            for name, style in (("shared_f1", "-"), ("null_f1", "--")):
                values = np.sort(last[name].sel(at).values)[::-1]
                label = f"block {block}" + (", null" if style == "--" else "")
                ax.plot(np.arange(1, len(values) + 1), values, color=color, ls=style, label=label)
        highest = float(last["highest_null_f1"].sel({**panel, "among": "all triggers"}).max())
        ax.axhline(highest, color=GREY, linestyle=":", label="highest null")
        ax.set_title(f"{panel['pos']}, {panel['activity']}", fontsize=9.5)
        ax.set_xscale("log")
        ax.set_ylim(-0.02, 1.02)
    for ax in axes[-len(positions) :]:
        ax.set_xlabel("neurons, in descending order")
    drawing.supylabel("F1 on the other half of the states", fontsize=10)
    _legend(drawing, axes[0])
    caption = (
        "The best trigger of each neuron is chosen on one half of the states, among the triggers "
        "that are present in several states. The solid curves show its F1 on the other half, for "
        f"all neurons of a block in descending order, at step {int(result['step'][-1]):,}. The "
        "dashed curves are the null: the mean F1 of each neuron over draws in which facts are "
        "permuted among the states. The dotted line is the highest F1 of any neuron of any block "
        "in any draw."
    )
    return Figure(
        "neuron_keys_f1", "Do neurons match triggers better than chance?", caption, drawing
    )


def values_of_keys(result: xr.Dataset) -> Figure:
    """Draw how often a neuron writes the entity to which its key leads."""
    positions, activity = result["pos"].values, result["activity"].values[-1]
    of = result.sel(activity=activity)
    fits = (of["f1"] >= MAJORITY) & of["value_rank"].notnull()
    drawing, axes = new_drawing(
        2.2 + 2.7 * len(positions), 3.2, ncols=len(positions), sharey=True, sharex=True
    )
    colors = layer_colors(of.sizes["block"])
    whose = of["whose"].values
    for ax, pos in zip(axes, positions, strict=True):
        for block, color in zip(of["block"].values, colors, strict=True):
            for name, style in zip(whose, ("-", "--"), strict=True):
                at = {"pos": pos, "block": block, "whose": name}
                there = fits.sel(at)
                first = (of["value_rank"].sel(at) == 0) & there
                share = first.sum("neuron") / there.sum("neuron").where(there.sum("neuron") > 0)
                label = f"block {block}" + (", null" if style == "--" else "")
                _line(ax, share, color=color, linestyle=style, label=label)
        ax.set_title(str(pos), fontsize=9.5)
        ax.set_ylim(-0.02, 1.02)
        step_axis(ax, int(result["step"][-1]))
    _step_labels(axes, len(positions))
    axes[0].set_ylabel("share of neurons")
    _legend(drawing, axes[0])
    caption = (
        "A key leads to an entity: a fact to its tail, a chain to its answer, and an entity to "
        "itself. The curves show the share of neurons that raise the logit of this entity more "
        "than that of any other entity, by their output weights and the unembedding, for neurons "
        f"whose key has an F1 of at least {MAJORITY} (active: {activity}). The dashed curves are "
        "the null: the key of another neuron of the block. A neuron of an early block can write "
        "for later blocks, in directions that the unembedding does not read."
    )
    return Figure("neuron_values", "Do neurons write what their key leads to?", caption, drawing)


def importance_and_effect(result: xr.Dataset) -> Figure:
    """Draw the importance of each neuron against the exact effect, at the last step."""
    group = str(result["group"].values[-1])
    last = result.isel(step=-1).sel(group=group)
    places, blocks = last["place"].values, last["block"].values
    drawing, axes = new_drawing(
        1.2 + 2.6 * len(blocks), 0.6 + 2.5 * len(places), nrows=len(places), ncols=len(blocks)
    )
    panels = [(place, block) for place in places for block in blocks]
    for ax, (place, block) in zip(axes, panels, strict=True):
        x = last["importance"].sel(block=block).values[:_POINTS]
        y = last["effect"].sel(block=block, place=place).values[:_POINTS]
        ax.scatter(x, y, s=7, color=BLUE, alpha=0.5, linewidths=0)
        rho = float(last["mean_rank_correlation"].sel(split=group, place=place, block=block))
        ax.set_title(f"block {block}, {place}\nrank correlation {rho:.2f}", fontsize=9)
        ax.axhline(0, color=GREY, linewidth=0.6)
        ax.axvline(0, color=GREY, linewidth=0.6)
        ax.tick_params(labelsize=7)
    drawing.supxlabel("log probability increase (nats)", fontsize=10)
    drawing.supylabel("drop of log odds by mean ablation (nats)", fontsize=10)
    caption = (
        f"Each point is a neuron at step {int(result['step'][-1]):,}, averaged over chains of "
        f"{group} that are answered correctly. Horizontal: how much the neuron raises the log "
        "probability of the answer if its output is added to the residual stream of its block and "
        "read out at once. Vertical: how much the log odds fall if the neuron is replaced "
        "by its mean, at all positions (top) or at the last position (bottom). Points on the "
        "vertical axis are neurons that matter and that the direct estimate does not see."
    )
    return Figure(
        "neuron_importance", "Does the direct estimate find the neurons?", caption, drawing
    )


def agreement(result: xr.Dataset) -> Figure:
    """Draw the agreement of importance and exact effect over training."""
    group, places = str(result["group"].values[-1]), result["place"].values
    names = {"rank_correlation": "rank correlation", "top_share": "share of the top 10"}
    drawing, axes = new_drawing(
        2.2 + 3.0 * len(places), 5.2, nrows=len(names), ncols=len(places), sharex=True, sharey="row"
    )
    colors = layer_colors(result.sizes["block"])
    panels = [(name, place) for name in names for place in places]
    for ax, (name, place) in zip(axes, panels, strict=True):
        for block, color in zip(result["block"].values, colors, strict=True):
            at = {"group": group, "place": place, "block": block}
            _band(ax, result, name, at, color=color, label=f"block {block}")
            null = known_means(result, f"null_{name}").sel(at)
            _line(ax, null, color=color, linestyle="--", label=f"block {block}, null")
        ax.set_title(f"{names[name]}, {place}", fontsize=9.5)
        step_axis(ax, int(result["step"][-1]))
    _step_labels(axes, len(places))
    _legend(drawing, axes[0])
    caption = (
        "Top: Spearman correlation over the neurons of a block between the log probability "
        "increase and the exact effect of mean ablation, as the mean over chains. Bottom: share of "
        "the 10 neurons with the largest effect that are among the 10 with the largest increase. "
        f"Chains of {group} that are answered correctly; the shading is the 95% interval, "
        "clustered by bridge. The dashed curves are the null: the increase for another chain. "
        f"Curves begin where the chains have at least {MIN_CLUSTERS} bridges."
    )
    return Figure("neuron_agreement", "Estimate and exact effect over training", caption, drawing)


def broken_answers(result: xr.Dataset) -> Figure:
    """Draw the share of wrong answers by the number of ablated neurons, at the last step."""
    last = result.isel(step=-1).isel(group=0)
    orders, hops = last["order"].values, last["hop"].values
    drawing, axes = new_drawing(
        2.2 + 3.0 * len(hops),
        0.6 + 2.5 * len(orders),
        nrows=len(orders),
        ncols=len(hops),
        sharex=True,
        sharey=True,
    )
    colors = {"own": BLUE, "of another fact": ORANGE, "random": GREY}
    panels = [{"order": order, "hop": hop} for order in orders for hop in hops]
    for ax, panel in zip(axes, panels, strict=True):
        for name in last["set"].values:
            at = {**panel, "set": name}
            low, high = (last[f"broken_{end}"].sel(at) for end in ("low", "high"))
            ax.fill_between(last["count"], low, high, color=colors[str(name)], alpha=0.15, lw=0)
            style = "-" if name == "own" else "--"
            label = f"neurons {name}" if name != "own" else "neurons of the fact"
            label = "random neurons" if name == "random" else label
            ax.plot(
                last["count"], last["broken"].sel(at), style, color=colors[str(name)], label=label
            )
        ax.set_xscale("log", base=2)
        ax.set_ylim(-0.02, 1.02)
        ax.set_title(f"{panel['hop']}\norder: {panel['order']}", fontsize=9)
    for ax in axes[-len(hops) :]:
        ax.set_xlabel("number of ablated neurons")
    drawing.supylabel("share of wrong answers", fontsize=10)
    _legend(drawing, axes[0])
    caption = (
        "Neurons are sorted by their effect on one half of the chains of a fact. The strongest are "
        "replaced by their means together, and the curve shows the share of wrong answers on the "
        f"other half of the chains, at step {int(result['step'][-1]):,}. First hop: chains that "
        "begin with the fact. Last hop: chains that end with it. Dashed: the same for the neurons "
        "of another fact and for random neurons (nulls). The shading is the 95% interval, "
        "clustered by bridge. If the orange curve rises with the blue one, the neurons are needed "
        "for all chains, and not for the fact."
    )
    return Figure("fact_neurons", "How many neurons carry a fact?", caption, drawing)


def overlap_of_hops(result: xr.Dataset) -> Figure:
    """Draw the needed number of neurons, and the overlap of the two hops, over training."""
    group, orders = str(result["group"].values[0]), result["order"].values
    drawing, axes = new_drawing(
        2.2 + 3.0 * len(orders), 5.2, nrows=2, ncols=len(orders), sharex=True, sharey="row"
    )
    for ax, order in zip(axes, orders, strict=False):
        at = {"group": group, "order": order}
        for hop, color in zip(result["hop"].values, (BLUE, ORANGE), strict=True):
            _band(ax, result, "needed", {**at, "hop": hop}, color=color, label=str(hop))
        ax.set_yscale("log", base=2)
        ax.set_ylim(0.8, 1.2 * float(result["count"].max()))
        ax.set_title(f"neurons needed\norder: {order}", fontsize=9)
    for ax, order in zip(axes[len(orders) :], orders, strict=True):
        at = {"group": group, "order": order}
        _band(ax, result, "overlap", at, color=GREEN, label="same fact")
        _band(ax, result, "null_overlap", at, color=GREY, label="null: different facts", ls="--")
        chance = known_means(result, "chance_overlap").sel(at)
        _line(ax, chance, color=GREY, linestyle=":", label="chance: random sets")
        ax.set_ylim(-0.02, 1.02)
        ax.set_title("overlap of the two hops", fontsize=9)
    for ax in axes:
        step_axis(ax, int(result["step"][-1]))
    _step_labels(axes, len(orders))
    axes[0].set_ylabel("number of neurons")
    axes[len(orders)].set_ylabel("share of the smaller set")
    handles = [*axes[0].get_legend_handles_labels()[0], *axes[-1].get_legend_handles_labels()[0]]
    drawing.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=8.5)
    caption = (
        "Top: the mean over facts of the smallest number of neurons (of 1, 2, 4, ...) whose "
        "ablation makes all answers wrong on the other half of the chains of a fact, where there "
        "is such a number. Bottom: the share of these neurons that serve the fact both as first "
        "hop and as last hop. In a model with one store of facts for both hops, the share is 1. In "
        "a model with a separate store for each hop, it is that of different facts (dashed null) "
        "or of random sets (dotted). The shading is the 95% interval, clustered by bridge. Curves "
        f"begin where the facts have at least {MIN_CLUSTERS} bridges."
    )
    return Figure("fact_neurons_overlap", "Do both hops use the same neurons?", caption, drawing)


def _cycle(colors: Sequence[str], count: int) -> list[str]:
    return [colors[number % len(colors)] for number in range(count)]


def _band(
    ax: Axes, result: xr.Dataset, name: str, at: dict[str, Any], *, color: str, **style: Any
) -> None:
    """Draw the mean of an output over training, with its interval."""
    mean = known_means(result, name).sel(at)
    low, high = (result[f"{name}_{end}"].sel(at).where(mean.notnull()) for end in ("low", "high"))
    ax.fill_between(result["step"], low, high, color=color, alpha=0.15, linewidth=0)
    _line(ax, mean, color=color, **style)


def _line(ax: Axes, values: xr.DataArray, **style: Any) -> None:
    # A line of one point is invisible, so a single checkpoint has a marker.
    marker = "o" if values.sizes["step"] == 1 else None
    ax.plot(values["step"], values, **{"linewidth": 1.5, "marker": marker, **style})


def _step_labels(axes: Sequence[Axes], ncols: int) -> None:
    for number, ax in enumerate(axes):
        ax.set_xlabel("training step (log)" if number >= len(axes) - ncols else "")


def _legend(drawing: Any, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8.5)
