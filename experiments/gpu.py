r"""What is measured on the day on which a GPU is lent: two trainings within some minutes.

    python experiments/gpu.py --minutes=9 --out=results/gpu

1. `ladder`: the ladder at `bench` (4 layers of width 192), four worlds as one population. One step
   is described, timed and profiled. Then the population is trained until `--ladder_minutes` are
   over. The last checkpoints are measured with `--instruments`.
2. `paper_wang`: the published size (8 layers of width 768, batch size 512, bfloat16). One step is
   described, timed and profiled. Then the model is trained with the time that is left. Targets: 300
   steps/s on an H100 and 350 on an H200. Published test_ii at 100,000 steps: .77.

The description of a step has FLOPs and bytes by the cost functions of the package and by XLA, the
kernels of the compiled program by kind, and the time that they would take at the peaks of an H100
and an H200. `--train=False` stops after it, and then the script is for a CPU too. On a CPU, XLA
builds other kernels, and the trials of a population run one after another.

`--out` gets at most eight files of less than 16 MiB: `gpu.json`, `table.md`, and the curves,
results and figures of the two runs. Checkpoints stay in `--runs`. The same command continues both
trainings from there.

Not measured on a GPU yet.

Smoke test:
    python experiments/gpu.py --minutes=2 --ladder=experiments/smoke.py --trials=2 \
        --paper=experiments/smoke.py --steps=2 --runs=runs/smoke/gpu \
        --out=runs/smoke/gpu_out
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np
import xarray as xr
from jax.stages import Compiled
from matplotlib.figure import Figure as Drawing
from ml_collections import ConfigDict

from implicit_reasoning.config import Flag, apply_overrides, load_config, parse_flags
from implicit_reasoning.figures import new_drawing, split_style, step_axis
from implicit_reasoning.files import write_json
from implicit_reasoning.runs import Layout, Run, save_arrays
from implicit_reasoning.runtime import profiling, sharding
from implicit_reasoning.runtime.compilation import use_cache
from implicit_reasoning.runtime.machine import matmul_peak
from implicit_reasoning.sweeps import Runs, make_sweep, run_sweep
from implicit_reasoning.training import Interrupted, setup, train
from implicit_reasoning.training.cost import StepCost, row_shape, step_cost
from implicit_reasoning.training.population import make_population
from implicit_reasoning.training.settings import Trial
from implicit_reasoning.training.setup import Program
from implicit_reasoning.worlds import build

sys.path.append(str(Path(__file__).with_name("benchmarks")))  # this script runs from its own folder
from kernels import Kernel, by_kind, kernels_of_step, traced
from machines import made_on

FLAGS = {
    "minutes": 9.0,
    "ladder_minutes": 4.0,
    "parts": Flag(many=True, default=("ladder", "paper_wang")),
    "train": True,
    "ladder": "configs/ladder.py:bench",
    "trials": 4,
    "paper": "configs/composition.py:paper_wang",
    "steps": 200,
    "instruments": Flag(many=True, default=("behaviour",)),
    "runs": Flag(kind=Path, default=Path("runs/gpu")),
    "out": Flag(kind=Path, default=Path("results/gpu")),
}
PEAKS = {  # vendor's data sheets: FLOP/s of dense products (float32 is TF32), bytes/s of the memory
    "H100": {"bfloat16": 989e12, "float32": 494e12, "bandwidth": 3.35e12},
    "H200": {"bfloat16": 989e12, "float32": 494e12, "bandwidth": 4.8e12},
}
PUBLISHED = {50_000: 0.48, 100_000: 0.77, 200_000: 0.95}  # test_ii, Wang et al. 2024, figure 1
SPLITS = ("train_ii", "test_ii", "test_c2", "test_c1", "test_c0", "test_oi")
ANALYSIS_SECONDS, WRITING_SECONDS = 25.0, 15.0  # kept free at the end of a part
NO_GPU, NO_TIME = "not measured on a GPU", "there was no time to begin"


def main(argv: list[str]) -> None:
    """Run the parts one after another. An error is written down, and what follows still runs."""
    flags, _ = parse_flags(argv, FLAGS)
    end, out = time.monotonic() + 60 * flags["minutes"], flags["out"]
    use_cache()
    path = out / "gpu.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for name in flags["parts"]:
        about: dict[str, Any] = {}
        found[name] = about
        with attempt(about, "part"):
            {"ladder": ladder, "paper_wang": paper_wang}[name](flags, end, about)
        found |= made_on()
        write_json(path, found)
        (out / "table.md").write_text("\n".join(table(found)) + "\n", encoding="utf-8")
    print((out / "table.md").read_text())


@contextlib.contextmanager
def attempt(about: dict[str, Any], what: str) -> Iterator[None]:
    """Write an error within a `with` statement to `about["failed"][what]`, and go on after it."""
    try:
        yield
    except Exception:  # whatever fails, the parts that follow still use the lent machine
        traceback.print_exc()
        about.setdefault("failed", {})[what] = traceback.format_exc()


def ladder(flags: dict[str, Any], end: float, about: dict[str, Any]) -> None:
    """Describe and time a population step, then train the population and measure it.

    Args:
      flags: the flags of the script.
      end: the time at which the script ends, in seconds of `time.monotonic`.
      about: gets the results, one after another, so that an error does not lose earlier ones.
    """
    end = min(end, time.monotonic() + 60 * flags["ladder_minutes"])
    config = apply_overrides(load_config(flags["ladder"]), {"writers.tensorboard": False})
    worlds = [{"task.world_seed": world} for world in range(flags["trials"])]
    sweep = make_sweep(config, worlds)
    trials = [new_trial(sweep.config(name)) for name in sweep.trials]
    with attempt(about, "description"):
        describe(make_population(trials), trials, flags, about)
    if not flags["train"]:
        return
    folder = flags["runs"] / "ladder"
    about["ended"] = train_until(
        end - ANALYSIS_SECONDS, lambda: run_sweep(sweep, folder, launcher="vmap")
    )
    runs = Runs(folder)
    about["training"] = [progress(runs.rows(name)) for name in runs.names]
    curves = curves_of([runs.rows(name) for name in runs.names])
    save_arrays(flags["out"] / "ladder.nc", curves)
    draw(curves).savefig(flags["out"] / "ladder.png", dpi=150)
    last = max(set.intersection(*(set(run.steps) for run in runs)))
    for name in flags["instruments"]:
        with attempt(about, name):
            measured = runs.analyze(name, steps=[last], progress=False)
            save_arrays(flags["out"] / f"ladder_{name}.nc", measured)


def paper_wang(flags: dict[str, Any], end: float, about: dict[str, Any]) -> None:
    """Describe and time a step of the published size, then train with the time that is left.

    The arguments are those of `ladder`.
    """
    # Checkpoints at early steps would take a part of the time to write.
    changes = {"writers.tensorboard": False, "checkpoints.per_doubling": 0}
    config = apply_overrides(load_config(flags["paper"]), changes)
    trial = new_trial(config)
    with attempt(about, "description"):
        describe(setup.make_program(trial.settings, trial.dataset), [trial], flags, about)
    if not flags["train"]:
        return
    folder = flags["runs"] / "paper_wang"
    about["ended"] = train_until(end - WRITING_SECONDS, lambda: train(config, folder))
    rows = Run(folder).metrics
    about["training"] = [progress(rows)]
    curves = curves_of([rows])
    save_arrays(flags["out"] / "paper_wang.nc", curves)
    draw(curves, PUBLISHED).savefig(flags["out"] / "paper_wang.png", dpi=150)


def new_trial(config: ConfigDict) -> Trial:
    """Return a trial of which nothing is saved."""
    return Trial(config, build(config.task), Layout(Path(".")))


def describe(
    program: Program, trials: Sequence[Trial], flags: dict[str, Any], about: dict[str, Any]
) -> None:
    """Write the cost of a step, the kernels of its program, limits and speed to `about`."""
    first, count = trials[0], len(trials)
    shape = row_shape(first.dataset)
    cost = step_cost(first.model.spec, batch_size=first.settings.batch_size, **shape)
    like = (program.like, *arguments(program, 1))
    compiled = program.advance.lower(*like).compile()
    kernels = kernels_of_step(str(compiled.as_text()))
    by_xla = compiled.cost_analysis() or {}
    dtype = first.model.spec.dtype
    about |= {
        "backend": jax.default_backend(),
        "trials": count,
        "dtype": dtype,
        "parameters": cost.parameters,
        "flop_a_step": count * cost.step,
        "state_bytes": count * cost.state_bytes,
        "traffic_bytes": count * cost.traffic_bytes,
        "traffic_bytes_with_bfloat16_moments": count * (cost.traffic_bytes - 8 * cost.parameters),
        "flop_a_step_by_xla": by_xla.get("flops"),
        "bytes_a_step_by_xla": by_xla.get("bytes accessed"),
        "kernels": by_kind(kernels),
        "limits": {chip: limits(cost, count, dtype, kernels, chip) for chip in PEAKS},
    }
    if flags["train"]:
        about["speed"] = speed(program, compiled, count * cost.step, dtype, flags["steps"])
        with attempt(about, "profile"):
            about["speed"] |= profile(program, compiled, kernels, max(flags["steps"] // 10, 1))


def limits(
    cost: StepCost, count: int, dtype: str, kernels: Sequence[Kernel], chip: str
) -> dict[str, float]:
    """Return the milliseconds of a step at the peaks of a chip, if nothing else took time.

    Returns:
      `products`: all matrix products at the peak. `update`: parameters, moments and gradients are
      each read and written once. `moved`: all operands and results of all kernels, without caches;
      on a CPU these are the kernels of one trial. `steps_per_second`: with products and update
      alone.
    """
    peak = PEAKS[chip]
    products = count * cost.step / peak[dtype]
    update = count * cost.traffic_bytes / peak["bandwidth"]
    moved = sum(kernel.bytes for kernel in kernels) / peak["bandwidth"]
    return {
        **{"products": 1e3 * products, "update": 1e3 * update, "moved": 1e3 * moved},
        "steps_per_second": 1 / (products + update),
    }


def arguments(program: Program, count: int) -> tuple[Any, ...]:
    """Return the arguments of `Program.advance` after the state."""
    steps = sharding.put_scalar(count, program.whole)
    return program.rows, program.hyper, program.stream_key, steps


def speed(
    program: Program, compiled: Compiled, flop: float, dtype: str, steps: int
) -> dict[str, Any]:
    """Time some steps and two evaluations of a new model; the state is discarded."""
    state = program.init(program.init_key)

    def seconds(count: int) -> float:
        nonlocal state
        began = time.perf_counter()
        state = jax.block_until_ready(compiled(state, *arguments(program, count)))
        return time.perf_counter() - began

    seconds(1)
    best = min(seconds(steps) for _ in range(3)) / steps
    jax.block_until_ready(program.evaluate(state.params))
    before, began = profiling.compiles(), time.perf_counter()
    jax.block_until_ready(program.evaluate(state.params))
    evaluation = time.perf_counter() - began
    peak = matmul_peak(dtype)
    return {
        "milliseconds_a_step": 1e3 * best,
        "steps_per_second": 1 / best,
        "peak_flop_per_second": peak,
        "share_of_peak": flop / best / peak,
        "evaluation_seconds": evaluation,
        "programs_of_a_second_evaluation": profiling.compiles().count - before.count,
    }


def profile(
    program: Program, compiled: Compiled, kernels: Sequence[Kernel], steps: int
) -> dict[str, Any]:
    """Trace some steps; return the milliseconds of their kernels per step, by kind and in all."""
    state = compiled(program.init(program.init_key), *arguments(program, 1))
    jax.block_until_ready(state)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(compiled(state, *arguments(program, steps)))
        busy = traced(Path(folder), kernels, steps)
    return {"milliseconds_by_kind": busy, "milliseconds_of_kernels": sum(busy.values())}


class OutOfTime(Exception):
    """The time of a part was over before its training began."""


def train_until(end: float, training: Callable[[], Any]) -> str:
    """Train, and stop when a time is over; the state is saved.

    Args:
      end: the time to stop, in seconds of `time.monotonic`.
      training: function that trains and stops upon SIGTERM.

    Returns:
      How the training ended, in words.
    """

    def late(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    left = end - time.monotonic()
    if left <= 0:
        return NO_TIME
    before = signal.signal(signal.SIGTERM, late)
    timer = threading.Timer(left, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    try:
        training()
    except (Interrupted, OutOfTime) as stopped:
        if time.monotonic() < end:  # the signal came from outside
            raise
        return str(stopped) or NO_TIME
    else:
        return "all steps are done"
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, before)


def progress(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the last step, the speed, and the programs compiled after the first evaluation."""
    first = next(row for row in rows if "accuracy/test_ii" in row and row["step"])
    evaluated = next(row for row in reversed(rows) if "accuracy/test_ii" in row)
    last = rows[-1]
    return {
        "step": last["step"],
        "steps_per_second": float(np.median([row["steps_per_second"] for row in rows[1:]])),
        "compiled_after_first_evaluation": last["compiles"] - first["compiles"],
        "accuracy": {
            name.removeprefix("accuracy/"): value
            for name, value in evaluated.items()
            if name.startswith("accuracy/")
        },
    }


