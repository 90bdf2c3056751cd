"""Figures of patches: a map of (layer, position) cells for every row, at a few checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.image import AxesImage

from implicit_reasoning.figures import new_drawing

_COLUMNS = 4
_MOST_NUMBERS = 60  # cells of a map that have room for their numbers


def some_steps(steps: Sequence[int], most: int = _COLUMNS) -> list[int]:
    """The first and the last checkpoint, and some between, evenly spread over their numbers."""
    places = np.unique(np.linspace(0, len(steps) - 1, min(most, len(steps))).round().astype(int))
    return [int(steps[place]) for place in places]


def draw_maps(
    rows: Mapping[str, xr.DataArray], *, up: str = "layer", across: str = "pos", label: str
) -> Drawing:
    """Maps of values from 0 to 1: a row each, a column for each of some checkpoints.

    Args:
      rows: name to values of the dimensions step, `up` and `across`.
      up: the vertical dimension, 0 at the bottom.
      across: the horizontal one.
      label: of the colours.
    """
    some = next(iter(rows.values()))
    steps = some_steps(some.step.values.tolist())
    tall, wide = some.sizes[up], some.sizes[across]
    drawing, axes = new_drawing(
        width=1.6 + len(steps) * max(1.7, 0.5 * wide),
        height=0.5 + len(rows) * max(1.5, 0.32 * tall),
        nrows=len(rows),
        ncols=len(steps),
        sharex=True,
        sharey=True,
    )
    places = [(name, step) for name in rows for step in steps]
    for ax, (name, step) in zip(axes, places, strict=True):
        values = rows[name].sel(step=step).transpose(up, across)
        image = _one(ax, values)
        if name == places[0][0]:
            ax.set_title(f"step {step:,}", fontsize=9)
        if step == steps[0]:
            ax.set_ylabel(f"{name}\n{up}", fontsize=8)
    drawing.colorbar(image, ax=axes, label=label, shrink=0.8)
    return drawing


def _one(ax: Axes, values: xr.DataArray) -> AxesImage:
    numbers = values.values.astype(float)
    image = ax.imshow(numbers, origin="lower", aspect="auto", vmin=0, vmax=1, cmap="viridis")
    ax.grid(visible=False)
    for axis, dim in ((ax.yaxis, values.dims[0]), (ax.xaxis, values.dims[1])):
        axis.set_ticks(range(values.sizes[dim]), [str(x) for x in values[dim].values], fontsize=7)
    if numbers.size <= _MOST_NUMBERS:
        for (y, x), number in np.ndenumerate(numbers):
            text = "" if np.isnan(number) else f"{number:.2f}".removeprefix("0")
            colour = "black" if number > 0.6 else "white"
            ax.text(x, y, text, ha="center", va="center", fontsize=7, color=colour)
    return image
