"""Small maps of numbers by (layer, position): one for each variable, checkpoint and group."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from implicit_reasoning.analysis.cells import enough
from implicit_reasoning.figures import Figure, new_drawing

_COLUMN, _ROW = 1.75, 1.6  # inches


def some_steps(result: xr.Dataset, most: int = 3) -> list[int]:
    """The first and the last checkpoint, and others evenly between."""
    steps = result["step"].values
    places = np.unique(np.linspace(0, len(steps) - 1, most).round().astype(int))
    return [int(step) for step in steps[places]]


def some_groups(result: xr.Dataset) -> list[str]:
    """The first trained and the first tested group, as far as there are."""
    groups = [str(group) for group in result["group"].values]
    kinds = ("train", "test")
    found = [next((g for g in groups if g.startswith(kind)), None) for kind in kinds]
    return [group for group in found if group is not None] or groups[:1]


def heat_maps(result: xr.Dataset, value: str, *, name: str, title: str, caption: str) -> Figure:
    """A row for each of some checkpoints and groups, a column for each variable.

    `value` has the dimension `edit`, of which the last is the null; it is written in brackets.
    """
    rows = [(step, group) for step in some_steps(result) for group in some_groups(result)]
    variables = list(result["variable"].values)
    there = enough(result, value)
    drawing, axes = new_drawing(
        1.6 + _COLUMN * len(variables),
        0.6 + _ROW * len(rows),
        nrows=len(rows),
        ncols=len(variables),
        sharex=True,
        sharey=True,
    )
    image: AxesImage | None = None
    for (step, group), line in zip(rows, np.reshape(np.array(axes), (len(rows), -1)), strict=True):
        for variable, ax in zip(variables, line, strict=True):
            cells = result[value].where(there).sel(step=step, group=group, variable=variable)
            cells = cells.transpose("edit", "layer", "pos")
            image = draw_map(ax, cells.values[0], cells.values[-1])
            label_places(ax, cells)
        line[0].set_ylabel(f"step {step:,}\n{group}\nlayer")
    for variable, ax in zip(variables, axes, strict=False):
        ax.set_title(str(variable), fontsize=10)
    for ax in axes[-len(variables) :]:
        ax.set_xlabel("position")
    assert image is not None  # there is a step and a group at least
    drawing.colorbar(image, ax=axes, label="share of cases", shrink=0.6)
    return Figure(name, title, caption, drawing)


def draw_map(ax: Axes, value: np.ndarray, null: np.ndarray) -> AxesImage:
    """One map [layer, pos], layer 0 at the bottom, with its numbers and (those of the null)."""
    ax.grid(False)
    image = ax.imshow(value, origin="lower", vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for (layer, pos), share in np.ndenumerate(value):
        if np.isfinite(share):
            color = "white" if share > 0.6 else "black"
            text = f"{share:.2f}\n({null[layer, pos]:.2f})"
            ax.text(pos, layer, text, ha="center", va="center", fontsize=6.5, color=color)
    return image


def label_places(ax: Axes, cells: xr.DataArray) -> None:
    """Names of layers and positions at the ticks."""
    ax.set_xticks(range(cells.sizes["pos"]), [str(pos) for pos in cells["pos"].values])
    ax.set_yticks(range(cells.sizes["layer"]), [str(layer) for layer in cells["layer"].values])
