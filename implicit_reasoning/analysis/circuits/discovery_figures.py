"""Draw how faithful circuits are by size, and how their size changes over training."""

from __future__ import annotations

import numpy as np
import xarray as xr

from implicit_reasoning.analysis.circuits.curves import (
    circuit_model_distance,
    circuit_performance_ratio,
    size_at,
)
from implicit_reasoning.analysis.circuits.edge_figures import about_pairs
from implicit_reasoning.analysis.claims import MIN_CLUSTERS, has_min_clusters, known_means
from implicit_reasoning.figures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    VERMILION,
    Figure,
    new_drawing,
    step_axis,
)

_STYLES = {
    "exact, grown": (BLUE, "-"),
    "exact": (GREEN, "-"),
    "EAP, grown": (VERMILION, "-"),
    "magnitude, grown": (ORANGE, "--"),
    "random, grown": (GREY, "--"),
    # Results of earlier versions have baselines that do not grow.
    "magnitude": (ORANGE, "--"),
    "random": (GREY, "--"),
}
_HEIGHT = 1.35  # the highest faithfulness in the figures; higher ones are drawn here
LEVEL = 0.9
"""A circuit is called faithful if its mean faithfulness is at least this."""


def summary(result: xr.Dataset) -> xr.Dataset:
    """Return numbers that summarize the curves of a result of `circuit_discovery`.

    Returns:
      For each step, group and order: `cpr` (area under the curve of faithfulness; more is better),
      `cmd` (area between the curve and 1; 0 is best), and `smallest` (the smallest measured number
      of edges with a mean faithfulness of at least `LEVEL`; nan if there is none). Means over fewer
      than `MIN_CLUSTERS` clusters give nan.
    """
    means = known_means(result, "faithfulness").transpose(..., "size")
    sizes = result["size"].values
    fractions = sizes / sizes[-1]
    known = ~means.isnull().any("size")
    values = means.fillna(0).values
    coords = {dim: means[dim] for dim in means.dims if dim != "size"}
    found = {
        "cpr": circuit_performance_ratio(fractions, values),
        "cmd": circuit_model_distance(fractions, values),
        "smallest": size_at(sizes, values, LEVEL),
    }
    dims = tuple(coords)
    return xr.Dataset(
        {name: xr.DataArray(array, coords, dims).where(known) for name, array in found.items()}
    )


def curves_figure(result: xr.Dataset) -> Figure:
    """Draw faithfulness by number of edges at the last step, with one panel for each group."""
    last = result.isel(step=-1)
    groups = [str(group) for group in result["group"].values][:4]
    drawing, axes = new_drawing(
        1.9 + 2.6 * len(groups), 3.2, ncols=len(groups), sharey=True, sharex=True
    )
    sizes = result["size"].values
    for ax, group in zip(axes, groups, strict=True):
        of = last.sel(group=group)
        known = has_min_clusters(of, "faithfulness")
        for order in result["order"].values.tolist():
            color, style = _STYLES[order]
            low, mean, high = (
                of[f"faithfulness{end}"].where(known).sel(order=order).clip(-0.2, _HEIGHT)
                for end in ("_low", "", "_high")
            )
            ax.fill_between(sizes, low, high, color=color, alpha=0.15, linewidth=0)
            ax.plot(sizes, mean, style, color=color, lw=1.5, label=order)
        ax.axhline(1, color="grey", linewidth=0.8)
        ax.set_xscale("symlog", linthresh=1)
        ax.set_xlim(0, sizes[-1])
        ticks = [tick for tick in (0, 1, 10, 100, 1_000, 10_000) if tick <= sizes[-1]]
        ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        ax.set_ylim(-0.22, _HEIGHT + 0.05)
        ax.set_title(group, fontsize=10)
        ax.set_xlabel("edges in the circuit (log)")
    axes[0].set_ylabel("faithfulness")
    handles, labels = axes[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
    caption = (
        f"{about_pairs(result)} The panels are groups of pairs, at step {int(last['step']):,}. A "
        "curve is the mean faithfulness of circuits of n edges: 0 is the corrupt run, and 1 is the "
        "clean run. Edges are ranked on half of the clusters of the first group, and all curves "
        "are measured on pairs of other clusters. `grown` circuits grow from the logits. The "
        "shading is the 95% interval. Dashed curves are the nulls: edges ranked by the size of the "
        "change of their sender's output, and at random. Values above "
        f"{_HEIGHT:g} and below -0.2 are drawn there. Curves are missing where fewer than "
        f"{MIN_CLUSTERS} clusters count."
    )
    title = "How many edges does the answer need?"
    return Figure("circuit_discovery", title, caption, drawing)


def over_training_figure(result: xr.Dataset) -> Figure:
    """Draw the size of the faithful circuit, and the area under the curve, over training."""
    group = str(result["group"].values[0])
    numbers = summary(result).sel(group=group)
    drawing, axes = new_drawing(8.6, 3.2, ncols=2, sharex=True)
    marker = "o" if result.sizes["step"] == 1 else None
    for ax, name, label in zip(
        axes,
        ("smallest", "cmd"),
        (f"edges at faithfulness {LEVEL:g}", "area to 1 (CMD)"),
        strict=True,
    ):
        for order in result["order"].values.tolist():
            color, style = _STYLES[order]
            values = numbers[name].sel(order=order)
            ax.plot(result["step"], values, style, color=color, lw=1.5, marker=marker, label=order)
        step_axis(ax, int(result["step"][-1]))
        ax.set_xlabel("training step (log)")
        ax.set_ylabel(label)
        ax.set_ylim(bottom=0)
    handles, labels = axes[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
    most = int(np.max(result["size"].values))
    caption = (
        f"{about_pairs(result)} The group is {group}. Left: the smallest measured number of edges, "
        f"of {most} that can matter, with a mean faithfulness of at least {LEVEL:g} on pairs of "
        "other clusters; a smaller circuit is a more concentrated one. Right: the area between the "
        "curve of faithfulness and 1, over the share of edges; 0 is best (MIB's CMD). Dashed "
        "curves are the nulls. Curves are missing where fewer than "
        f"{MIN_CLUSTERS} clusters count, or no size reaches the level."
    )
    title = "Does the circuit become smaller while the model learns?"
    return Figure("circuit_discovery_over_training", title, caption, drawing)
