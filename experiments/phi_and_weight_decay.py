r"""When does composition generalise, against phi and weight decay? A sweep, and one figure.

    python experiments/phi_and_weight_decay.py

Three values of phi (training chains for each fact) by three of weight decay, each with eight worlds
and two initialisations, `pocket`, with a constant learning rate, as a cosine's end would help those
that are late. What is measured is the step at which half of the held-out chains are answered (the
first of three evaluations in a row). Trials go on in rounds, and who has got there trains no more;
who has not at the end of the last round counts as later than all who have.

An H100 took 8 minutes, saving less often (--config.resume_every=4000
--config.writers.tensorboard=False); at 33 ms a step and trial, two cores will take 8 hours.

Published (Wang et al. 2024, figures 2a and 13): larger phi sooner; larger weight decay sooner.

A run is a trial of the sweep in `--runs`: the same command goes on with what is not done.

Smoke test:
    python experiments/phi_and_weight_decay.py --config=experiments/smoke.py --rounds=20 \
        --phi=1.0,1.5 --weight_decay=0.1 --worlds=2 --inits=1 --runs=runs/smoke/phi \
        --out=runs/smoke/phi_out
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import xarray as xr
from phi_and_weight_decay_figures import HALF, RAW, write

from implicit_reasoning.config import Flag, apply_overrides, load_config, parse_flags
from implicit_reasoning.runs import save_arrays
from implicit_reasoning.runtime.machine import one_device_per_core, provenance
from implicit_reasoning.sweeps import Runs, grid, make_sweep, run_sweep
from implicit_reasoning.worlds import coverage, shortcuts

FLAGS = {
    "config": "configs/composition.py:pocket",
    "rounds": Flag(kind=int, many=True, default=(2_000, 4_000, 8_000)),
    "phi": Flag(kind=float, many=True, default=(3.5, 5.0, 7.0)),
    "weight_decay": Flag(kind=float, many=True, default=(0.1, 0.3, 1.0)),
    "worlds": 8,
    "inits": 2,
    "launcher": "vmap",
    "runs": Flag(kind=Path, default=Path("runs/phi_and_weight_decay")),
    "out": Flag(kind=Path, default=Path("results/phi_and_weight_decay")),
}
CURVES = ("train_ii", "test_ii")
PHI, DECAY, WORLD, SEED = "task.phi", "optimizer.weight_decay", "task.world_seed", "seed"


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
    config = apply_overrides(load_config(flags["config"]), {**base, **overrides})
    points = {PHI: flags["phi"], DECAY: flags["weight_decay"]}
    seeds = {WORLD: range(flags["worlds"]), SEED: range(flags["inits"])}
    # Seeds vary slowest: if the sweep is stopped, whole replicates are done.
    sweep = make_sweep(config, list(grid({**seeds, **points})))
    one_device_per_core()
    late = list(sweep.trials)
    for stop in flags["rounds"]:
        run_sweep(sweep, flags["runs"], launcher=flags["launcher"], stop_at=stop, only=late)
        half = Runs(flags["runs"]).phases()[HALF]
        late = [str(name) for name in half.trial[np.isnan(half.values)].values]
        print(f"step {stop:,}: {len(late)} of {len(half)} trials have not got there", flush=True)
        if not late:
            break
    out, found = flags["out"], times(Runs(flags["runs"]), flags)
    save_arrays(out / RAW, found)
    write(found, out)


def times(runs: Runs, flags: dict[str, object]) -> xr.Dataset:
    """Steps to one half, `[phi, weight_decay, world, init]`, nan: not reached; curves, worlds."""
    phases = runs.phases()[[HALF]]
    for split in CURVES:
        phases[split] = runs.metric(f"accuracy/{split}").astype("float32")
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


if __name__ == "__main__":
    main(sys.argv[1:])
