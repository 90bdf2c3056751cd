r"""Early supervision: which weight, which blocks and which rows, and what does it cost?

    python experiments/early_supervision.py --out=results/reasoning_or_shortcut/early_supervision

The task is `ladder` at pocket, with narrower models (width 128) and 4,000 steps. With these
settings, the usual loss memorizes and early supervision composes, so differences between settings
are large. Each part varies one setting, from weight 6, single facts and the model's unembedding:

- `weight`: 0 (the usual loss) to 12, two blocks.
- `rows`: the rows with an early target. `atomic` are single facts. `chains` are chains, whose
  target at r1 is the bridge. `all` are both.
- `layers`: models with four blocks. One of the first three blocks is supervised, or all three, or
  none.
- `readout`: a trained linear map of the state in place of the final norm and the unembedding.

Each setting has three runs, which differ in world and initialization. Three runs support no claim
about training; the table has their mean and their range.

Smoke test:
    python experiments/early_supervision.py --steps=20 --width=16 --seeds=1 \
        --weights=0,6 --rows=atomic --layers=0 \
        --runs=runs/smoke/early --out=runs/smoke/early_out
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from early_readout import train_with_readout
from matplotlib.axes import Axes
from ml_collections import ConfigDict

from implicit_reasoning.config import Flag, apply_overrides, load_config, parse_flags
from implicit_reasoning.errors import InputError
from implicit_reasoning.figures import new_drawing, split_style
from implicit_reasoning.files import read_json, write_json
from implicit_reasoning.runs import Run
from implicit_reasoning.runtime.machine import one_device_per_core, provenance
from implicit_reasoning.sweeps import Runs, make_sweep, run_sweep
from implicit_reasoning.training.estimate import plan
from implicit_reasoning.worlds import Dataset, build
from implicit_reasoning.worlds.shortcuts import shortcuts

FLAGS = {
    "config": "configs/ladder.py:pocket",
    "weights": Flag(kind=float, many=True, default=(0.0, 0.3, 1.0, 3.0, 6.0, 12.0)),
    "rows": Flag(many=True, default=("atomic", "chains", "all")),
    "layers": Flag(many=True, default=("none", "0", "1", "2", "0+1+2")),
    "trained_map": True,
    "seeds": 3,
    "width": 128,
    "steps": 4_000,
    "runs": Flag(kind=Path, default=Path("runs/early_supervision")),
    "out": Flag(kind=Path, default=Path("results/reasoning_or_shortcut/early_supervision")),
}
RAW = "early_supervision.json"
COMMON = {"rows": "atomic", "readout": "unembedding"}
"""The name of the common setting (weight 6, single facts, the unembedding) in other parts."""
SPLITS = ("train_ii", "test_ii", "test_c2", "test_c1", "test_c0", "test_oi", "test_io")
USUAL_WEIGHT, DEEP = 6.0, 4
GROUP = "loss.early_supervision"


def main(argv: list[str]) -> None:
    """Train missing runs, then write the raw numbers, the table and the figure."""
    flags, overrides = parse_flags(argv, FLAGS)
    if overrides:
        raise InputError("this study takes no overrides; its flags change the models and the loss")
    one_device_per_core()
    base = apply_overrides(load_config(flags["config"]), common(flags))
    settings = [*settings_of(flags)]
    seeds = range(flags["seeds"])
    trials = [{**of[2], "seed": seed, "task.world_seed": seed} for seed in seeds for of in settings]
    run_sweep(make_sweep(base, trials), flags["runs"])
    opened = iter(Runs(flags["runs"]))
    found = [of_run(part, setting, next(opened)) for _ in seeds for part, setting, _ in settings]
    if flags["trained_map"]:
        found += [with_map(base, seed, flags["runs"]) for seed in seeds]
    write_json(flags["out"] / RAW, {"runs": found, "made_with": provenance()})
    write(flags["out"])


def common(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the overrides that all runs share."""
    steps = flags["steps"]
    return {
        "steps": steps,
        "model.d_model": flags["width"],
        "model.d_mlp": 4 * flags["width"],
        "evaluation.every": max(steps // 40, 1),
        "checkpoints.every": steps,
        "checkpoints.per_doubling": 0,
        "resume_every": max(steps // 4, 1),
    }


def settings_of(flags: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (part, setting, overrides) for each setting.

    Weight 6 with single facts and two blocks is a run of the part `weight` only.
    """
    for weight in flags["weights"]:
        yield "weight", f"{weight:g}", {f"{GROUP}.weight": weight}
    for rows in flags["rows"]:
        if rows != "atomic":
            yield "rows", rows, {f"{GROUP}.weight": USUAL_WEIGHT, f"{GROUP}.rows": rows}
    for layers in flags["layers"]:
        if layers == "none":
            chosen: dict[str, Any] = {}
        else:
            blocks = tuple(int(block) for block in layers.split("+"))
            chosen = {f"{GROUP}.weight": USUAL_WEIGHT, f"{GROUP}.layers": blocks}
        yield "layers", layers, {"model.n_layers": DEEP, **chosen}


def of_run(part: str, setting: str, run: Run) -> dict[str, Any]:
    """Return the row of the raw numbers of a trial."""
    rows = [row for row in run.metrics if "accuracy/test_ii" in row]
    return row_of(part, setting, run.config, run.dataset, rows)


def with_map(base: ConfigDict, seed: int, folder: Path) -> dict[str, Any]:
    """Return the row of the run with a trained map, which is trained if it is not saved yet."""
    config = apply_overrides(
        base, {f"{GROUP}.weight": USUAL_WEIGHT, "seed": seed, "task.world_seed": seed}
    )
    dataset, saved = build(config.task), folder / "readout" / f"map_{seed}.json"
    if not saved.exists():
        write_json(saved, [*train_with_readout(config, dataset)])
    return row_of("readout", "trained map", config, dataset, read_json(saved))


def row_of(
    part: str,
    setting: str,
    config: ConfigDict,
    dataset: Dataset,
    rows: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the accuracies of a run at its end, the steps to thresholds, and the cost of a step.

    The threshold of train_ii is .99, and those of test_ii and test_c0 are .5. A threshold that is
    not reached is None.

    Args:
      part: the part of the study.
      setting: the setting of this part.
      config: the configuration of the run.
      dataset: the dataset of the run.
      rows: the rows of metrics with an evaluation.
    """
    best = {
        split: max(rule[split] for rule in shortcuts(dataset).values() if split in rule)
        for split in SPLITS[1:]
    }
    return {
        "part": part,
        "setting": setting,
        "seed": int(config.seed),
        "accuracy": {split: rows[-1][f"accuracy/{split}"] for split in SPLITS},
        "n": {split: len(dataset.probes(split)) for split in SPLITS},
        "best_shortcut": best,
        "memorised": reached(rows, "train_ii", 0.99),
        "test_ii at memorised": next(
            (row["accuracy/test_ii"] for row in rows if row["accuracy/train_ii"] >= 0.99), None
        ),
        "half": {split: reached(rows, split, 0.5) for split in ("test_ii", "test_c0")},
        "flops_per_step": plan(config, measure=False).cost.step,
        "curve": {
            "step": [row["step"] for row in rows],
            **{split: [row[f"accuracy/{split}"] for row in rows] for split in SPLITS},
        },
    }


def reached(rows: Sequence[Mapping[str, Any]], split: str, least: float) -> int | None:
    """Return the first step at which the accuracy on a split is at least `least`."""
    return next((row["step"] for row in rows if row[f"accuracy/{split}"] >= least), None)


def write(out: Path) -> None:
    """Write `table.md` and `early_supervision.png` from the raw numbers."""
    rows = read_json(out / RAW)["runs"]
    (out / "table.md").write_text(table(rows), encoding="utf-8")
    parts = list(dict.fromkeys(row["part"] for row in rows))
    drawing, axes = new_drawing(3.9 * len(parts), 3.8, ncols=len(parts))
    for ax, part in zip(axes, parts, strict=True):
        draw(ax, part, [*common_rows(rows, part), *(row for row in rows if row["part"] == part)])
    axes[0].legend(fontsize=8, frameon=False)
    drawing.savefig(out / "early_supervision.png", dpi=130)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table: for each setting the mean over runs, and their range."""
    heads = ["part", "setting", "runs", *SPLITS, "test_ii at train_ii .99"]
    heads += ["step of test_ii .5", "step of c0 .5", "GFLOP of a step (ratio)"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    usual = min(row["flops_per_step"] for row in rows)
    for part, setting in dict.fromkeys((row["part"], row["setting"]) for row in rows):
        here = [row for row in rows if (row["part"], row["setting"]) == (part, setting)]
        cells = [part, setting, str(len(here))]
        cells += [spread([row["accuracy"][split] for row in here]) for split in SPLITS]
        cells.append(spread([row["test_ii at memorised"] for row in here]))
        cells += [steps([row["half"][split] for row in here]) for split in ("test_ii", "test_c0")]
        cells.append(
            f"{here[0]['flops_per_step'] / 1e9:.2f} ({here[0]['flops_per_step'] / usual:.2f})"
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float | None]) -> str:
    """Return `mean (smallest - largest)` of the known values, or the only one."""
    known = [value for value in values if value is not None]
    if not known:
        return "not reached"
    mean = f"{np.mean(known):.2f}"
    return mean if len(known) == 1 else f"{mean} ({min(known):.2f} - {max(known):.2f})"


def steps(values: Sequence[int | None]) -> str:
    """Return the steps of all runs in ascending order; `-` for a run that does not get there."""
    ordered = sorted(values, key=lambda step: float("inf") if step is None else step)
    return ", ".join("-" if step is None else f"{step:,}" for step in ordered)


def common_rows(rows: Sequence[Mapping[str, Any]], part: str) -> list[dict[str, Any]]:
    """Return the runs of the common setting of all parts, named as a setting of a part.

    They are in the part `weight`. The models of the part `layers` have more blocks.
    """
    if part not in COMMON:
        return []
    common = [row for row in rows if (row["part"], row["setting"]) == ("weight", "6")]
    return [{**row, "setting": COMMON[part]} for row in common]


def draw(ax: Axes, part: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw the accuracy at the end by setting: a point for each run, and a line of the means.

    Settings without an order have no line.
    """
    names = list(dict.fromkeys(row["setting"] for row in rows))
    for split in ("test_ii", "test_c0", "test_oi", "test_io"):
        color = split_style(split)["color"]
        points = [
            [row["accuracy"][split] for row in rows if row["setting"] == name] for name in names
        ]
        for place, values in enumerate(points):
            label = "" if place else split
            ax.plot([place] * len(values), values, "o", color=color, markersize=5, label=label)
        if part == "weight":
            ax.plot([np.mean(values) for values in points], color=color, linewidth=1.2)
    ax.set_xticks(range(len(names)), names)
    labels = {
        "weight": "weight of early supervision",
        "rows": "rows with an early target",
        "layers": "supervised blocks of 4",
        "readout": "readout of the states",
    }
    ax.set(xlabel=labels[part], ylim=(-0.02, 1.02), xlim=(-0.4, len(names) - 0.6))
    ax.set_ylabel("accuracy at the last step" if part == "weight" else "")


if __name__ == "__main__":
    main(sys.argv[1:])
