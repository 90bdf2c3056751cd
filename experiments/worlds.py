r"""Every world and every control: what is learnt, when, and what a shortcut would answer.

    python experiments/worlds.py --scale=pocket --seeds=3 --out=results/worlds/pocket
    python experiments/worlds.py --scale=desk --seeds=1 --out=results/worlds/desk \
        --only=composition,without_id_triples,shadow

One arm a file of `configs/`, and some more of the ratio of `O` facts. Seed s is world seed s *and*
initialisation seed s. The script resumes run by run: what is in `--out` is not trained again, and a
run that was stopped goes on. `--jobs` runs train at a time, each on its share of the cores, each in
a process of its own; `--only` leaves the other arms as they are. Figures are drawn from all there
is in `--out`.

Held against: Ye et al. 2025 (ID triples not necessary but faster; second-hop restricted chains stay
at the floor; of the patterns with `O` facts only those with it in the first hop rise) and Wang et
al. 2024 (comparison generalises out of distribution, composition does not).

Smoke test:
    python experiments/worlds.py --scale=smoke --seeds=1 --only=composition --jobs=0 \
        --runs=runs/smoke/worlds --out=runs/smoke/worlds_out
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from apart import Command, run_apart
from grokking import summary
from smoke import of_scale, words

from implicit_reasoning.config import (
    Flag,
    apply_overrides,
    changed_keys,
    from_json,
    load_config,
    parse_flags,
    to_json,
)
from implicit_reasoning.errors import InputError
from implicit_reasoning.figures import dark, label_ends, new_drawing, split_style, step_axis
from implicit_reasoning.files import read_json, write_json
from implicit_reasoning.runs import Run

FLAGS = {
    "scale": "pocket",
    "seeds": 3,
    "only": Flag(many=True, default=()),
    "jobs": 2,
    "runs": Flag(kind=Path, default=Path("runs/worlds")),
    "out": Flag(kind=Path, default=Path("results/worlds/pocket")),
}
RATIOS = (50, 70)  # percent of O facts, beside the 20 of configs/ood_ratio.py
COLUMNS = 4


def main(argv: list[str]) -> None:
    """Train what is missing, then draw."""
    flags, overrides = parse_flags(argv, FLAGS)
    if overrides:
        raise InputError("this study takes no overrides: its arms are the files of configs/")
    scale, smaller = of_scale(flags["scale"])
    arms, out = all_arms(scale), flags["out"]
    runs = flags["runs"] / flags["scale"]
    chosen = flags["only"] or tuple(arms)
    if unknown := set(chosen) - set(arms):
        raise InputError(f"there is no arm {sorted(unknown)}; there are {', '.join(arms)}")
    # Seed by seed, so that what is there when it is stopped is a study of fewer seeds.
    wanted = [(arm, seed) for seed in range(flags["seeds"]) for arm in chosen]
    missing = [(arm, seed) for arm, seed in wanted if not raw(out, arm, seed).exists()]
    check_current(out, arms, smaller)

    def job(arm: str, seed: int, command: Command) -> None:
        workdir = runs / f"{arm}_{seed}"
        command([*training(arms[arm], seed, workdir), *words(smaller)])
        write_json(raw(out, arm, seed), measured(Run(workdir)), indent=None)

    jobs = {f"{arm}_{seed}": partial(job, arm, seed) for arm, seed in missing}
    run_apart(jobs, flags["jobs"], runs / "compiled")
    draw_all(out, list(arms))


def all_arms(scale: str) -> dict[str, str]:
    """Name to configuration, every file of `configs/`."""
    stems = sorted(path.stem for path in Path("configs").glob("*.py"))
    arms = {stem: f"configs/{stem}.py:{scale}" for stem in stems}
    return arms | {f"ood_ratio_{p}": f"configs/ood_ratio.py:{scale}_{p}" for p in RATIOS}


def check_current(out: Path, arms: dict[str, str], smaller: dict[str, Any]) -> None:
    """Refuse to mix runs of configurations that were changed with what is measured now."""
    for arm, seed, path in kept(out, arms):
        seeds = {"seed": seed, "task.world_seed": seed}
        config = apply_overrides(load_config(arms[arm]), {**smaller, **seeds})
        if changes := changed_keys(from_json(read_json(path)["config"]), config):
            raise InputError(
                f"{path} was measured with another configuration ({changes[0].key} was "
                f"{changes[0].old!r}); remove it, or choose another --out"
            )


def kept(out: Path, arms: Iterable[str]) -> list[tuple[str, int, Path]]:
    """Arm, seed and file of everything measured so far, by arm and seed."""
    found = []
    for path in (out / "raw").glob("*.json"):
        arm, _, seed = path.stem.rpartition("_")
        if arm in arms and seed.isdecimal():
            found.append((arm, int(seed), path))
    return sorted(found)


def raw(out: Path, arm: str, seed: int) -> Path:
    """Where the numbers of one run are."""
    return out / "raw" / f"{arm}_{seed}.json"


def training(config: str, seed: int, workdir: Path) -> list[str]:
    """The command that trains one run."""
    return [
        "train",
        f"--config={config}",
        f"--workdir={workdir}",
        f"--config.seed={seed}",
        f"--config.task.world_seed={seed}",
        "--config.writers.progress=false",
        "--config.writers.tensorboard=false",
    ]


def measured(run: Run) -> dict[str, Any]:
    """The numbers of a run: as in `grokking.py`, the curves, and first correct answers."""
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
    """Share of a split's probes that were answered correctly at an evaluation up to each step."""
    kept = run.first_correct
    member = run.dataset.split[kept["row"]] == run.dataset.splits.index(split)
    first = kept["step"][member]
    return [round(float(((first >= 0) & (first <= step)).mean()), 4) for step in steps]


