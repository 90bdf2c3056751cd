"""Table and figure of `phi_and_weight_decay.py`, made from its saved arrays.

    python experiments/phi_and_weight_decay_figures.py --out=results/phi_and_weight_decay

Intervals are bootstrapped over worlds; a drawn world contributes all its runs. With few worlds, the
intervals are too narrow.

Smoke test:
    python experiments/phi_and_weight_decay_figures.py --out=results/phi_and_weight_decay
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from implicit_reasoning.config import Flag, parse_flags
from implicit_reasoning.figures import BLUE, GREEN, ORANGE, darken, new_drawing
from implicit_reasoning.runs import load_arrays
from implicit_reasoning.statistics import clustered_interval
from implicit_reasoning.sweeps.figures import median_time

FLAGS = {"out": Flag(kind=Path, default=Path("results/phi_and_weight_decay"))}
RAW = "times.nc"
HALF, CURVE = "in_distribution_half", "test_ii"
RUN = ("world", "init")
RESAMPLES = 2_000
STYLES = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "D"))


def write(found: xr.Dataset, out: Path) -> None:
    """Write `table.md` and `times.png`."""
    (out / "table.md").write_text("\n".join(table(found)) + "\n", encoding="utf-8")
    drawing, axes = new_drawing(10.5, 4.5, ncols=2)
    draw_times(axes[0], found)
    draw_early(axes[1], found)
    drawing.savefig(out / "times.png", dpi=150)


def early(found: xr.Dataset) -> xr.DataArray:
    """Return test_ii at the last evaluation that every run has, so that no run is missing."""
    curve = found[CURVE]
    everyone = curve.notnull().all([dim for dim in curve.dims if dim != "step"])
    return curve.sel(step=curve.step[everyone][-1])


def interval_of_median(of_point: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Return the bootstrapped 95% interval of the median over runs [world, init].

    An end is inf if it is later than all steps.
    """
    worlds = rng.integers(len(of_point), size=(RESAMPLES, len(of_point)))
    medians = [median_time(of_point[chosen].ravel()) for chosen in worlds]
    low, high = np.quantile(np.nan_to_num(medians, nan=np.inf), [0.025, 0.975], method="nearest")
    return float(low), float(high)


def compared(score: xr.DataArray, along: str) -> tuple[np.ndarray, int]:
    """Compare pairs of runs that differ only in `along`: does the larger value score higher?

    Returns:
      The numbers of pairs in which the larger value scores higher, equal and lower; and the number
      of worlds in which more pairs score higher than lower.
    """
    values = score.transpose("world", along, ...).values
    pairs = itertools.combinations(range(values.shape[1]), 2)
    # [pair, world, ...]. Scores are compared, not subtracted, because they may be infinite.
    signs = np.stack(
        [
            1 * (values[:, large] > values[:, small]) - (values[:, large] < values[:, small])
            for small, large in pairs
        ]
    )
    by_world = signs.sum(axis=tuple(axis for axis in range(signs.ndim) if axis != 1))
    return np.array([(signs == says).sum() for says in (1, 0, -1)]), int((by_world > 0).sum())


def table(found: xr.Dataset) -> list[str]:
    """Return Markdown tables by phi and weight decay, and tests of the two published orders."""
    rng = np.random.default_rng(0)
    soon, at_once = found[HALF], early(found)
    step, last = int(at_once.step), int(found.step[-1])
    worlds, runs = found.sizes["world"], found.sizes["world"] * found.sizes["init"]
    by_phi = found[["coverage", "shortcut"]].mean(("weight_decay", *RUN))
    headers = ["coverage", "shortcut", *(f"weight decay {d:g}" for d in found.weight_decay.values)]
    return [
        f"There are {runs} runs for each point, in {worlds} worlds. Square brackets have 95% "
        "intervals, which are bootstrapped over worlds for steps, and clustered by world for "
        "accuracies. Coverage is the share of in-distribution chains that are training chains. "
        "Shortcut is the share of test_ii that the best shortcut, which composes no facts, answers "
        "correctly.",
        "",
        "The first table has the step at which test_ii reaches .5: the median over runs, and the "
        f"number of runs that reach .5 by step {last:,}. The sign `-` means later than this step.",
        "",
        *_rows(headers, by_phi, soon, lambda point: _cell_of_times(point, rng)),
        "",
        f"The second table has the mean of test_ii at step {step:,}, which all runs have reached.",
        "",
        *_rows(headers, by_phi, at_once, _cell_of_means),
        "",
        "The third table compares pairs of runs that differ in one field only. It has the numbers "
        "of pairs in which the run with the larger value is ahead, equal and behind, and the "
        "number of worlds in which it is ahead in more pairs than it is behind.",
        "",
        "| field with the larger value | other field | test_ii reaches .5 sooner | worlds "
        f"| test_ii at step {step:,} is higher | worlds |",
        "|---|---|---|---|---|---|",
        *_comparisons(soon, at_once),
    ]


