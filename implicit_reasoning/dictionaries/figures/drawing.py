"""What the figures of dictionaries have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import StrMethodFormatter

from implicit_reasoning.dictionaries.results import distinct
from implicit_reasoning.figures import Drawing, new_drawing

MARKERS = "osD^v<>"


def panels(
    result: xr.Dataset, nrows: int = 1, height: float = 2.5, below: str = "training step"
) -> tuple[Drawing, list[list[Axes]], list[str]]:
    """Rows of panels, a column for each site, which is its title; what goes right is said below."""
    sites = distinct(result["site"])
    drawing, axes = new_drawing(
        2.6 + 2.9 * len(sites),
        0.8 + height * nrows,
        nrows=nrows,
        ncols=len(sites),
        sharex=True,
        sharey="row",
    )
    rows = [axes[row * len(sites) : (row + 1) * len(sites)] for row in range(nrows)]
    for ax, site in zip(rows[0], sites, strict=True):
        ax.set_title(site, fontsize=9)
    drawing.supxlabel(below, fontsize=10)
    return drawing, rows, sites


def features_axis(ax: Axes) -> None:
    """Active features go right, in doublings, as sparsities are often chosen."""
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_formatter(StrMethodFormatter(""))


def over_steps(
    ax: Axes, values: xr.DataArray, label: str, style: Mapping[str, Any], **ends: xr.DataArray
) -> None:
    """A line through the means over seeds, with their range or (`low`, `high`) shaded.

    Args:
      ax: to draw in.
      values: [member], with the coordinate step.
      label: in the legend.
      style: of the line.
      ends: `low` and `high`, of intervals; without them the range over seeds.
    """
    steps = np.unique(values["step"])
    at = [np.flatnonzero((values["step"] == step).values) for step in steps]

    def reduced(of: xr.DataArray, how: Any) -> np.ndarray:
        return np.array([how(of.values[there]) for there in at])

    mean = reduced(values, np.mean)
    low = reduced(ends.get("low", values), np.min)
    high = reduced(ends.get("high", values), np.max)
    ax.fill_between(steps, low, high, color=style["color"], alpha=0.15, linewidth=0)
    ax.plot(steps, mean, label=label, linewidth=1.4, markersize=4, **style)
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.locator_params(axis="x", nbins=4)


def legends(drawing: Drawing, rows: Sequence[Sequence[Axes]]) -> None:
    """A legend at the right of every row."""
    for row in rows:
        row[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=8.5)