def draw_all(out: Path, arms: list[str]) -> None:
    """Curves of every arm that has runs, in two figures, and a table of ends."""
    seeds: dict[str, list[dict[str, Any]]] = {}
    for arm, _, path in kept(out, arms):
        seeds.setdefault(arm, []).append(read_json(path))
    for quantity, label in (
        ("accuracy", "accuracy on probe rows"),
        ("first_correct", "share answered correctly at least once"),
    ):
        draw(seeds, quantity, label).savefig(out / f"{quantity}.png", dpi=130)
    (out / "table.md").write_text(table(seeds), encoding="utf-8")


def draw(seeds: dict[str, list[dict[str, Any]]], quantity: str, label: str) -> Any:
    """A panel an arm: a line a split and seed; the best shortcut on the held-out split."""
    ncols = min(COLUMNS, len(seeds))
    nrows = -(-len(seeds) // ncols)
    size = (4.3 * ncols, 3.3 * nrows + 0.4)
    drawing, axes = new_drawing(*size, nrows=nrows, ncols=ncols, sharey=True)
    for ax in axes[len(seeds) :]:
        ax.axis("off")
    for ax in axes[::ncols]:
        ax.set_ylabel(label)
    for ax, (arm, runs) in zip(axes, seeds.items(), strict=False):
        step_axis(ax, runs[0]["steps"][-1])
        ends = []
        for split in runs[0][quantity]:
            style = split_style(split)
            for run in runs:
                ax.plot(run["steps"], run[quantity][split], linewidth=1.1, alpha=0.9, **style)
            last = float(np.mean([run[quantity][split][-1] for run in runs]))
            ends.append((last, split, style["color"]))
        draw_shortcut(ax, runs)
        ax.set_title(f"{arm}, {len(runs)} seed{'s' * (len(runs) > 1)}", fontsize=10)
        ax.set_ylim(-0.015, 1.03)
        label_ends(ax, ends)
    return drawing


def draw_shortcut(ax: Any, runs: list[dict[str, Any]]) -> None:
    """A line where the best shortcut on the held-out split ends, on average."""
    found = [best_shortcut(run, held_out(run)) for run in runs]
    if None in found:
        return
    best = float(np.mean([value for value in found if value is not None]))
    color = split_style(held_out(runs[0]) or "")["color"]
    ax.axhline(best, color=color, linewidth=0.9, linestyle="-.", alpha=0.8)
    ax.text(1, best - 0.055, f"best shortcut: {best:.2f}", color=dark(color), size=7)


def held_out(run: dict[str, Any]) -> str | None:
    """The split that has what was trained on, held out."""
    trained = next(name for name in run["accuracy"] if name.startswith("train_"))
    name = f"test_{trained.removeprefix('train_')}"
    return name if name in run["accuracy"] else None


def best_shortcut(run: dict[str, Any], split: str | None) -> float | None:
    """The best of the rules that compose nothing."""
    values = [rule[split] for rule in run["shortcuts"].values() if split in rule]
    return max(values, default=None)


def table(seeds: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: final accuracy of every split (range over seeds), its n, the best shortcut."""
    lines = ["| arm | split | final accuracy, seeds | n | best shortcut | .5 / .95 at step |"]
    lines += ["|---|---|---|---|---|---|"]
    for arm, runs in seeds.items():
        for split in runs[0]["accuracy"]:
            last = [run["final_accuracy"][split] for run in runs]
            ends = [
                "{} [{}, {}]".format(*(share(one[key]) for key in ("mean", "low", "high")))
                for one in last
            ]
            n = ", ".join(str(one["n_examples"]) for one in last)
            best = [best_shortcut(run, split) for run in runs]
            shown = ", ".join("-" if one is None else f"{one:.3f}" for one in best)
            half, most = (reached(runs, split, level) for level in (0.5, 0.95))
            lines.append(
                f"| {arm} | {split} | {', '.join(ends)} | {n} | {shown} | {half} / {most} |"
            )
    return "\n".join(lines) + "\n"


def share(value: float) -> str:
    """Three decimals; never -0.000."""
    return f"{abs(round(value, 3)):.3f}"


def reached(runs: list[dict[str, Any]], split: str, level: float) -> str:
    """First evaluation at or above a level, a seed each."""
    found = []
    for run in runs:
        above = np.flatnonzero(np.asarray(run["accuracy"][split]) >= level)
        found.append(f"{run['steps'][above[0]]:,}" if len(above) else "never")
    return ", ".join(found)


if __name__ == "__main__":
    main(sys.argv[1:])
