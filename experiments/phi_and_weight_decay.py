r"""Time to generalization of composition, as a function of phi and weight decay.

    python experiments/phi_and_weight_decay.py

The sweep combines three values of phi (training chains per fact), three values of weight decay,
eight worlds and two initializations at scale `pocket`. The learning rate is constant, because the
end of a cosine schedule would help late runs. The measured quantity is the step at which half of
the held-out chains are answered correctly (the first of three evaluations in a row). Trials are
trained in rounds, and trials that have reached this step are not trained further. A trial that has
not reached this step by the end of the last round counts as later than all trials that have.

Duration: 8 minutes on an H100 with less frequent saves (--config.resume_every=4000
--config.writers.tensorboard=False). The estimate for two CPU cores is 8 hours, at 33 ms per step
and trial.

Published (Wang et al. 2024, figures 2a and 13): larger phi and larger weight decay lead to earlier
generalization.

The runs are trials of the sweep in `--runs`. The same command continues an interrupted sweep.

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
    """Train missing runs, then write the table, the figure and the raw times."""
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
    # Seeds vary slowest, so that an interrupted sweep has complete replicates.
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
    """Return the times to one half [phi, weight_decay, world, init], and the curves."""
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
    """Return, by trial, the coverage and the accuracy of the best shortcut on test_ii."""
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
