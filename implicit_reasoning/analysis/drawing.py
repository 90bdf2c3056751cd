"""Draw the plots that several instruments use: curves over training, heat maps, scatter plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_hex
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D

from implicit_reasoning.figures import SERIES_COLORS, new_drawing, step_axis

_CELLS = "cividis"  # perceptually uniform, and readable with color blindness
_DIFFERENCES = "PuOr_r"  # diverging with white in the middle, and readable with color blindness

_AXIS_LABELS = {
    "pos": "position",
    "step": "training step",
    "concept": "variable@position",
    "what": "dictionary or baseline",
}  # dimensions whose names are not labels that a reader understands


def some_steps(result: xr.Dataset | xr.DataArray, most: int = 4) -> list[int]:
    """Return at most `most` evenly spaced steps, including the first and the last step."""
    chosen = np.linspace(0, result.sizes["step"] - 1, most).round().astype(int)
    return [int(result["step"][index]) for index in dict.fromkeys(chosen.tolist())]


def some_groups(result: xr.Dataset | xr.DataArray) -> list[str]:
    """Choose the groups to draw: the first training group and the first test group.

    A group is a training group if its name begins with "train", and a test group if its name begins
    with "test". If the result has no such group, return the first group.
    """
    groups = [str(group) for group in result["group"].values]
    firsts = [next((g for g in groups if g.startswith(kind)), None) for kind in ("train", "test")]
    return [group for group in firsts if group is not None] or groups[:1]


def layer_colors(n_layers: int) -> list[str]:
    """Return a color for each layer, from dark to light, as hexadecimal strings."""
    # The lightest fifth of the scale is invisible on white.
    return [to_hex(matplotlib.colormaps["viridis"](x)) for x in np.linspace(0, 0.82, n_layers)]


def curves(
    result: xr.Dataset,
    name: str,
    panels: Mapping[str, Mapping[str, Any]],
    *,
    select: Mapping[str, Any],
    nulls: Mapping[str, tuple[Mapping[str, Any], str]],
    label: str,
    ncols: int | None = None,
    highest: float = 1.0,
    lowest: float = 0.0,
) -> Drawing:
    """Draw an output over training, with one line for each layer.

    Args:
      result: dataset with the output, which has the dimensions `step` and `layer`. `panels` and
        `select` must select one label of every further dimension of the output.
      name: name of the output. If the dataset has `<name>_low` and `<name>_high`, they are drawn as
        a band.
      panels: for each panel, by title, the labels `{dimension: label}` to select.
      select: labels `{dimension: label}` to select for the curves in all panels.
      nulls: for each null control, by name, the labels to select instead of `select`, and a color.
        One line shows the maximum of the control over the layers.
      label: label of the y axis.
      ncols: number of panels per row; default: one row for all panels.
      highest: upper end of the y axis.
      lowest: lower end of the y axis.
    """
    ncols = ncols or len(panels)
    nrows = -(-len(panels) // ncols)
    drawing, axes = new_drawing(
        2.0 + 2.9 * ncols, 0.6 + 2.6 * nrows, nrows=nrows, ncols=ncols, sharey=True, sharex=True
    )
    for ax, (title, panel) in zip(axes, panels.items(), strict=False):
        for name_of_null, (where, color) in nulls.items():
            null = result[name].sel({**where, **panel}).max("layer")
            _line(ax, null, color=color, linestyle="--", label=name_of_null)
        _by_layer(ax, result, name, {**select, **panel})
        step_axis(ax, int(result["step"][-1]))
        margin = 0.02 * (highest - lowest)
        ax.set_ylim(lowest - margin, highest + margin)
        ax.set_title(title, fontsize=10)
        ax.tick_params(labelsize=8)
    _hide_the_rest(axes, len(panels), ncols)
    for index, ax in enumerate(axes):
        ax.set_xlabel("training step (log)" if index + ncols >= len(panels) else "")
    drawing.supylabel(label, fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8.5)
    return drawing


def _by_layer(ax: Axes, result: xr.Dataset, name: str, where: Mapping[str, Any]) -> None:
    """Draw the lines of one panel, with the band of each line."""
    layers = result["layer"].values
    for layer, color in zip(layers, layer_colors(len(layers)), strict=True):
        at = {**where, "layer": layer}
        if f"{name}_low" in result:
            low, high = (result[f"{name}_{end}"].sel(at) for end in ("low", "high"))
            ax.fill_between(result["step"], low, high, color=color, alpha=0.15, linewidth=0)
        _line(ax, result[name].sel(at), color=color, label=f"layer {layer}")


def _line(ax: Axes, values: xr.DataArray, **style: Any) -> None:
    # A line of one point is invisible, so a single checkpoint has a marker.
    marker = "o" if values.sizes["step"] == 1 else None
    style = {"linewidth": 1.5, "marker": marker, "clip_on": False, **style}
    ax.plot(values["step"], values, **style)


def _hide_the_rest(axes: Sequence[Axes], used: int, ncols: int) -> None:
    """Hide empty axes, and show the tick labels of the axes above them."""
    for index, ax in enumerate(axes):
        ax.set_visible(index < used)
        ax.tick_params(labelbottom=index + ncols >= used)


def heat_maps(
    maps: Mapping[str, xr.DataArray],
    label: str,
    *,
    nulls: Mapping[str, xr.DataArray] | None = None,
    ncols: int = 6,
    rows: str = "layer",
    columns: str = "pos",
    width: float = 0.52,
    lowest: float = 0.0,
) -> Drawing:
    """Draw heat maps with a common color scale. The first row of a map is at the bottom.

    Args:
      maps: for each map, by title, the values, with the dimensions `rows` and `columns`. Values
        must be at most 1; nan is drawn white.
      label: label of the color scale.
      nulls: for each map, by title, the values of a null control. These values are written in
        brackets below the values of the map.
      ncols: number of maps per row.
      rows: name of the dimension on the y axis.
      columns: name of the dimension on the x axis.
      width: width of a column, in inches.
      lowest: lower end of the color scale. If `lowest` is negative, the scale is diverging.
    """
    one = next(iter(maps.values()))
    ncols = min(ncols, len(maps))
    nrows = -(-len(maps) // ncols)
    wide = max(1.6, width * one.sizes[columns])
    height = max(1.3, (0.42 if nulls else 0.3) * one.sizes[rows])
    lines = 1 + max(title.count("\n") for title in maps)
    drawing, axes = new_drawing(
        1.8 + wide * ncols,
        0.5 + nrows * (height + 0.55 + 0.15 * lines),
        nrows=nrows,
        ncols=ncols,
        sharey=True,
        sharex=True,
    )
    colors = ScalarMappable(Normalize(lowest, 1.0), _CELLS if lowest >= 0 else _DIFFERENCES)
    for ax, (title, values) in zip(axes, maps.items(), strict=False):
        null = None if nulls is None else nulls[title].transpose(rows, columns)
        _heat_map(ax, values.transpose(rows, columns), colors, null)
        ax.set_title(title, fontsize=9.5)
    _hide_the_rest(axes, len(maps), ncols)
    for index, ax in enumerate(axes):
        ax.set_ylabel(_axis_label(rows) if index % ncols == 0 else "")
        ax.set_xlabel(_axis_label(columns) if index + ncols >= len(maps) else "")
    bar = drawing.colorbar(colors, ax=axes, shrink=0.9, aspect=25, pad=0.02)
    bar.set_label(label, fontsize=9)
    return drawing


def _axis_label(dim: str) -> str:
    return _AXIS_LABELS.get(dim, dim.replace("_", " "))


def maps_over_steps(
    series: Mapping[str, xr.DataArray], label: str, *, rows: str = "layer", columns: str = "pos"
) -> Drawing:
    """Draw heat maps at a few checkpoints, with one row of maps for each series of values.

    Args:
      series: for each series, by name, the values, with the dimensions step, `rows` and `columns`.
      label: label of the color scale.
      rows: name of the dimension on the y axis of each map.
      columns: name of the dimension on the x axis of each map.
    """
    steps = some_steps(next(iter(series.values())))
    maps = {
        f"{name}\nstep {step:,}": values.sel(step=step)
        for name, values in series.items()
        for step in steps
    }
    return heat_maps(maps, label, ncols=len(steps), rows=rows, columns=columns)


def maps_by_variable(values: xr.DataArray) -> Drawing:
    """Draw heat maps by variable, checkpoint and group.

    A column of maps shows one variable. A row of maps shows one checkpoint and one group. At most
    three checkpoints and two groups are drawn. Rows with only nan values are omitted, unless all
    rows have only nan values.

    Args:
      values: shares of edited examples, with the dimensions step, group, variable, layer, pos and
        edit. Colors show the first label of `edit`. Numbers in brackets show the last label, which
        is the null control.
    """
    rows = [
        {"step": step, "group": group}
        for step in some_steps(values, 3)
        for group in some_groups(values)
    ]
    rows = [row for row in rows if values.sel(row).notnull().any()] or rows
    places = [{**row, "variable": name} for row in rows for name in values["variable"].values]
    titles = ["{variable}\n{group}, step {step:,}".format(**place) for place in places]
    shown, null = (
        {
            title: values.sel(place).isel(edit=end)
            for title, place in zip(titles, places, strict=True)
        }
        for end in (0, -1)
    )
    return heat_maps(shown, "share of cases", nulls=null, ncols=values.sizes["variable"])


def label_places(ax: Axes, values: xr.DataArray) -> None:
    """Label the ticks of a heat map with the labels of the two dimensions.

    The first dimension is on the y axis, and the second dimension is on the x axis.
    """
    ax.grid(False)
    for axis, dim in zip((ax.yaxis, ax.xaxis), values.dims, strict=True):
        axis.set_ticks(range(values.sizes[dim]), [str(x) for x in values[dim].values])
    ax.tick_params(labelsize=8, length=0)


def _heat_map(
    ax: Axes, values: xr.DataArray, colors: ScalarMappable, null: xr.DataArray | None
) -> None:
    ax.imshow(colors.to_rgba(values.values), origin="lower", aspect="auto")
    label_places(ax, values)
    for (row, column), value in np.ndenumerate(values.values):
        if not np.isfinite(value):
            continue
        text = _short(float(value))
        if null is not None:
            text += f"\n({_short(null.values.item(row, column))})"
        lightness = np.dot(colors.to_rgba(value)[:3], (0.299, 0.587, 0.114))
        ink = "black" if lightness > 0.5 else "white"
        ax.text(column, row, text, ha="center", va="center", fontsize=7, color=ink)


def _short(value: float) -> str:
    return f"{value:.2f}".replace("0.", ".", 1)


def scatters(
    panels: Mapping[str, xr.DataArray],
    colors: Sequence[str],
    markers: Sequence[str],
    *,
    ncols: int,
) -> Drawing:
    """Draw scatter plots. Each panel has its own axis limits.

    Args:
      panels: for each panel, by title, the coordinates of the points. The dimensions are `point`
        and `axis` (of size 2).
      colors: for each point, the name of its color group. There are at most seven groups, and
        points of one group have the same color.
      markers: for each point, the name of its marker group. Points of the group "id" are circles.
        If no group is called "id", points of the first group in alphabetical order are circles. All
        remaining points are crosses.
      ncols: number of panels per row.
    """
    nrows = -(-len(panels) // ncols)
    drawing, axes = new_drawing(1.3 + 2.5 * ncols, 2.6 * nrows, nrows=nrows, ncols=ncols)
    names = list(dict.fromkeys(colors))
    kinds = sorted(set(markers), key=lambda kind: (kind != "id", kind))
    palette = dict(zip(names, SERIES_COLORS, strict=False))
    for ax, (title, points) in zip(axes, panels.items(), strict=False):
        x, y = points.transpose("axis", "point").values
        for name in names:
            for kind in kinds:
                of_both = zip(colors, markers, strict=True)
                here = np.array([pair == (name, kind) for pair in of_both])
                shape = "o" if kind == kinds[0] else "X"
                style: Any = {"s": 26 if shape == "o" else 48, "marker": shape, "linewidths": 0.6}
                ax.scatter(x[here], y[here], color=palette[name], edgecolors="white", **style)
        ax.set_title(title, fontsize=9.5)
        ax.tick_params(labelsize=7)
    handles = [Line2D([], [], marker="o", ls="", color=palette[name], label=name) for name in names]
    handles += [
        Line2D([], [], marker="o" if kind == kinds[0] else "X", ls="", color="grey", label=kind)
        for kind in kinds
    ]
    drawing.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=8.5)
    return drawing
