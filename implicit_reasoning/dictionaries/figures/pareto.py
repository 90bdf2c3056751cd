"""Quality against active features: the curve that dictionaries are compared by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import StrMethodFormatter

from implicit_reasoning.analysis.drawing import layer_colors
from implicit_reasoning.dictionaries.figures.parts import MARKERS, distinct, trained
from implicit_reasoning.figures import Figure, new_drawing


def pareto(name: str, result: xr.Dataset) -> Figure:
    """Quality against active features, a line for each checkpoint, a column for each site."""
    result = trained(result)
    sites, steps = (distinct(result[key]) for key in ("site", "step"))
    rows = {"explained_variance": "explained variance"}
    if "ce_loss_score_mean" in result:
        rows["ce_loss_score_mean"] = "loss recovered"
    drawing, axes = new_drawing(
        2.2 + 3.0 * len(sites),
        0.8 + 2.4 * len(rows),
        nrows=len(rows),
        ncols=len(sites),
        sharex=True,
        sharey="row",
    )
    colors = layer_colors(len(steps))
    panels = iter(axes)
    for quantity, label in rows.items():
        for site in sites:
            ax = next(panels)
            for number, step in enumerate(steps):
                of = (result["site"] == site) & (result["step"] == step)
                style = {"color": colors[number], "marker": MARKERS[number % len(MARKERS)]}
                _line(ax, result.sel(member=of.values), quantity, style, f"step {step:,}")
            ax.set_title(site, fontsize=9)
            ax.set_xscale("log")
            # What is far below is worse than nothing at all; how far does not matter.
            ax.set_ylim(max(_lowest(result[quantity]) - 0.03, -0.2), 1.03)
            ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            ax.xaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
            ax.axhline(0, color="black", linewidth=0.5)
            if site == sites[0]:
                ax.set_ylabel(label)
    drawing.supxlabel("active features, mean over states", fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8.5)
    caption = (
        f"Dictionaries {name!r}, each point one (mean over seeds, bars from the lowest to the "
        f"highest), on {result.attrs['n_states']:,} distinct states of prefixes that were not "
        f"trained on ({result.attrs['n_trained']:,} were). Explained variance is about the mean of "
        "the states. Loss recovered: of the cross-entropy that answers lose when the site is set "
        "to its mean, the share that comes back with the dictionary's output there, trained "
        "chains; 1 is the model itself; nothing is said where ablation loses nothing."
    )
    return Figure(f"dictionaries_{name}", "How much is kept, by how few features", caption, drawing)


def _lowest(values: xr.DataArray) -> float:
    """Of what is drawn: of splits the first."""
    return float(values.isel(split=0).min() if "split" in values.dims else values.min())


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