def _comparisons(soon: xr.DataArray, at_once: xr.DataArray) -> Iterator[str]:
    sooner = -soon.fillna(np.inf)
    for along, other in (("phi", "weight_decay"), ("weight_decay", "phi")):
        if soon.sizes[along] < 2:
            continue
        points = [{other: value} for value in soon[other].values]
        for point in [*points, {}]:
            at = ", ".join(f"{_said(name)} {value:g}" for name, value in point.items())
            cells = [_said(along), at or "all"]
            for score in (sooner, at_once):
                pairs, worlds = compared(score.sel(point), along)
                cells += [", ".join(map(str, pairs)), f"{worlds} of {score.sizes['world']}"]
            yield f"| {' | '.join(cells)} |"


def _said(name: str) -> str:
    return name.replace("_", " ")


def _rows(
    headers: list[str],
    by_phi: xr.Dataset,
    values: xr.DataArray,
    cell: Callable[[np.ndarray], str],
) -> list[str]:
    lines = [f"| phi | {' | '.join(headers)} |", "|---" * (1 + len(headers)) + "|"]
    for of_phi in values.transpose("phi", "weight_decay", *RUN):
        phi = float(of_phi.phi)
        world = by_phi.sel(phi=phi)
        cells = [f"{phi:g}", f"{float(world.coverage):.2f}", f"{float(world.shortcut):.2f}"]
        lines.append(f"| {' | '.join(cells + [cell(point) for point in of_phi.values])} |")
    return lines


def _cell_of_times(of_point: np.ndarray, rng: np.random.Generator) -> str:
    def say(step: float) -> str:
        return f"{step:,.0f}" if np.isfinite(step) else "-"

    low, high = interval_of_median(of_point, rng)
    reached = int(np.isfinite(of_point).sum())
    median = say(median_time(of_point.ravel()))
    return f"{median} [{say(low)}, {say(high)}], {reached} of {of_point.size}"


def _cell_of_means(of_point: np.ndarray) -> str:
    worlds = np.arange(len(of_point)).repeat(of_point.shape[1])
    found = clustered_interval(of_point.ravel(), worlds)
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def draw_times(ax: Axes, found: xr.Dataset) -> None:
    """Plot one mark per run and the median, with the number of late runs above the line."""
    last = int(found.step[-1])
    never = 1.4 * last
    for x, style, of_decay in _points(found[HALF]):
        for at, of_point in zip(x, of_decay, strict=True):
            _marks(ax, at, of_point, median_time(of_point), style)
            if lacking := int(np.isnan(of_point).sum()):
                ax.text(at, never, str(lacking), color=darken(style[0]), ha="center", va="center")
    ax.axhline(1.12 * last, color="black", linewidth=0.8)
    ax.text(
        *(0.99, never, f"runs not there by {last:,}"),
        transform=ax.get_yaxis_transform(),
        ha="right",
        va="center",
    )
    ax.set_yscale("log", base=2)
    ax.set_yticks([last / 8, last / 4, last / 2, last])
    ax.yaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    ax.set_ylim(last / 9, 1.7 * last)
    ax.set_ylabel("step at which test_ii is .5 (logarithmic)")
    _phi_axis(ax, found)


def draw_early(ax: Axes, found: xr.Dataset) -> None:
    """Plot the accuracy of all runs at an early step, with a bar at the mean."""
    scores = early(found)
    for x, style, of_decay in _points(scores):
        for at, of_point in zip(x, of_decay, strict=True):
            _marks(ax, at, of_point, of_point.mean(), style)
    for decay, (color, marker) in zip(found.weight_decay.values, STYLES, strict=False):
        ax.plot([], [], marker, color=color, label=f"{decay:g}")
    ax.legend(frameon=False, title="weight decay", loc="upper left")
    ax.set_ylim(0, 1)
    ax.set_ylabel(f"test_ii at step {int(scores.step):,}")
    _phi_axis(ax, found)


def _marks(
    ax: Axes, at: float, of_point: np.ndarray, middle: float, style: tuple[str, str]
) -> None:
    color, marker = style
    runs = at + np.linspace(-0.1, 0.1, of_point.size)
    ax.plot(runs, of_point, marker, color=color, alpha=0.6, markersize=4)
    ax.plot([at - 0.12, at + 0.12], [middle, middle], color=color, linewidth=2)


def _points(values: xr.DataArray) -> list[tuple[np.ndarray, tuple[str, str], np.ndarray]]:
    """Return, by weight decay: x positions of the phis, plot style, and values [phi, run]."""
    cube = values.transpose("weight_decay", "phi", *RUN).values
    cube = cube.reshape(*cube.shape[:2], -1)
    shifts = 0.27 * (np.arange(len(cube)) - (len(cube) - 1) / 2)
    at = np.arange(cube.shape[1])
    return [
        (at + shift, STYLES[number % len(STYLES)], of_decay)
        for number, (shift, of_decay) in enumerate(zip(shifts, cube, strict=True))
    ]


def _phi_axis(ax: Axes, found: xr.Dataset) -> None:
    ax.set_xticks(range(found.sizes["phi"]), [f"{phi:g}" for phi in found.phi.values])
    ax.set_xlim(-0.5, found.sizes["phi"] - 0.5)
    ax.grid(False, axis="x")
    ax.set_xlabel("phi: training chains for each in-distribution fact")


def main(argv: list[str]) -> None:
    """Write the table and the figure from the saved arrays."""
    flags, _ = parse_flags(argv, FLAGS)
    out = flags["out"]
    write(load_arrays(out / RAW), out)


if __name__ == "__main__":
    main(sys.argv[1:])
