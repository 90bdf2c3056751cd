r"""How many training chains does composition need as the vocabulary grows, and what does size buy?

    python experiments/scaling.py --out=results/reasoning_or_shortcut/scaling

Data. Entities, relations and out-degree of the task `ladder` grow together. For each number of
entities, the sweep has several values of phi, of one world and one initialization, with a model of
width `--width`. The script finds the smallest number of training chains with which the accuracy on
test_ii reaches .5 within the steps, and the same for test_c0. If no value of phi is enough, the
largest number of training chains is a lower bound. The logarithm of the number of chains is
fitted by the logarithm of the number of tokens, by least squares; the interval of the exponent is
that of the regression. Published: at least quadratic in the number of tokens (arXiv 2505.20278).

Compute. Models of three widths and three depths are trained in one world. The figure shows the loss
on test_ii against the floating-point operations of training.

Trials are trained in rounds. A trial whose accuracy on test_c0 is .5 or more is not trained
further. The same command continues an interrupted sweep.

Decision rule, written before the first run: the exponent is consistent with the published bound if
the upper end of its 95% interval is at least 2. With bounds instead of values at some sizes, the
exponent is fitted to the bounds too and is then itself a lower bound if the bounds are at the
largest sizes, and no statement is made otherwise. The largest sizes are those above the mean of the
logarithms, because a larger value raises the exponent there only. If the smallest value of phi is
already enough, the number of chains is an upper bound, which must be at a size below the mean.

Smoke test:
    python experiments/scaling.py --entities=24,30 --phi_fractions=0.3,0.6 --steps=20 \
        --width=16 --widths=16 --depths=1,2 --runs=runs/smoke/scaling --out=runs/smoke/scaling_out
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from ml_collections import ConfigDict
from scipy.stats import linregress
from scipy.stats import t as student

from implicit_reasoning.config import Flag, apply_overrides, load_config, parse_flags
from implicit_reasoning.errors import InputError
from implicit_reasoning.figures import GREY, SERIES_COLORS, log_axis, new_drawing, split_style
from implicit_reasoning.files import read_json, write_json
from implicit_reasoning.runtime.machine import one_device_per_core, provenance
from implicit_reasoning.sweeps import Runs, Sweep, make_sweep, run_sweep
from implicit_reasoning.training.cost import row_shape, step_cost

FLAGS = {
    "config": "configs/ladder.py:pocket",
    "entities": Flag(kind=int, many=True, default=(50, 75, 100, 150)),
    "phi_fractions": Flag(kind=float, many=True, default=(0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)),
    "width": 128,
    "widths": Flag(kind=int, many=True, default=(64, 128, 256)),
    "depths": Flag(kind=int, many=True, default=(2, 3, 4)),
    "steps": 8_000,
    "runs": Flag(kind=Path, default=Path("runs/scaling")),
    "out": Flag(kind=Path, default=Path("results/reasoning_or_shortcut/scaling")),
}
RAW = "scaling.json"
SPLITS = ("test_ii", "test_c0")
HALF, PUBLISHED = 0.5, 2.0


def main(argv: list[str]) -> None:
    """Train missing trials, then write the raw numbers, the table and the figure."""
    flags, overrides = parse_flags(argv, FLAGS)
    if overrides:
        raise InputError("this study takes no overrides; its flags change the worlds and models")
    base = load_config(flags["config"])
    one_device_per_core()
    found = {
        "data": data(base, flags),
        "compute": compute(base, flags),
        "made_with": provenance(),
        "steps": flags["steps"],
    }
    write_json(flags["out"] / RAW, found)
    write(flags["out"])


def common(base: ConfigDict, steps: int) -> ConfigDict:
    """Return the configuration that all trials share."""
    changes = {
        "steps": steps,
        "task.probes": 1_000,
        "evaluation.every": max(steps // 32, 1),
        "checkpoints.every": steps,
        "checkpoints.per_doubling": 0,
        "resume_every": max(steps // 8, 1),
    }
    return apply_overrides(base, changes)


def worlds_of(entities: int, fractions: Sequence[float]) -> Iterator[dict[str, Any]]:
    """Yield the settings of a world of a size, for each fraction of the chains that can be trained.

    A tenth of the entities is the out-degree, and a fifth is the number of relations, as in
    `ladder.py:pocket`.
    """
    degree = max(entities // 10, 3)
    most = 0.8 * 0.95 * degree  # holdout .2; facts with role `O` are .05 of all facts
    for fraction in fractions:
        yield {
            "task.n_entities": entities,
            "task.n_relations": max(2 * degree, 5),
            "task.out_degree": degree,
            "task.facts_per_rung": max(entities // 5, 2),
            "task.phi": round(fraction * most, 3),
        }


def data(base: ConfigDict, flags: dict[str, Any]) -> list[dict[str, Any]]:
    """Train the sweep over sizes of the world, and return a row for each trial."""
    narrow = {"model.d_model": flags["width"], "model.d_mlp": 4 * flags["width"]}
    config = apply_overrides(common(base, flags["steps"]), narrow)
    trials = [
        world for size in flags["entities"] for world in worlds_of(size, flags["phi_fractions"])
    ]
    rows = []
    for run in train_in_rounds(make_sweep(config, trials), flags["runs"] / "data"):
        dataset = run.dataset
        rows.append(
            {
                "n_entities": int(run.config.task.n_entities),
                "n_tokens": dataset.n_vocab,
                "phi": float(run.config.task.phi),
                "n_chains": len(dataset.rows("train_ii")),
                "n_probes": {split: len(dataset.probes(split)) for split in SPLITS},
                "best": {split: best(run.metrics, split) for split in SPLITS},
                "steps": run.metrics[-1]["step"],
            }
        )
    return rows


def train_in_rounds(sweep: Sweep, workdir: Path) -> Runs:
    """Train all trials, except for the remaining rounds of trials that answer half of test_c0.

    A trial whose world cannot be made, because it has too few chains, is left out. The sweep says
    which.
    """
    steps, late = int(sweep.base.steps), list(sweep.trials)
    for stop in (steps // 4, steps // 2, steps):
        run_sweep(sweep, workdir, stop_at=stop, only=late)
        runs = Runs(workdir)
        late = [name for name in late if name in runs.names]
        late = [name for name in late if best(runs[name].metrics, "test_c0") < HALF]
        print(f"step {stop:,}: {len(late)} of {len(sweep.trials)} trials go on", flush=True)
        if not late:
            break
    return Runs(workdir)


def best(rows: Sequence[Mapping[str, Any]], split: str) -> float:
    """Return the highest accuracy on a split at any evaluation."""
    return max(row[f"accuracy/{split}"] for row in rows if f"accuracy/{split}" in row)


def compute(base: ConfigDict, flags: dict[str, Any]) -> list[dict[str, Any]]:
    """Train models of several sizes in one world, and return their curves."""
    config = common(base, flags["steps"])
    trials = [
        {
            "model.d_model": width,
            "model.d_mlp": 4 * width,
            "model.n_heads": max(width // 64, 1),
            "model.n_layers": depth,
        }
        for width in flags["widths"]
        for depth in flags["depths"]
    ]
    workdir, curves = flags["runs"] / "compute", []
    run_sweep(make_sweep(config, trials), workdir)
    for run in Runs(workdir):
        rows = [row for row in run.metrics if "loss/test_ii" in row]
        shape = row_shape(run.dataset)
        cost = step_cost(run.model.spec, batch_size=int(run.config.batch_size), **shape)
        curves.append(
            {
                "width": int(run.config.model.d_model),
                "depth": int(run.config.model.n_layers),
                "parameters": cost.parameters,
                "flops_per_step": cost.step,
                "step": [row["step"] for row in rows],
                **{
                    f"{name}/{split}": [row[f"{name}/{split}"] for row in rows]
                    for name in ("loss", "accuracy")
                    for split in SPLITS
                },
            }
        )
    return curves


class Needed(NamedTuple):
    """The number of training chains that a size needs.

    Attributes:
      n_tokens: number of tokens in the vocabulary.
      n_chains: number of training chains, interpolated between two values of phi on a logarithmic
        axis; the largest number of chains if no value of phi is enough, and the smallest if all
        are.
      bound: 1 if `n_chains` is a lower bound, -1 if it is an upper bound, otherwise 0.
    """

    n_tokens: int
    n_chains: float
    bound: int


class Exponent(NamedTuple):
    """The exponent of the number of chains in the number of tokens.

    Attributes:
      slope: the exponent, by least squares of logarithms.
      low: lower end of its 95% interval by Student's t.
      high: upper end of the interval.
      sizes: number of sizes.
      at_least: whether some sizes have bounds, so that the exponent is a lower bound.
    """

    slope: float
    low: float
    high: float
    sizes: int
    at_least: bool


def needed(rows: Sequence[Mapping[str, Any]], split: str) -> list[Needed]:
    """Return, for every size, the number of training chains for an accuracy of .5 on a split."""
    found = []
    for tokens in sorted({row["n_tokens"] for row in rows}):
        here = sorted((r for r in rows if r["n_tokens"] == tokens), key=lambda r: r["n_chains"])
        chains = np.log([row["n_chains"] for row in here])
        accuracy = np.array([row["best"][split] for row in here])
        place = int((accuracy >= HALF).argmax())
        if not (accuracy >= HALF).any():
            at, bound = chains[-1], 1
        elif place == 0:
            at, bound = chains[0], -1
        else:
            part = (HALF - accuracy[place - 1]) / (accuracy[place] - accuracy[place - 1])
            at, bound = chains[place - 1] + part * (chains[place] - chains[place - 1]), 0
        found.append(Needed(tokens, float(np.exp(at)), bound))
    return found


def exponent(found: Sequence[Needed]) -> Exponent | None:
    """Return the exponent of the number of chains in the number of tokens, with its 95% interval.

    The result is None for fewer than three sizes, if all sizes have bounds, and if a bound is at a
    size at which the decision rule makes no statement.
    """
    if len(found) < 3 or all(one.bound for one in found):
        return None
    x, y = (np.log([getattr(one, name) for one in found]) for name in ("n_tokens", "n_chains"))
    if any(one.bound * (at - x.mean()) < 0 for one, at in zip(found, x, strict=True)):
        return None
    fit = linregress(x, y)
    half = float(student.ppf(0.975, len(found) - 2) * fit.stderr)
    slope, bounded = float(fit.slope), any(one.bound for one in found)
    return Exponent(slope, slope - half, slope + half, len(found), bounded)


def write(out: Path) -> None:
    """Write `table.md` and `scaling.png` from the raw numbers."""
    raw = read_json(out / RAW)
    (out / "table.md").write_text(table(raw), encoding="utf-8")
    drawing, axes = new_drawing(11.0, 4.3, ncols=2)
    draw_data(axes[0], raw["data"])
    draw_compute(axes[1], raw["compute"])
    drawing.savefig(out / "scaling.png", dpi=130)


def table(raw: Mapping[str, Any]) -> str:
    """Return Markdown: training chains needed by size, the exponents, and the decision rule."""
    lines = [
        "Training chains that the accuracy .5 needs within "
        f"{raw['steps']:,} steps, of one world and one initialization for each size and phi. `>` "
        "marks a lower bound (no phi is enough), and `<` an upper bound (the smallest phi is "
        "enough). Square brackets have 95% intervals of the regression.",
        "",
        "| tokens | " + " | ".join(f"chains for {split} .5" for split in SPLITS) + " |",
        "|---" * (1 + len(SPLITS)) + "|",
    ]
    by_split = [needed(raw["data"], split) for split in SPLITS]
    for sizes in zip(*by_split, strict=True):
        cells = [f"{('', '> ', '< ')[one.bound]}{one.n_chains:,.0f}" for one in sizes]
        lines.append(f"| {sizes[0].n_tokens} | {' | '.join(cells)} |")
    fits = [exponent(found) for found in by_split]
    lines.append(f"| exponent | {' | '.join(map(_fitted, fits))} |")
    agree = ["-" if fit is None else _consistent(fit) for fit in fits]
    lines.append(f"| consistent with at least {PUBLISHED:.0f} | {' | '.join(agree)} |")
    return "\n".join(lines) + "\n"


def _fitted(fit: Exponent | None) -> str:
    if fit is None:
        return "no statement"
    start = "at least " if fit.at_least else ""
    return f"{start}{fit.slope:.2f} [{fit.low:.2f}, {fit.high:.2f}], {fit.sizes} sizes"


def _consistent(fit: Exponent) -> str:
    return "yes" if fit.high >= PUBLISHED else "not excluded" if fit.at_least else "no"


def draw_data(ax: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw the number of training chains needed against the number of tokens."""
    labels = {0: "", 1: ": more than this", -1: ": at most this"}
    for split in SPLITS:
        found, color = needed(rows, split), split_style(split)["color"]
        for bound, marker in ((0, "o"), (1, "^"), (-1, "v")):
            part = [one for one in found if one.bound == bound]
            x, y = ([getattr(one, name) for one in part] for name in ("n_tokens", "n_chains"))
            label = f"{split}{labels[bound]}" if part else None
            ax.plot(x, y, marker, color=color, label=label)
        if (fit := exponent(found)) is not None:
            tokens = np.array([one.n_tokens for one in found], float)
            middle = np.mean(np.log([one.n_chains for one in found]))
            line = np.exp(middle + fit.slope * (np.log(tokens) - np.log(tokens).mean()))
            ax.plot(tokens, line, color=color, linewidth=1)
    first = needed(rows, SPLITS[0])
    tokens = np.array([one.n_tokens for one in first], float)
    published = first[0].n_chains * (tokens / tokens[0]) ** PUBLISHED
    ax.plot(tokens, published, ":", color=GREY, label="exponent 2 (published: at least 2)")
    ax.set(xscale="log", xlabel="tokens in the vocabulary")
    ax.set_xticks(tokens, [f"{count:,.0f}" for count in tokens], minor=False)
    ax.xaxis.minorticks_off()
    log_axis(ax)
    ax.set_ylabel("training chains needed for accuracy .5")
    ax.legend(fontsize=8)


def draw_compute(ax: Axes, curves: Sequence[Mapping[str, Any]]) -> None:
    """Draw the loss on held-out chains against the operations of training."""
    widths = sorted({curve["width"] for curve in curves})
    styles = dict(zip(sorted({curve["depth"] for curve in curves}), ("-", "--", ":"), strict=False))
    for curve in curves:
        flops = np.array(curve["step"][1:]) * curve["flops_per_step"]
        color = SERIES_COLORS[widths.index(curve["width"]) % len(SERIES_COLORS)]
        label = f"width {curve['width']}, {curve['depth']} blocks"
        ax.plot(flops, curve["loss/test_ii"][1:], styles[curve["depth"]], color=color, label=label)
    ax.set(xscale="log", xlabel="floating-point operations of training")
    log_axis(ax)
    ax.set_ylabel("loss on test_ii (nats)")
    ax.legend(fontsize=7)


if __name__ == "__main__":
    main(sys.argv[1:])
