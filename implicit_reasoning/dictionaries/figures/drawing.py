"""Functions for drawing that the figures of dictionaries share."""

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
    """Make a drawing with rows of panels, with one column per hook site.

    Args:
      result: measured results with the coordinate `site`.
      nrows: number of rows of panels.
      height: height of a row in inches.
      below: label of the x axis.

    Returns:
      `(drawing, rows, sites)`. `rows` contains one list of axes per row, in the order of `sites`.
    """
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
    """Use a base-2 logarithmic x axis for the number of active features."""
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_formatter(StrMethodFormatter(""))


def over_steps(
    ax: Axes,
    values: xr.DataArray,
    label: str,
    ends: Mapping[str, xr.DataArray] | None = None,
    **style: Any,
) -> None:
    """Plot the mean over seeds against the training step, with a shaded range.

    Args:
      ax: the axes to draw in.
      values: [member], the values to plot, with the coordinate `step`.
      label: label of the line in the legend.
      ends: the ends of the shaded intervals, with the keys `low` and `high`. By default, the range
        over seeds is shaded.
      style: keyword arguments for `Axes.plot`. The key `color` is required.
    """
    steps = np.unique(values["step"])
    at = [np.flatnonzero((values["step"] == step).values) for step in steps]

    def reduced(of: xr.DataArray, how: Any) -> np.ndarray:
        return np.array([how(of.values[there]) for there in at])

    mean = reduced(values, np.mean)
    ends = ends or {"low": values, "high": values}
    low, high = reduced(ends["low"], np.min), reduced(ends["high"], np.max)
    ax.fill_between(steps, low, high, color=style["color"], alpha=0.15, linewidth=0)
    ax.plot(steps, mean, label=label, linewidth=1.4, markersize=4, **style)
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.locator_params(axis="x", nbins=4)


def legends(drawing: Drawing, rows: Sequence[Sequence[Axes]]) -> None:
    """Add a legend to the right of each row of panels."""
    for row in rows:
        row[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=8.5)
