"""Draw reconstruction quality against the number of active features."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from implicit_reasoning.analysis.drawing import layer_colors
from implicit_reasoning.dictionaries.figures.drawing import MARKERS, features_axis, legends, panels
from implicit_reasoning.dictionaries.results import distinct, trained_members
from implicit_reasoning.figures import SERIES_COLORS, Figure, new_drawing

_BELOW = "active features per state (mean, log scale)"


def pareto(name: str, result: xr.Dataset) -> Figure:
    """Plot reconstruction quality against the number of active features.

    The figure has one line per checkpoint and one column of panels per hook site.
    """
    result = trained_members(result)
    steps, quantities = distinct(result["step"]), {"explained_variance": "explained variance"}
    if "ce_loss_score_mean" in result:
        quantities["ce_loss_score_mean"] = "loss recovered"
    drawing, rows, sites = panels(result, len(quantities), below=_BELOW)
    colors = layer_colors(len(steps))
    for row, (quantity, label) in zip(rows, quantities.items(), strict=True):
        row[0].set_ylabel(label)
        # Values far below 0 are cut off; every value below 0 is worse than no dictionary.
        row[0].set_ylim(max(_lowest(result[quantity]) - 0.03, -0.2), 1.03)
        for ax, site in zip(row, sites, strict=True):
            for number, step in enumerate(steps):
                of = (result["site"] == site) & (result["step"] == step)
                style = {"color": colors[number], "marker": MARKERS[number % len(MARKERS)]}
                _line(ax, result.sel(member=of.values), quantity, style, f"step {step:,}")
            features_axis(ax)
            ax.axhline(0, color="black", linewidth=0.5)
    legends(drawing, rows[:1])
    caption = (
        f"The figure shows how well the dictionaries {name!r} reconstruct states, against the "
        "number of active features per state (log scale). Each point is one sparsity, as the "
        "mean over seeds, with a bar from the lowest to the highest seed. Each line is one "
        f"checkpoint. The numbers are measured on {result.attrs['n_states']:,} distinct states "
        f"of prefixes that the dictionaries were not trained on ({result.attrs['n_trained']:,} "
        "states were used for training). The explained variance is relative to the mean of the "
        "states. "
    )
    if "ce_loss_score_mean" in quantities:
        caption += (
            "The loss recovered is measured on training chains. Mean ablation of the site adds "
            "to the cross-entropy, and the loss recovered is the share of this addition that "
            "the dictionary's output removes. It is 1 for the model itself, and undefined if "
            "ablation adds no loss. "
        )
    return Figure(f"dictionaries_{name}", "Reconstruction and sparsity", caption.strip(), drawing)


def _lowest(values: xr.DataArray) -> float:
    """Return the lowest value that is drawn, or 0 if no value is drawn.

    Of values by split, only those of the first split are drawn.
    """
    found = values.isel(split=0).min() if "split" in values.dims else values.min()
    return float(found.fillna(0))


def _line(ax: Axes, part: xr.Dataset, quantity: str, style: Mapping[str, Any], label: str) -> None:
    values = part[quantity]
    if "split" in values.dims:
        values = values.isel(split=0)
    groups = [np.flatnonzero(part["sparsity"] == s) for s in distinct(part["sparsity"])]
    l0 = np.array([part["l0"].values[group].mean() for group in groups])
    each = [values.values[group] for group in groups]
    mean = np.array([one.mean() for one in each])
    order = np.argsort(l0)
    ends = np.array([[one.mean() - one.min(), one.max() - one.mean()] for one in each]).T
    ax.errorbar(
        l0[order],
        mean[order],
        yerr=ends[:, order],
        label=label,
        markersize=4,
        linewidth=1.3,
        **style,
    )


def compared(results: Mapping[str, xr.Dataset]) -> Figure | None:
    """Plot reconstruction quality against the number of active features for all sets of a run.

    Only dictionaries of the last checkpoint are plotted. The function returns None if there are no
    two sets that write to the same site.
    """
    last = {name: _last(trained_members(result)) for name, result in results.items()}
    counts = Counter(site for one in last.values() for site in distinct(one["site"]))
    sites = [site for site, count in counts.items() if count > 1]
    if not sites:
        return None
    drawing, axes = new_drawing(2.2 + 3.0 * len(sites), 3.2, ncols=len(sites), sharey=True)
    for ax, site in zip(axes, sites, strict=True):
        for number, (name, result) in enumerate(last.items()):
            part = result.sel(member=(result["site"] == site).values)
            if part.sizes["member"]:
                style = {"color": SERIES_COLORS[number % 7], "marker": MARKERS[number % 7]}
                _line(ax, part, "explained_variance", style, name)
        ax.set_title(site, fontsize=9)
        features_axis(ax)
    axes[0].set_ylabel("explained variance")
    drawing.supxlabel(_BELOW, fontsize=10)
    handles: dict[str, Any] = {}
    for ax in axes:
        handles |= {
            label: line for line, label in zip(*ax.get_legend_handles_labels(), strict=True)
        }
    drawing.legend(
        handles.values(), handles.keys(), loc="outside right upper", frameon=False, fontsize=8.5
    )
    caption = (
        "The figure compares all sets of dictionaries of this run that write the same site, at "
        "their last checkpoint. Each point is one sparsity, as the mean over seeds, with a bar "
        "from the lowest to the highest seed. The x axis is the number of active features per "
        "state (log scale). The explained variance is measured on held-out states of the site, "
        "relative to their mean. The sets may differ in architecture, activation function and "
        "width, which their configurations give."
    )
    return Figure("dictionaries", "Comparison of all sets of dictionaries", caption, drawing)


def _last(result: xr.Dataset) -> xr.Dataset:
    return result.sel(member=(result["step"] == result["step"].max()).values)
