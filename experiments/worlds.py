r"""Learning curves and shortcut baselines of every task configuration.

    python experiments/worlds.py --scale=pocket --out=results/worlds/pocket
    python experiments/worlds.py --scale=desk --out=results/worlds/desk

At `pocket`, there is one arm per file of `configs/`, and two further arms for the ratio of `O`
facts. At `desk`, there are three arms. Seed s means world seed s *and* initialization seed s. The
default is three seeds at `pocket` and one seed at `desk`; `--seeds` sets the number. The runs come
from the table in `arms.py`. The script resumes run by run: runs with results in `--out` are not
trained again, and interrupted runs are continued. `--jobs` runs are trained in parallel, each in
its own process with a share of the cores. `--only` restricts the arms. The figures show all results
in `--out`.

The results can be compared with two papers. Ye et al. 2025: ID triples are not necessary but
accelerate generalization; chains with restricted second hops stay near 0; of the patterns with `O`
facts, only patterns with the `O` fact in the first hop rise. Wang et al. 2024: comparison
generalizes out of distribution, composition does not.

Smoke test:
    python experiments/worlds.py --scale=smoke --seeds=1 --only=composition --jobs=0 \
        --runs=runs/smoke --out=runs/smoke/worlds
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import runs
from apart import Command, run_apart
from arms import ARMS, paired
from grokking import summary
from ml_collections import ConfigDict

from implicit_reasoning.config import (
    Change,
    Flag,
    changed_keys,
    from_json,
    parse_flags,
    to_json,
)
from implicit_reasoning.errors import InputError
from implicit_reasoning.figures import darken, label_ends, new_drawing, split_style, step_axis
from implicit_reasoning.files import read_json, write_json
from implicit_reasoning.runs import Run
from implicit_reasoning.runs.config import completed

FLAGS = {
    "scale": "pocket",
    "seeds": Flag(kind=int),
    "only": Flag(many=True, default=()),
    "jobs": 2,
    "runs": Flag(kind=Path, default=runs.ROOT),
    "out": Flag(kind=Path, default=Path("results/worlds/pocket")),
}
COLUMNS = 4


def main(argv: list[str]) -> None:
    """Train missing runs, then draw the figures."""
    flags, overrides = parse_flags(argv, FLAGS)
    if overrides:
        raise InputError("this study takes no overrides: its arms are the files of configs/")
    scale, out, root = flags["scale"], flags["out"], flags["runs"]
    seeds = None if flags["seeds"] is None else paired(flags["seeds"])
    wanted = runs.chosen("worlds", scale, flags["only"], seeds)
    check_current(out, scale)

    def job(state: runs.State, command: Command) -> None:
        trained = runs.train_missing(state, command)
        write_json(raw(out, state.run), measured(trained), indent=None)

    missing = [run for run in wanted if not raw(out, run).exists()]
    jobs = {run.name: partial(job, runs.state_of(run, root)) for run in missing}
    run_apart(jobs, flags["jobs"], root / "compiled")
    draw_all(out)


def check_current(out: Path, scale: str) -> None:
    """Check that saved results have the current configurations.

    Raises:
      InputError: a saved result has a different configuration.
    """
    for arm, seed, path in kept(out):
        config = runs.StudyRun(arm, scale, seed, seed).config()
        if changes := differences(read_json(path)["config"], config):
            raise InputError(
                f"{path} was measured with another configuration ({changes[0].key} was "
                f"{changes[0].old!r}); remove the file, or choose another --out"
            )


def differences(measured_with: dict[str, Any], config: ConfigDict) -> list[Change]:
    """Return the fields that differ from a saved configuration.

    For fields that were added later, the saved configuration counts as having the value that
    reproduces the earlier behavior.
    """
    return changed_keys(completed(from_json(measured_with)), completed(config))


def kept(out: Path) -> list[tuple[str, int, Path]]:
    """Return arm, seed and file of every saved result, ordered by arm and seed."""
    found = []
    for path in (out / "raw").glob("*.json"):
        arm, _, seed = path.stem.rpartition("_")
        if arm in ARMS and seed.isdecimal():
            found.append((arm, int(seed), path))
    return sorted(found)


def raw(out: Path, run: runs.StudyRun) -> Path:
    """Return the path of the saved result of a run."""
    return out / "raw" / f"{run.arm}_{run.init}.json"


def measured(run: Run) -> dict[str, Any]:
    """Return the result of a run.

    The result has the summary of `grokking.py`, the curves, and the first correct answers.
    """
    rows = [row for row in run.metrics if f"accuracy/{run.dataset.splits[0]}" in row]
    splits = [name for name in run.dataset.splits if f"accuracy/{name}" in rows[0]]
    steps = [row["step"] for row in rows]
    accuracy = {name: [round(row[f"accuracy/{name}"], 4) for row in rows] for name in splits}
    return {
        **summary(run),
        "config": to_json(run.config),
        "steps": steps,
        "accuracy": accuracy,
        "first_correct": {name: first_correct(run, name, steps) for name in splits},
    }


def first_correct(run: Run, split: str, steps: list[int]) -> list[float]:
    """Return, for each step, the share of probes answered correctly at that step or before."""
    kept = run.first_correct
    member = run.dataset.split[kept["row"]] == run.dataset.splits.index(split)
    first = kept["step"][member]
    return [round(float(((first >= 0) & (first <= step)).mean()), 4) for step in steps]


def draw_all(out: Path) -> None:
    """Draw the curves of every arm in two figures, and write a table of final accuracies."""
    seeds: dict[str, list[dict[str, Any]]] = {}
    for arm, _, path in kept(out):
        seeds.setdefault(arm, []).append(read_json(path))
    for quantity, label in (
        ("accuracy", "accuracy on probe rows"),
        ("first_correct", "share answered correctly at least once"),
    ):
        draw(seeds, quantity, label).savefig(out / f"{quantity}.png", dpi=130)
    (out / "table.md").write_text(table(seeds), encoding="utf-8")


def draw(seeds: dict[str, list[dict[str, Any]]], quantity: str, label: str) -> Any:
    """Draw one panel per arm with one line per split and seed, and the best shortcut."""
    ncols = min(COLUMNS, len(seeds))
    nrows = -(-len(seeds) // ncols)
    size = (4.3 * ncols, 3.3 * nrows + 0.4)
    drawing, axes = new_drawing(*size, nrows=nrows, ncols=ncols, sharey=True)
    for ax in axes[len(seeds) :]:
        ax.axis("off")
    for ax in axes[::ncols]:
        ax.set_ylabel(label)
    for ax, (arm, found) in zip(axes, seeds.items(), strict=False):
        step_axis(ax, found[0]["steps"][-1])
        ends = []
        for split in found[0][quantity]:
            style = split_style(split)
            for run in found:
                ax.plot(run["steps"], run[quantity][split], linewidth=1.1, alpha=0.9, **style)
            last = float(np.mean([run[quantity][split][-1] for run in found]))
            ends.append((last, split, style["color"]))
        draw_shortcut(ax, found)
        ax.set_title(f"{arm}, {len(found)} seed{'s' * (len(found) > 1)}", fontsize=10)
        ax.set_ylim(-0.015, 1.03)
        label_ends(ax, ends)
    return drawing


def draw_shortcut(ax: Any, found: list[dict[str, Any]]) -> None:
    """Draw a line at the mean accuracy of the best shortcut on the held-out split."""
    levels = [best_shortcut(run, held_out(run)) for run in found]
    if None in levels:
        return
    best = float(np.mean([value for value in levels if value is not None]))
    color = split_style(held_out(found[0]) or "")["color"]
    ax.axhline(best, color=color, linewidth=0.9, linestyle="-.", alpha=0.8)
    ax.text(1, best - 0.055, f"best shortcut: {best:.2f}", color=darken(color), size=7)


def held_out(run: dict[str, Any]) -> str | None:
    """Return the test split with the same pattern as the training chains; None if there is none."""
    trained = next(name for name in run["accuracy"] if name.startswith("train_"))
    name = f"test_{trained.removeprefix('train_')}"
    return name if name in run["accuracy"] else None


def best_shortcut(run: dict[str, Any], split: str | None) -> float | None:
    """Return the accuracy of the best shortcut on a split; None if there is no shortcut."""
    values = [rule[split] for rule in run["shortcuts"].values() if split in rule]
    return max(values, default=None)


def table(seeds: dict[str, list[dict[str, Any]]]) -> str:
    """Return a Markdown table of final accuracies, best shortcuts, and steps to .5 and .95."""
    lines = [
        "| arm | split | final accuracy [95% interval] of each seed | probe rows "
        "| accuracy of the best shortcut | first step at .5 / .95 |"
    ]
    lines += ["|---|---|---|---|---|---|"]
    for arm, found in seeds.items():
        for split in found[0]["accuracy"]:
            last = [run["final_accuracy"][split] for run in found]
            ends = [
                "{} [{}, {}]".format(*(share(one[key]) for key in ("mean", "low", "high")))
                for one in last
            ]
            n = ", ".join(str(one["n_examples"]) for one in last)
            best = [best_shortcut(run, split) for run in found]
            shown = ", ".join("-" if one is None else f"{one:.3f}" for one in best)
            half, most = (reached(found, split, level) for level in (0.5, 0.95))
            lines.append(
                f"| {arm} | {split} | {', '.join(ends)} | {n} | {shown} | {half} / {most} |"
            )
    return "\n".join(lines) + "\n"


def share(value: float) -> str:
    """Format a value with three decimals, without a negative zero."""
    return f"{abs(round(value, 3)):.3f}"


def reached(found: list[dict[str, Any]], split: str, level: float) -> str:
    """Return, for each seed, the step of the first evaluation at or above a level."""
    steps = []
    for run in found:
        above = np.flatnonzero(np.asarray(run["accuracy"][split]) >= level)
        steps.append(f"{run['steps'][above[0]]:,}" if len(above) else "never")
    return ", ".join(steps)


if __name__ == "__main__":
    main(sys.argv[1:])
