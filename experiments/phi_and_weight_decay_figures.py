"""Tables and figures of `phi_and_weight_decay.py`, made from its saved arrays.

    python experiments/phi_and_weight_decay_figures.py --out=results/phi_and_weight_decay

Intervals in the tables are bootstrapped over worlds. A drawn world contributes all its runs. With
few worlds, the intervals are too narrow. The intervals of Kaplan-Meier curves treat runs as
independent.

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
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import FuncFormatter

from implicit_reasoning.config import Flag, parse_flags
from implicit_reasoning.figures import BLUE, GREEN, ORANGE, darken, new_drawing
from implicit_reasoning.runs import load_arrays
from implicit_reasoning.statistics import clustered_interval
from implicit_reasoning.survival import LogRank, draw_survival, log_rank
from implicit_reasoning.sweeps.figures import median_time

FLAGS = {"out": Flag(kind=Path, default=Path("results/phi_and_weight_decay"))}
RAW = "times.nc"
HALF, CURVE, TRAINED = "in_distribution_half", "test_ii", "train_ii"
RUN = ("world", "init")
OTHER = {"phi": "weight_decay", "weight_decay": "phi"}
RESAMPLES = 2_000
PERMUTATIONS = 9_999
STYLES = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "D"))


def write(found: xr.Dataset, out: Path) -> None:
    """Write `table.md`, `times.png` and `survival.png`."""
    lines = [*table(found), "", *table_of_tests(found)]
    if TRAINED in found:  # older files have test_ii only
        lines += ["", *table_of_lags(found)]
    (out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    drawing, axes = new_drawing(10.5, 4.5, ncols=2)
    draw_times(axes[0], found)
    draw_early(axes[1], found)
    drawing.savefig(out / "times.png", dpi=150)
    draw_comparisons(found).savefig(out / "survival.png", dpi=150)


def runs_of(found: xr.Dataset, point: dict[str, float]) -> dict[str, np.ndarray]:
    """Return the runs of a point as flat arrays [run].

    Returns:
      `times`, the step at which test_ii is .5, or the last evaluated step of a run that does not
      reach it; `observed`, whether it does; `phi`, `weight_decay`, `world` and `init`.
    """
    here = found.sel(point).stack(run=[dim for dim in found[HALF].dims if dim not in point])
    steps = here.step.where(here[CURVE].notnull()).max("step")
    names = ("phi", "weight_decay", *RUN)
    columns = {name: here[name].broadcast_like(here[HALF]).values for name in names}
    reached = here[HALF].notnull().values
    times = np.where(reached, here[HALF].values, steps.values)
    return {"times": times, "observed": reached, **columns}


def tests(found: xr.Dataset) -> dict[str, dict[float, LogRank]]:
    """Return log-rank tests by the field that is compared, and by the value of the other field.

    Tests are stratified by world. Runs of the same world and phi have the same training chains.
    When values of phi are compared, these runs are permuted together.
    """
    return {
        along: {
            value: _test(runs_of(found, {other: value}), along) for value in found[other].values
        }
        for along, other in OTHER.items()
        if found.sizes[along] > 1
    }


def _test(runs: dict[str, np.ndarray], along: str) -> LogRank:
    return log_rank(
        *(runs["times"], runs["observed"], runs[along], runs["world"]),
        n_permutations=PERMUTATIONS,
        clusters=runs["phi"] if along == "phi" else None,
    )


def table_of_tests(found: xr.Dataset) -> list[str]:
    """Return a Markdown table of the log-rank tests."""
    return [
        "The fourth table has log-rank tests of the step at which test_ii reaches .5, stratified "
        "by world. A cell of a value has the number of runs that reach .5, and in brackets the "
        "number expected if the values made no difference. The last column has the p-value by "
        f"{PERMUTATIONS:,} permutations within worlds. Where values of phi are compared, runs with "
        "the same training chains are permuted together.",
        "",
        "| compared | other field | reach .5 (expected) | chi-square | degrees of freedom | p | "
        "p by permutations |",
        "|---" * 7 + "|",
        *(
            f"| {_said(along)} | {_said(OTHER[along])} {value:g} | {_counts(test)} "
            f"| {test.chi_square:.1f} | {test.degrees} | {test.p:.1g} | {test.p_permutation:.1g} |"
            for along, by_point in tests(found).items()
            for value, test in by_point.items()
        ),
    ]


def table_of_lags(found: xr.Dataset) -> list[str]:
    """Return a Markdown table of test_ii at train_ii .99, and of lags between equal thresholds."""
    levels = (0.5, 0.95)
    lines = [
        "The fifth table has test_ii at the first evaluation with train_ii at least .99, and the "
        "lag: the number of steps from the first evaluation with train_ii at a threshold to the "
        "first with test_ii at the same threshold. A cell has the median over the runs that reach "
        "both, and the number of these runs.",
        "",
        "| phi | weight decay | test_ii at train_ii .99 | "
        + " | ".join(f"lag at {level:g}" for level in levels)
        + " |",
        "|---" * (3 + len(levels)) + "|",
    ]
    steps = found["step"].values
    for phi, decay in itertools.product(found["phi"].values, found["weight_decay"].values):
        here = found.sel(phi=phi, weight_decay=decay).stack(run=RUN)
        trained, held_out = (
            here[name].transpose("step", "run").values for name in (TRAINED, CURVE)
        )
        reached = np.asarray((trained >= 0.99).any(0))
        first = (trained >= 0.99).argmax(0)
        cells = [_median_of(held_out[first, np.arange(len(first))], reached, ".2f")]
        for level in levels:
            there = np.asarray((trained >= level).any(0) & (held_out >= level).any(0))
            begun, ended = (steps[(curve >= level).argmax(0)] for curve in (trained, held_out))
            cells.append(_median_of(ended - begun, there, ",.0f"))
        lines.append(f"| {phi:g} | {decay:g} | {' | '.join(cells)} |")
    return lines


def _median_of(values: np.ndarray, counted: np.ndarray, form: str) -> str:
    median = format(np.median(values[counted]), form) if counted.any() else "-"
    return f"{median} ({counted.sum()} of {len(counted)})"


def _counts(test: LogRank) -> str:
    return ", ".join(
        f"{group:g}: {observed:.0f} of {n} ({expected:.1f})"
        for group, n, observed, expected in zip(
            test.groups, test.n_runs, test.observed, test.expected, strict=True
        )
    )


def draw_comparisons(found: xr.Dataset) -> Drawing:
    """Plot Kaplan-Meier curves: a row of panels for each field that is compared."""
    comparisons = tests(found)
    rows, columns = len(comparisons), max(map(len, comparisons.values()))
    grid = {"nrows": rows, "ncols": columns, "sharex": True, "sharey": True}
    drawing, axes = new_drawing(0.5 + 3.5 * columns, 3.4 * rows, **grid)
    for row, (along, by_point) in enumerate(comparisons.items()):
        panels = axes[row * columns : (row + 1) * columns]
        panels[0].set_ylabel("share of runs below test_ii .5")
        for ax, (value, test) in zip(panels, by_point.items(), strict=True):
            draw_curves(ax, found, along, value, test)
    for ax in axes[-columns:]:
        ax.set_xlabel("step (logarithmic)")
    return drawing


def draw_curves(ax: Axes, found: xr.Dataset, along: str, value: float, test: LogRank) -> None:
    """Plot the Kaplan-Meier curves of the values of one field, with their log-rank test."""
    runs = runs_of(found, {OTHER[along]: value})
    colors = [color for color, _ in STYLES]
    draw_survival(ax, runs["times"], runs["observed"], runs[along], colors=colors)
    ax.legend(frameon=False, title=_said(along), fontsize=8, loc="lower left")
    said = f"chi-square {test.chi_square:.1f}, p = {test.p_permutation:.1g}"
    said = said if test.degrees else "no run reaches .5"
    ax.set_title(f"{_said(OTHER[along])} {value:g}: {said}", fontsize=9.5)
    last = int(found.step[-1])
    ax.set_xscale("log", base=2)
    ax.set_xlim(last / 16, 1.05 * last)
    ax.set_xticks([last / 2**power for power in range(5)])
    ax.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))


def early(found: xr.Dataset) -> xr.DataArray:
    """Return the accuracy on test_ii at the last evaluation that all runs have."""
    curve = found[CURVE]
    everyone = curve.notnull().all([dim for dim in curve.dims if dim != "step"])
    return curve.sel(step=curve.step[everyone][-1])


def interval_of_median(of_point: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Return the bootstrapped 95% interval of the median over runs [world, init].

    The end of an interval is inf if it is later than all steps.
    """
    worlds = rng.integers(len(of_point), size=(RESAMPLES, len(of_point)))
    medians = [median_time(of_point[chosen].ravel()) for chosen in worlds]
    low, high = np.quantile(np.nan_to_num(medians, nan=np.inf), [0.025, 0.975], method="nearest")
    return float(low), float(high)


def compared(score: xr.DataArray, along: str) -> tuple[np.ndarray, int]:
    """Compare pairs of runs that differ only in the value of `along`.

    Returns:
      Counts of the pairs in which the run with the larger value has a higher, an equal and a lower
      score; and the number of worlds with more higher than lower pairs.
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
    """Return Markdown tables by phi and weight decay, and tests of the two published rankings."""
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
    """Plot one mark per run and the median. Above the line, the number of late runs is shown."""
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
    """Return, for each weight decay, the x positions of the phis, the plot style, and the values.

    The values are [phi, run].
    """
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
