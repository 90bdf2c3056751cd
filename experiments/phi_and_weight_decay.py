"""When does composition generalise, against phi and weight decay? A sweep, and one figure.

    python experiments/phi_and_weight_decay.py

Three values of phi (training chains for each fact) by three of weight decay, each with four worlds
and two initialisations, `pocket`, with a constant learning rate, as a cosine's end would help those
that are late. What is measured is the step at which half of the held-out chains are answered (the
first of three evaluations in a row). Trials go on in rounds, and who has got there trains no more;
who has not at the end of the last round counts as later than all who have.

Published (Wang et al. 2024, figures 2a and 13): larger phi sooner; larger weight decay sooner.

A run is a trial of the sweep in `--runs`: the same command goes on with what is not done.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import xarray as xr

from implicit_reasoning.config import apply_overrides, load_config, parse_flags
from implicit_reasoning.figures import BLUE, GREEN, ORANGE, new_drawing
from implicit_reasoning.machine import every_core_a_device, provenance
from implicit_reasoning.runs import save_arrays
from implicit_reasoning.sweeps import Runs, grid, make_sweep, run_sweep
from implicit_reasoning.sweeps.figures import median_time
from implicit_reasoning.worlds import coverage, shortcuts

FLAGS = {
    "rounds": (1_000, 1_500, 2_000, 3_000, 4_000),
    "phi": (3.5, 5.0, 7.0),
    "weight_decay": (0.1, 0.3, 1.0),
    "worlds": 4,
    "inits": 2,
    "launcher": "vmap",
    "runs": "runs/phi_and_weight_decay",
    "out": "results/phi_and_weight_decay",
}
PHI, DECAY, WORLD, SEED = "task.phi", "optimizer.weight_decay", "task.world_seed", "seed"
HALF, CURVE = "in_distribution_half", "test_ii"
RESAMPLES = 2_000
COLORS = (BLUE, ORANGE, GREEN)


def main(argv: list[str]) -> None:
    """Train what is missing, then write the table, the figure and the raw times."""
    flags, overrides = parse_flags(argv, FLAGS)
    base = {
        "steps": flags["rounds"][-1],
        "optimizer.schedule": "constant",
        "task.probes": 1_000,
        "resume_every": 250,
        "checkpoints.every": flags["rounds"][-1],
        "checkpoints.per_doubling": 0,
    }
    config = apply_overrides(load_config("configs/composition.py:pocket"), {**base, **overrides})
    points = {PHI: flags["phi"], DECAY: flags["weight_decay"]}
    seeds = {WORLD: range(flags["worlds"]), SEED: range(flags["inits"])}
    # Seeds vary slowest: if the sweep is stopped, whole replicates are done.
    sweep = make_sweep(config, list(grid({**seeds, **points})))
    every_core_a_device()
    late = list(sweep.trials)
    for stop in flags["rounds"]:
        run_sweep(sweep, flags["runs"], launcher=flags["launcher"], stop_at=stop, only=late)
        half = Runs(flags["runs"]).phases()[HALF]
        late = [str(name) for name in half.trial[np.isnan(half.values)].values]
        print(f"step {stop:,}: {len(late)} of {len(half)} trials have not got there", flush=True)
        if not late:
            break
    write(times(Runs(flags["runs"]), flags), Path(flags["out"]))


def times(runs: Runs, flags: dict[str, object]) -> xr.Dataset:
    """Steps to one half, `[phi, weight_decay, world, init]`, nan: not reached; curves, worlds."""
    phases = runs.phases()[[HALF]]
    phases[CURVE] = runs.metric(f"accuracy/{CURVE}").astype("float32")
    known = about_worlds(runs)
    phases = phases.assign({name: ("trial", values) for name, values in known.items()})
    index = [PHI, DECAY, WORLD, SEED]
    flat = phases.drop_vars("trial").set_index(trial=index)
    cube = flat.unstack("trial").rename(
        {PHI: "phi", DECAY: "weight_decay", WORLD: "world", SEED: "init"}
    )
    about = {"config": runs[0].config.to_json_best_effort(), "made_with": provenance()}
    return cube.assign_attrs(about | {"rounds": flags["rounds"]})


def about_worlds(runs: Runs) -> dict[str, list[float]]:
    """By trial: the share of all chains that are trained on, the best shortcut on test_ii."""
    seen: dict[str, tuple[float, float]] = {}
    found = []
    for run in runs:
        task = str(run.config.task)
        if task not in seen:
            by_rule = shortcuts(run.dataset).values()
            best = max(rule["test_ii"] for rule in by_rule if "test_ii" in rule)
            seen[task] = (coverage(run.dataset) or np.nan, best)
        found.append(seen[task])
    return {"coverage": [c for c, _ in found], "shortcut": [s for _, s in found]}


def interval(of_point: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """95% of the median over runs `[world, init]`, worlds drawn anew; inf: not reached."""
    worlds = rng.integers(len(of_point), size=(RESAMPLES, len(of_point)))
    medians = [median_time(of_point[chosen].ravel()) for chosen in worlds]
    low, high = np.quantile(np.nan_to_num(medians, nan=np.inf), [0.025, 0.975], method="nearest")
    return float(low), float(high)


def sooner(found: xr.DataArray, along: str, rng: np.random.Generator) -> dict[str, float]:
    """Of pairs of runs that differ in one field only, how often the larger value is sooner.

    A tie counts half. The interval is over worlds, drawn anew.
    """
    values = found.transpose("world", along, ...).values
    values = np.where(np.isnan(values), np.inf, values)
    pairs = list(itertools.combinations(range(values.shape[1]), 2))
    wins = np.stack(
        [
            (values[:, large] < values[:, small]) + 0.5 * (values[:, large] == values[:, small])
            for small, large in pairs
        ]
    )  # [pair, world, ...]
    by_world = wins.mean(axis=tuple(axis for axis in range(wins.ndim) if axis != 1))
    drawn = by_world[rng.integers(len(by_world), size=(RESAMPLES, len(by_world)))].mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"share": by_world.mean(), "low": low, "high": high, "pairs": wins.size}


def write(found: xr.Dataset, out: Path) -> None:
    """`times.nc`, `table.md`, `times.png`."""
    out.mkdir(parents=True, exist_ok=True)
    half = found[HALF].transpose("phi", "weight_decay", "world", "init")
    save_arrays(out / "times.nc", found)
    by_phi = found[["coverage", "shortcut"]].mean(("weight_decay", "world", "init"))
    (out / "table.md").write_text("\n".join(table(half, by_phi)) + "\n", encoding="utf-8")
    draw(half, out / "times.png")


def table(half: xr.DataArray, by_phi: xr.Dataset) -> list[str]:
    """Markdown: a line for each phi, then how often each of the two published orders holds."""
    rng = np.random.default_rng(0)
    decays = half.weight_decay.values
    lines = [
        "Step at which test_ii is .5: median over runs [95% interval, worlds resampled], runs that "
        "got there of all; `-`: not reached. Shortcut: the best rule that composes nothing.",
        "",
        "| phi | coverage | shortcut | " + " | ".join(f"weight decay {d:g}" for d in decays) + " |",
        "|---" * (3 + len(decays)) + "|",
    ]
    for phi, row in zip(half.phi.values, half.values, strict=True):
        of_phi = by_phi.sel(phi=phi)
        cells = [f"{phi:g}", f"{float(of_phi.coverage):.2f}", f"{float(of_phi.shortcut):.2f}"]
        cells += [cell(of_point, rng) for of_point in row]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for name in ("phi", "weight_decay"):
        order = sooner(half, name, rng)
        lines.append(
            f"- A larger {name.replace('_', ' ')} is sooner in {order['share']:.2f} "
            f"[{order['low']:.2f}, {order['high']:.2f}] of {order['pairs']} pairs of runs that "
            "differ in it alone (by chance .50)."
        )
    return lines


def cell(of_point: np.ndarray, rng: np.random.Generator) -> str:
    """Median, interval and how many got there, of runs `[world, init]`."""

    def say(step: float) -> str:
        return f"{step:,.0f}" if np.isfinite(step) else "-"

    low, high = interval(of_point, rng)
    reached = int(np.isfinite(of_point).sum())
    median = say(median_time(of_point.ravel()))
    return f"{median} [{say(low)}, {say(high)}], {reached} of {of_point.size}"


def draw(half: xr.DataArray, path: Path) -> None:
    """A dot for each run, a line through the medians of each weight decay."""
    drawing, (ax,) = new_drawing(7.5, 4.5)
    for number, decay in enumerate(half.weight_decay.values):
        color, shift = COLORS[number % len(COLORS)], 1 + 0.015 * (number - 1)
        for phi, of_point in zip(half.phi.values, half.values[:, number], strict=True):
            at = np.full(of_point.size, phi * shift)
            ax.plot(at, of_point.ravel(), "o", color=color, alpha=0.4, markersize=4)
        medians = [median_time(of_point.ravel()) for of_point in half.values[:, number]]
        ax.plot(half.phi.values * shift, medians, color=color, label=f"weight decay {decay:g}")
    ax.set_xlabel("phi: training chains for each in-distribution fact")
    ax.set_ylabel("step at which test_ii is .5")
    ax.legend(frameon=False)
    drawing.savefig(path, dpi=150)


if __name__ == "__main__":
    main(sys.argv[1:])
