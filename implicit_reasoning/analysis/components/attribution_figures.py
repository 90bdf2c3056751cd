"""Draw how well estimated effects agree with exact effects, over training."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from implicit_reasoning.analysis.claims import MIN_CLUSTERS, has_min_clusters, known_means
from implicit_reasoning.analysis.components.estimates import ESTIMATES
from implicit_reasoning.analysis.components.pair_attribution import DONORS, ESTIMATORS
from implicit_reasoning.analysis.drawing import heat_maps
from implicit_reasoning.figures import (
    BLACK,
    SERIES_COLORS,
    Figure,
    log_axis,
    new_drawing,
    step_axis,
)

_COLORS = dict(zip(ESTIMATES, SERIES_COLORS, strict=False)) | {ESTIMATORS[0]: BLACK}
_LEAST = 1e-4  # smaller shares are drawn here on a logarithmic axis

_ESTIMATES_IN_WORDS = (
    "AtP multiplies the difference of the values with the gradient in the clean run. AtP* "
    "recomputes attention patterns and skips one block at a time. RelP holds norm scales, "
    "attention patterns and the ratios of neurons constant. Integrated gradients average the "
    "gradient on the way from the clean run to the corrupt run."
)


def agreement_figure(result: xr.Dataset, name: str, title: str) -> Figure:
    """Draw the rank correlation of each estimate with exact patching, one panel for each kind."""
    group = _first_group(result)
    found = result.sel(group=group, ranked="effect")
    kinds = [str(kind) for kind in result["kind"].values]
    drawing, axes = new_drawing(
        2.4 + 2.9 * len(kinds), 3.2, ncols=len(kinds), sharey=True, sharex=True
    )
    for ax, kind in zip(axes, kinds, strict=True):
        _curves(ax, found.sel(kind=kind), "agreement", ESTIMATES)
        ax.axhline(0, color="grey", linewidth=0.8)
        ax.set_ylim(-1.05, 1.05)
        ax.set_title(kind, fontsize=10)
    axes[0].set_ylabel("rank correlation with exact patching")
    caption = (
        f"{_about_pairs(result, group)} A cell is one patch: of a state S[layer, pos], of the "
        "output of attention, an MLP or a head (parts), of the query, key or value of a head "
        "(projections), or of a neuron. A curve is the mean over pairs of Spearman's correlation "
        "between the estimated and the exact effects of the cells. At 1, the estimate orders the "
        f"cells as exact patching does. {_ESTIMATES_IN_WORDS} The shading is the 95% interval. "
        "Dashed curves are the null, where the donor run is that of another pair: what an estimate "
        "reaches for any exchanged run, whether or not it changes the bridge. Curves are missing "
        f"where fewer than {MIN_CLUSTERS} clusters count."
    )
    return Figure(name, title, caption, _finished(drawing, axes, result))


def incompleteness_figure(result: xr.Dataset) -> Figure:
    """Draw how far the effects of all positions of a layer are from the whole difference."""
    group = _first_group(result)
    found = result.sel(group=group)
    layers = [int(layer) for layer in result["layer"].values]
    drawing, axes = new_drawing(
        2.4 + 2.5 * len(layers), 3.2, ncols=len(layers), sharey=True, sharex=True
    )
    for ax, layer in zip(axes, layers, strict=True):
        _curves(ax, found.sel(layer=layer), "incompleteness", ESTIMATORS, least=_LEAST)
        ax.set_ylim(0.7 * _LEAST, 4)  # also if no curve has a value
        log_axis(ax)
        ax.set_title(f"layer {layer}", fontsize=10)
    axes[0].set_ylabel("missing or excess share")
    caption = (
        f"{_about_pairs(result, group)} The effects of patches of S[layer, pos] are summed over "
        "all positions of a layer. A curve is the mean distance of the sum from the difference of "
        "the metric between the two runs, as a share of the mean difference. For integrated "
        "gradients, the distance shows the error of the quadrature. For exact patching, it shows "
        "that effects do not add up: two positions together do more or less than each alone. "
        f"Values below {_LEAST:g} are drawn at {_LEAST:g}. Dashed curves are the null, where the "
        "donor run is that of another pair."
    )
    title = "Do the effects of all positions sum to the whole difference?"
    return Figure("attribution_completeness", title, caption, _finished(drawing, axes, result))


def states_figure(result: xr.Dataset) -> Figure:
    """Draw the effects of states by each estimator at the last step, as shares."""
    group, step = _first_group(result), int(result["step"][-1])
    last = result.sel(group=group).isel(step=-1)
    effects = known_means(last, "states_effect") / last["difference"]
    effects = effects.clip(-1, 1)
    own, other = (effects.sel(donor=donor) for donor in DONORS)
    maps = {name: own.sel(estimator=name) for name in ESTIMATORS}
    maps[f"null:\n{ESTIMATORS[0]}"] = other.sel(estimator=ESTIMATORS[0])
    drawing = heat_maps(maps, "share of the difference", ncols=len(maps), lowest=-1.0)
    caption = (
        f"{_about_pairs(result, group)} A map shows, at step {step:,}, the mean effect of patching "
        "S[layer, pos] of the corrupt run into the clean run, as a share of the mean difference of "
        "the metric between the two runs, by exact patching and by each estimate. Shares beyond "
        "-1 and 1 are drawn as -1 and 1. In the map 'null', the donor run is that of another pair, "
        "so its effect is mostly damage."
    )
    title = "What do exact and estimated effects of states say?"
    return Figure("attribution_states", title, caption, drawing)


def missed_figure(result: xr.Dataset) -> Figure:
    """Draw the share of exact effects at neurons that each estimate misses."""
    group = _first_group(result)
    drawing, axes = new_drawing(6.2, 3.2)
    _curves(axes[0], result.sel(group=group), "missed", ESTIMATES)
    axes[0].set_ylim(-0.02, 1.02)
    axes[0].set_ylabel("missed share of exact effects")
    caption = (
        f"{_about_pairs(result, group)} A curve is the share of the summed sizes of exact effects "
        "of single neurons that belongs to neurons whose estimate is below 1% of the largest size. "
        "A neuron that is off in the clean run passes no gradient to what it reads, so AtP misses "
        f"earlier neurons that would turn it on. {_ESTIMATES_IN_WORDS} Dashed curves are the null, "
        "where the donor run is that of another pair."
    )
    title = "Which share of the neurons' effects do gradients miss?"
    return Figure("neuron_attribution_missed", title, caption, _finished(drawing, axes, result))


def _first_group(result: xr.Dataset) -> str:
    return str(result["group"].values[0])


def _about_pairs(result: xr.Dataset, group: str) -> str:
    options: Mapping[str, Any] = result.attrs.get("options", {})
    name = options["pairs"]["name"] if "pairs" in options else "bridge"
    return (
        f"The pairs are {name}, group {group}, with clean prompts that are answered correctly. One "
        "value of the corrupt run replaces that of the clean run."
    )


def _curves(
    ax: Axes,
    result: xr.Dataset,
    name: str,
    estimators: Sequence[str],
    *,
    least: float | None = None,
) -> None:
    """Draw an output over training, one color for each estimator."""
    known = has_min_clusters(result, name)
    marker = "o" if result.sizes["step"] == 1 else None  # a line of one point is invisible
    for estimator, (donor, style) in itertools.product(
        estimators, zip(DONORS, ("-", "--"), strict=True)
    ):
        color, at = _COLORS[estimator], {"estimator": estimator, "donor": donor}
        there = known.sel({dim: label for dim, label in at.items() if dim in known.dims})
        low, mean, high = (
            result[f"{name}{end}"].sel(at).where(there).clip(min=least)
            for end in ("_low", "", "_high")
        )
        shown = None
        if donor == DONORS[0]:
            ax.fill_between(result["step"], low, high, color=color, alpha=0.15, linewidth=0)
            shown = estimator
        ax.plot(result["step"], mean, style, color=color, lw=1.4, marker=marker, label=shown)


def _finished(drawing: Drawing, axes: list[Axes], result: xr.Dataset) -> Drawing:
    """Label the axes of training steps, and add the legend."""
    for ax in axes:
        step_axis(ax, int(result["step"][-1]))
        ax.set_xlabel("training step (log)")
        ax.tick_params(labelsize=8)
    axes[0].plot([], [], color="grey", linestyle="--", label="null: another pair's run")
    handles, labels = axes[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
    return drawing
