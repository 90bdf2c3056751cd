r"""Comparison of the losses of the same trials with different sweep launchers.

    python experiments/launchers.py
    python experiments/launchers.py --parts=complete

1. `first`: the eight `pocket` trials of the sweep `seeds`, for 100 steps with each launcher. The
   result is the relative difference of every loss from the loss of a single run. The launcher
   `local` trains single runs.
2. `complete`: the same trials to the end, with `vmap` and `local`. At the end, corresponding runs
   differ because of rounding errors, so the mean accuracies on test_ii are compared.

On a machine without Slurm, `--cluster=local` makes submitit start the jobs of `slurm` itself.

Smoke test:
    python experiments/launchers.py --config=experiments/smoke.py --parts=complete \
        --complete_on=vmap --runs=runs/smoke/launchers --out=runs/smoke/launchers_out
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from implicit_reasoning.config import Flag, parse_flags
from implicit_reasoning.files import write_json
from implicit_reasoning.runtime.machine import one_device_per_core, provenance
from implicit_reasoning.sweeps import Runs, define, run_sweep
from implicit_reasoning.sweeps.directory import SweepLayout, read_journal

FLAGS = {
    "config": "configs/composition.py:pocket",
    "sweep": "seeds",
    "parts": Flag(many=True, default=("first", "complete")),
    "first_on": Flag(many=True, default=("local", "vmap", "ray", "slurm")),
    "complete_on": Flag(many=True, default=("local", "vmap")),
    "first": 100,
    "workers": 2,
    "cluster": "",
    "runs": Flag(kind=Path, default=Path("runs/launchers")),
    "out": Flag(kind=Path, default=Path("results/launchers")),
}
ALONE = "local"  # trains each trial in its own process, as the command `train` does
FINAL = "accuracy/test_ii"


def main(argv: list[str]) -> None:
    """Train missing trials, compare them, and write the results."""
    flags, overrides = parse_flags(argv, FLAGS)
    one_device_per_core()
    out = flags["out"]
    found = json.loads((out / "found.json").read_text()) if (out / "found.json").exists() else {}
    parts = {"first": first, "complete": complete}
    for name in flags["parts"]:
        found[name] = parts[name](flags, overrides) | {"provenance": provenance()}
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "found.json", found)
        print(json.dumps(found[name], indent=1))


def first(flags: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Compare the first losses of every trial."""
    stop = flags["first"]
    every_loss = {"log_every": 1, **overrides}
    runs = {
        launcher: train(flags, every_loss, launcher, f"{stop}", stop)
        for launcher in flags["first_on"]
    }
    losses = {name: of.metric("loss").sel(step=slice(1, stop)) for name, of in runs.items()}
    alone = losses[ALONE]
    return {
        name: {
            **about(runs[name]),
            "losses": int(of.size),
            "largest_relative_difference": float(np.abs(of / alone - 1).max()),
            "identical": float((of == alone).mean()),
        }
        for name, of in losses.items()
    }


def complete(flags: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Compare the final accuracies."""
    found: dict[str, Any] = {}
    for launcher in flags["complete_on"]:
        runs = train(flags, overrides, launcher, "complete", None)
        final = runs.metric(FINAL).isel(step=-1)
        found[launcher] = {
            **about(runs),
            "steps": int(final.step),
            FINAL: dict(zip(runs.names, map(float, final.values), strict=True)),
            "mean": float(final.mean()),
        }
    means = [found[launcher]["mean"] for launcher in found]
    return {**found, "means_differ_by": max(means) - min(means)}


def train(
    flags: dict[str, Any],
    overrides: dict[str, Any],
    launcher: str,
    name: str,
    stop: int | None,
) -> Runs:
    """Train one sweep with one launcher. Finished trials are not trained again."""
    workdir = flags["runs"] / name / launcher
    sweep = define(flags["config"], flags["sweep"], overrides)
    options = {"workers": flags["workers"]} if launcher != "vmap" else {}
    if launcher == "slurm" and flags["cluster"]:
        options["cluster"] = flags["cluster"]
    began = time.perf_counter()
    run_sweep(sweep, workdir, launcher=launcher, stop_at=stop, options=options)
    print(f"{launcher}, {name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return Runs(workdir)


def about(runs: Runs) -> dict[str, Any]:
    """Summarize the journal: states, number of attempts, and seconds per trial."""
    statuses = read_journal(SweepLayout(runs.files.workdir))
    times = [status.seconds for status in statuses.values()]
    return {
        "trials": len(statuses),
        "states": sorted({status.state for status in statuses.values()}),
        "attempts": sum(status.attempts for status in statuses.values()),
        "seconds_a_trial": {"low": min(times), "high": max(times)},
    }


if __name__ == "__main__":
    main(sys.argv[1:])
