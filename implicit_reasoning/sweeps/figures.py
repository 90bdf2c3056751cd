"""Figures of a sweep: accuracy curves, times to generalize, and heat maps of two fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from implicit_reasoning.figures import (
    BLACK,
    BLUE,
    SERIES_COLORS,
    SKY,
    Figure,
    darken,
    label_ends,
    new_drawing,
    step_axis,
)
from implicit_reasoning.sweeps.opened import SEEDS, Runs
from implicit_reasoning.training.phases import Splits

_MAX_POINTS = len(SERIES_COLORS)  # maximum number of curves that colors can distinguish
_PHASES = {
    "memorised": ("memorised (training chains ≥ 0.99)", "o", BLACK),
    "in_distribution_half": ("held-out chains ≥ 0.5", "D", SKY),
    "in_distribution": ("held-out chains ≥ 0.95", "s", BLUE),
}
_NOT_REACHED = "not reached"


def figures(runs: Runs) -> list[Figure]:
    """Return all figures for which the sweep has data, in the order of the report."""
    started = [name for name in runs.names if runs.rows(name)]
    if not started:
        return []
    splits = Splits.of(runs[started[0]].dataset)
    phases = runs.phases()
    drawn: list[Figure | None] = [
        _curves(runs, split, title)
        for split, title in (
            (splits.held_out, "held-out chains"),
            (splits.trained, "training chains"),
        )
        if split is not None
    ]
    drawn.append(_times(runs, phases))
    drawn += _maps(runs, phases, splits.held_out)
    return [figure for figure in drawn if figure is not None]


def by_point(runs: Runs) -> dict[str, list[int]]:
    """Group the trials of a sweep by their point.

    Trials have the same point if they differ only in seeds (`Runs.points`).

    Returns:
      The indices of the trials of each point, in order of appearance.
    """
    found: dict[str, list[int]] = {}
    for number, name in enumerate(runs.names):
        found.setdefault(runs.points[name], []).append(number)
    return found


def _curves(runs: Runs, split: str, title: str) -> Figure:
    """Plot each trial as a thin line, and the median and interquartile range of each point."""
    accuracy = runs.metric(f"accuracy/{split}")
    points = by_point(runs)
    drawing, (ax,) = new_drawing(9.5, 5.0)
    step_axis(ax, int(accuracy.step.max()))
    ax.set_ylim(-0.015, 1.015)
    ax.set_ylabel(f"accuracy on {split}")
    ends = []
    for index, (point, numbers) in enumerate(points.items()):
        color = SERIES_COLORS[index % len(SERIES_COLORS)]
        values = accuracy.values[numbers]
        for each in values:
            ax.plot(*_there(accuracy, each), color=color, linewidth=0.6, alpha=0.45)
        middle = _quantile(values, 0.5)
        ax.plot(*_there(accuracy, middle), color=color, linewidth=2.0)
        if len(numbers) > 2:
            low, high = _quantile(values, 0.25), _quantile(values, 0.75)
            ax.fill_between(accuracy.step, low, high, color=color, alpha=0.15, linewidth=0)
        last = middle[np.isfinite(middle)]
        if len(last):
            ends.append((float(last[-1]), f"{point} (n = {len(numbers)})", color))
    if len(points) <= 3 * _MAX_POINTS:
        label_ends(ax, ends)
    caption = (
        f"The figure shows the accuracy on the probe rows of {split} at every evaluation. Each "
        "thin line is one trial. Each thick line is the median over the trials that differ only "
        "in seeds, and n is the number of these trials. The shading is their interquartile "
        "range, which is drawn if there are more than two of them. Median and range are drawn "
        "only at steps at which all of these trials were evaluated."
    )
    if len(points) > _MAX_POINTS:
        caption += (
            f" Colors repeat, because the sweep has {len(points)} sets of trials that differ "
            "only in seeds."
        )
    return Figure(f"accuracy_{split}", f"Accuracy on {title}", caption, drawing)


def _there(values: xr.DataArray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    kept = np.isfinite(row)
    return values.step.values[kept], row[kept]


def _quantile(values: np.ndarray, q: float) -> np.ndarray:
    """Return a quantile over trials, at steps where all trials have a value; nan elsewhere."""
    whole = np.isfinite(values).all(0)
    found = np.full(values.shape[1], np.nan)
    found[whole] = np.quantile(values[:, whole], q, axis=0)
    return found


def _times(runs: Runs, phases: xr.Dataset) -> Figure | None:
    """Plot one row per point, with one mark per trial and phase."""
    points = by_point(runs)
    last = max(int(runs.rows(name)[-1]["step"]) for name in runs.names if runs.rows(name))
    drawing, (ax,) = new_drawing(9.5, 1.6 + 0.42 * min(len(points), 60))
    step_axis(ax, last)
    ax.set_xlim(1, last * 1.6)
    shown = list(points.items())[:60]
    for height, (_, numbers) in enumerate(shown):
        for offset, (phase, (_, marker, color)) in enumerate(_PHASES.items()):
            times = phases[phase].values[numbers]
            at = height + 0.22 * (offset - 1)
            style: dict[str, Any] = {"marker": marker, "color": color, "linestyle": "none"}
            ax.plot(times, np.full(len(times), at), markersize=4.5, alpha=0.7, **style)
            missing = int(np.isnan(times).sum())
            if missing:
                text = f"{missing} of {len(times)}"
                ax.text(last * 1.15, at, text, color=darken(color), fontsize=7, va="center")
    ax.axvline(last, color=BLACK, linewidth=0.6)
    ax.text(last * 1.15, -0.85, _NOT_REACHED, fontsize=7.5, va="center")
    ax.set_yticks(range(len(shown)), [point for point, _ in shown], fontsize=8.5)
    ax.set_ylim(len(shown) - 0.4, -1.1)
    for label, marker, color in _PHASES.values():
        ax.plot([], [], marker=marker, color=color, linestyle="none", label=label)
    ax.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.45, 1.0), frameon=False, fontsize=8.5)
    caption = (
        "Each row is a set of trials that differ only in seeds, and each mark is the step at "
        "which a phase of one trial began. A phase begins at the first of three consecutive "
        "evaluations that satisfy its rule, which the legend gives. The numbers to the right of "
        "the vertical line say how many trials of the set did not reach the phase."
    )
    if len(points) > len(shown):
        caption += f" Only the first {len(shown)} of {len(points):,} sets are drawn."
    return Figure("times", "Steps to memorize and to generalize", caption, drawing)


def _maps(runs: Runs, phases: xr.Dataset, held_out: str | None) -> list[Figure]:
    """Plot heat maps of median time and median final accuracy over the values of two fields.

    There is a figure only if the sweep sets exactly two fields other than seeds.
    """
    keys = [key for key in runs.sweep.keys if key not in SEEDS]
    values = [sorted({runs.value(name, key) for name in runs.names}, key=_order) for key in keys]
    if len(keys) != 2 or min(map(len, values)) < 2:
        return []
    drawing, axes = new_drawing(10.5, 4.2, ncols=2)
    half = phases["in_distribution_half"].values
    _map(axes[0], runs, keys, values, half, "{:,.0f}", "step at which held-out chains reach 0.5")
    if held_out is not None:
        curves = runs.metric(f"accuracy/{held_out}").values
        final = np.array([[np.nan, *curve[np.isfinite(curve)]][-1] for curve in curves])
        _map(axes[1], runs, keys, values, final, "{:.2f}", f"final accuracy on {held_out}")
    caption = (
        "Each cell is the median over the trials that differ only in seeds, and n is the number "
        "of these trials. The left map shows the step at which the accuracy on held-out chains "
        "reaches 0.5, which is the first of three consecutive evaluations. For its median, a "
        "trial that did not reach 0.5 counts as later than every trial that did. A dash means "
        "that at most half of the trials reached 0.5. The right map shows the accuracy at the "
        "last evaluation."
    )
    return [Figure("grid", f"{keys[0]} by {keys[1]}", caption, drawing)]


def _order(value: Any) -> tuple[bool, Any]:
    return isinstance(value, str), value


def _map(
    ax: Axes,
    runs: Runs,
    keys: Sequence[str],
    values: Sequence[Sequence[Any]],
    of_trial: np.ndarray,
    form: str,
    title: str,
) -> None:
    table = np.full((len(values[0]), len(values[1])), np.nan)
    counts = np.zeros(table.shape, int)
    for row, one in enumerate(values[0]):
        for column, other in enumerate(values[1]):
            numbers = [
                number
                for number, name in enumerate(runs.names)
                if (runs.value(name, keys[0]), runs.value(name, keys[1])) == (one, other)
            ]
            counts[row, column] = len(numbers)
            table[row, column] = median_time(of_trial[numbers])
    image = ax.imshow(table, cmap="cividis", aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        text = form.format(value) if np.isfinite(value) else "-"
        bright = np.isfinite(value) and float(np.asarray(image.norm(value))) > 0.6
        label = f"{text}\nn = {counts[row, column]}"
        color = "black" if bright or not np.isfinite(value) else "white"
        ax.text(column, row, label, ha="center", va="center", fontsize=8.5, color=color)
    ax.set_xticks(range(len(values[1])), list(map(str, values[1])))
    ax.set_yticks(range(len(values[0])), list(map(str, values[0])))
    ax.set_xlabel(keys[1])
    ax.set_ylabel(keys[0])
    ax.set_title(title, fontsize=10)
    ax.grid(visible=False)


def median_time(times: np.ndarray) -> float:
    """Return the median of times, in which nan means "not reached" and counts as infinite.

    The result is nan if at least half of the times are nan, or if there are no times.
    """
    if not len(times):
        return float("nan")
    middle = float(np.median(np.where(np.isnan(times), np.inf, times)))
    return middle if np.isfinite(middle) else float("nan")