def curves_of(metrics: Sequence[Sequence[Mapping[str, Any]]]) -> xr.Dataset:
    """Return all accuracies, losses and gradient norms of some runs, float32 [trial, step]."""
    kept = ("accuracy", "loss", "grad_norm", "early_loss")
    steps = sorted({row["step"] for rows in metrics for row in rows})
    names = sorted({name for rows in metrics for row in rows for name in row})
    place = {step: number for number, step in enumerate(steps)}
    found = {}
    for name in names:
        if name.startswith(kept):
            values = np.full((len(metrics), len(steps)), np.nan, np.float32)
            for trial, rows in enumerate(metrics):
                for row in rows:
                    values[trial, place[row["step"]]] = row.get(name, np.nan)
            found[name.replace("/", ".")] = (("trial", "step"), values)
    return xr.Dataset(found, coords={"step": steps})


def draw(curves: xr.Dataset, published: Mapping[int, float] | None = None) -> Drawing:
    """Plot the accuracies: a line for each trial, and the published accuracies as squares."""
    drawing, (ax,) = new_drawing(7.5, 4.2)
    for split in SPLITS:
        if (name := f"accuracy.{split}") not in curves:
            continue
        here = curves[name].dropna("step", how="all")
        for number, trial in enumerate(here.values):
            label = split if number == 0 else None
            ax.plot(here.step, trial, **split_style(split), alpha=0.8, linewidth=1.2, label=label)
    if published:
        style = {"color": split_style("test_ii")["color"], "markerfacecolor": "none"}
        ax.plot(*zip(*published.items(), strict=True), "s", **style, label="published test_ii")
    step_axis(ax, max([int(curves.step[-1]), *(published or {})]))
    ax.set_ylim(0, 1)
    ax.set_ylabel("accuracy")
    ax.legend(frameon=False, fontsize=8)
    return drawing


