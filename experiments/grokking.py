r"""Curves, phases and final accuracies of one configuration over several seeds.

    python experiments/grokking.py --scale=pocket --out=results/pocket
    python experiments/grokking.py --scale=desk --out=results/desk

The study shows whether the configuration groks. Seed s means world seed s *and* initialization seed
s. The default is three seeds at `pocket` and one seed at `desk`; `--seeds` sets the number. The
runs come from the table in `arms.py`. Missing runs are trained one after another. With overrides
`--config.x=y`, choose a separate folder with `--runs`. Three runs do not support claims about
training, which require at least 8 runs with worlds and initializations crossed. Three runs only
show that the first result was not an accident.

Ye et al. 2025 report for the base configuration: test_ii exceeds .5 at about ten times as many
steps as train_ii exceeds .99, test_oi rises last, and test_io and test_oo never rise.

Smoke test:
    python experiments/grokking.py --scale=smoke --seeds=1 --runs=runs/smoke \
        --out=runs/smoke/grokked
"""

from __future__ import annotations

import csv
import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import runs
from arms import paired

from implicit_reasoning.config import Flag, parse_flags, to_json
from implicit_reasoning.errors import InputError
from implicit_reasoning.figures import darken, label_ends, new_drawing, split_style, step_axis
from implicit_reasoning.files import atomic_write, write_json
from implicit_reasoning.report import write_report
from implicit_reasoning.runs import Run
from implicit_reasoning.training import run_phases
from implicit_reasoning.training.intervals import accuracy_intervals, row_with_intervals
from implicit_reasoning.training.record import add_intervals
from implicit_reasoning.worlds import coverage, distinct_states, shortcuts

FLAGS = {
    "scale": "pocket",
    "seeds": Flag(kind=int),
    "runs": Flag(kind=Path, default=runs.ROOT),
    "out": Flag(kind=Path),
}


def main(argv: list[str]) -> None:
    """Train missing runs, then write all results to `--out`."""
    flags, overrides = parse_flags(argv, FLAGS)
    if (out := flags["out"]) is None:
        raise InputError("--out is missing: give a folder")
    seeds = None if flags["seeds"] is None else paired(flags["seeds"])
    wanted = runs.chosen("grokking", flags["scale"], seeds=seeds)
    wanted = [dataclasses.replace(run, changes=tuple(overrides.items())) for run in wanted]
    trained = runs.restore(wanted, flags["runs"], jobs=0)
    write_json(out / "summary.json", [summary(run) for run in trained])
    write_json(out / "config.json", to_json(wanted[0].config()))
    write_curves(out / "curves.csv", trained)
    draw(trained).savefig(out / "seeds.png", dpi=150)
    page = write_report(trained[0])
    shutil.copy(page.parent / "figures" / "accuracy.png", out)


def summary(run: Run) -> dict[str, Any]:
    """Summarize a run: results with intervals and n, shortcuts, and where it was trained."""
    phases, dataset = run_phases(run), run.dataset
    add_intervals(run)  # for runs that were trained before intervals were stored
    final = row_with_intervals(run.metrics)
    assert final is not None
    speeds = [row["steps_per_second"] for row in run.metrics[len(run.metrics) // 2 :]]
    return {
        "seed": run.config.seed,
        "world_seed": run.config.task.world_seed,
        "phases": {**dataclasses.asdict(phases), "lag": phases.lag},
        "final_step": final["step"],
        "final_accuracy": {
            split: dataclasses.asdict(interval)
            for split, interval in accuracy_intervals(final, dataset).items()
        },
        "shortcuts": shortcuts(dataset),
        "coverage": coverage(dataset),
        "distinct_states": distinct_states(dataset),
        "sizes": dataset.sizes(),
        "fingerprint": dataset.fingerprint(),
        "minutes": sum(start["seconds"] for start in run.starts) / 60,
        "steps_per_second": float(np.median(speeds)),
        "starts": [start for start in run.starts if start["seconds"]],
    }


def write_curves(path: Path, trained: list[Run]) -> None:
    """Write every evaluation of every run, one row each."""
    names = [f"accuracy/{split}" for split in trained[0].dataset.splits]
    columns = ["seed", "step", *names, "accuracy_low95/test_oi", "loss"]
    with atomic_write(path) as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for run in trained:
            for row in run.metrics:
                if names[0] in row:
                    writer.writerow({"seed": run.config.seed, **row})


def draw(trained: list[Run]) -> Any:
    """Draw the accuracies of chain splits, one panel per run, and the best shortcut on test_ii."""
    drawing, axes = new_drawing(4.6 * len(trained) + 1.0, 4.2, ncols=len(trained), sharey=True)
    for ax, run in zip(axes, trained, strict=True):
        rows = [row for row in run.metrics if "accuracy/test_ii" in row]
        steps = [row["step"] for row in rows]
        step_axis(ax, steps[-1])
        ends = []
        for split in ("train_ii", "test_ii", "test_oi", "test_io", "test_oo"):
            values = [row[f"accuracy/{split}"] for row in rows]
            ax.plot(steps, values, linewidth=1.6, clip_on=False, **split_style(split))
            ends.append((values[-1], split, split_style(split)["color"]))
        best = max(rule["test_ii"] for rule in shortcuts(run.dataset).values())
        color = split_style("test_ii")["color"]
        ax.axhline(best, color=color, linewidth=0.9, linestyle="-.", alpha=0.8)
        ax.text(
            1, best - 0.045, f"best shortcut on test_ii: {best:.2f}", color=darken(color), size=8
        )
        ax.set_title(f"world and initialization seed {run.config.seed}", fontsize=10)
        ax.set_ylim(-0.015, 1.03)
        label_ends(ax, ends)
    axes[0].set_ylabel("accuracy on probe rows")
    return drawing


if __name__ == "__main__":
    main(sys.argv[1:])
