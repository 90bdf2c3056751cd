"""What the figures of dictionaries have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import StrMethodFormatter

from implicit_reasoning.dictionaries.store import TRAINED
from implicit_reasoning.figures import Drawing, new_drawing

MARKERS = "osD^v<>"


def distinct(values: Sequence[Any] | np.ndarray | xr.DataArray) -> list[Any]:
    """Each value once, in order of appearance."""
    return list(dict.fromkeys(np.asarray(values).tolist()))


def trained(result: xr.Dataset) -> xr.Dataset:
    """Without baselines."""
    return result.sel(member=(result["what"] == TRAINED).values)


def middle(result: xr.Dataset) -> float:
    """The middle one of the sparsities."""
    ordered = sorted(distinct(trained(result)["sparsity"]))
    return float(ordered[len(ordered) // 2])


def of_middle(result: xr.Dataset, site: str) -> xr.Dataset:
    """Trained dictionaries of a site and the middle sparsity, all steps and seeds."""
    own = trained(result)
    return own.sel(member=((own["site"] == site) & (own["sparsity"] == middle(result))).values)


def bridge(result: xr.Dataset) -> str | None:
    """The concept of the bridge where it is first known; None where there is none."""
    if "concept" not in result.coords:
        return None
    found = [name for name in result["concept"].values.tolist() if name.startswith("e2@")]
    return found[0] if found else None


def panels(
    result: xr.Dataset, nrows: int = 1, height: float = 2.5
) -> tuple[Drawing, list[list[Axes]], list[str]]:
    """Rows of panels, a column for each site; titles, and the step below."""
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
    drawing.supxlabel("training step", fontsize=10)
    return drawing, rows, sites


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