def table(found: Mapping[str, Any]) -> list[str]:
    """Return a Markdown table of all parts; speeds on a CPU are left out."""
    parts = {name: found[name] for name in ("ladder", "paper_wang") if name in found}
    whole = {name: part for name, part in parts.items() if "kernels" in part}
    lines = [f"| | {' | '.join(whole)} |", "|---" * (1 + len(whole)) + "|"]
    columns = [rows_of(part) for part in whole.values()]
    for name in columns[0] if columns else ():
        lines.append(f"| {name} | {' | '.join(column[name] for column in columns)} |")
    failed = [f"{name}: {what}" for name in parts for what in parts[name].get("failed", ())]
    return [*lines, *(f"\n{name} failed; see gpu.json" for name in failed)]


def rows_of(part: Mapping[str, Any]) -> dict[str, str]:
    """Return the rows of a part in the table, by their names."""
    kernels, by_xla = part["kernels"], part["flop_a_step_by_xla"]
    rows = {
        "trials": f"{part['trials']}",
        "parameters of a trial": f"{part['parameters']:,}",
        "products of a step": f"{part['flop_a_step'] / 1e9:,.1f} GFLOP, {part['dtype']}",
        "products of a step by XLA": "-" if by_xla is None else f"{by_xla / 1e9:,.1f} GFLOP",
        "state": f"{part['state_bytes'] / 1e6:,.0f} MB",
        "least traffic of the update": f"{part['traffic_bytes'] / 1e6:,.0f} MB",
        "the same with bfloat16 moments": (
            f"{part['traffic_bytes_with_bfloat16_moments'] / 1e6:,.0f} MB"
        ),
        f"kernels of a step ({part['backend']})": f"{_total(kernels, 'kernels'):,}",
        "their operands and results": f"{_total(kernels, 'bytes') / 1e6:,.0f} MB",
    }
    for kind in ("products", "sums", "elementwise", "gradient norm", "update", "copies"):
        entry = kernels.get(kind, {"kernels": 0, "bytes": 0})
        rows[f"- {kind}"] = f"{entry['kernels']}, {entry['bytes'] / 1e6:,.0f} MB"
    for chip, limit in part["limits"].items():
        rows[f"{chip}: products at the peak"] = f"{limit['products']:.3f} ms"
        rows[f"{chip}: update at the peak"] = f"{limit['update']:.3f} ms"
        rows[f"{chip}: at most"] = f"{limit['steps_per_second']:,.0f} steps/s"
    measured = part.get("speed") if part["backend"] != "cpu" else None
    for name, (key, form) in {
        "steps/s": ("steps_per_second", "{:,.0f}"),
        "milliseconds a step": ("milliseconds_a_step", "{:.3f}"),
        "milliseconds of its kernels": ("milliseconds_of_kernels", "{:.3f}"),
        "share of the peak": ("share_of_peak", "{:.1%}"),
    }.items():
        rows[name] = form.format(measured.get(key, math.nan)) if measured else NO_GPU
    return rows


def _total(kernels: Mapping[str, Mapping[str, int]], key: str) -> int:
    return sum(entry[key] for entry in kernels.values())


if __name__ == "__main__":
    main(sys.argv[1:])
