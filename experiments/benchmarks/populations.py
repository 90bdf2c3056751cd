r"""Benchmark of training trials as one population, and of the overhead of launchers.

    python experiments/benchmarks/populations.py

1. `steps`: eight trials of `pocket` with different seeds are trained for some steps. Three ways do
   the same work:
   - `population`: one program; each core is a device with a share of the trials.
   - `in sequence`: the program of one run, called for one trial after another, with all cores.
   - `pool`: `--workers` processes, each with a part of the trials, as in the launcher `local`. The
     default is one process per GPU or core.
   The three ways are timed in turns. Compilation, evaluations and saves are not included. The peak
   is the throughput of square matrix products.
2. `devices`: the population on 1, 2, 4 and 8 CPU devices of this machine. With more devices than
   cores, this measures the overhead of sharding, not scaling.
3. `overhead`: seconds per trial of each launcher, for trials of zero steps that run one at a time.
4. `planning`: 10,000 trials are validated and written. Then the same command checks the trials
   again in two cases: all trials have stopped after one step, and all trials are done. Results are
   seconds, peak memory and number of files.

On a GPU: --parts=steps --workers=1 --steps=100 --rounds=3

Smoke test:
    python experiments/benchmarks/populations.py --config=experiments/smoke.py --trials=2 \
        --steps=1 --rounds=1 --workers=1 --planned=2 --parts=steps,planning \
        --out=runs/smoke/populations.json
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machines import made_on, result_file
from measure import spread
from outfile import OUT
from peer import Peer
from turns import ratio, take_turns

from implicit_reasoning.config import Flag, parse_flags
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import write_json
from implicit_reasoning.runtime.machine import available_cores
from implicit_reasoning.sweeps.launchers.devices import device_shares

FLAGS: dict[str, Any] = {
    "config": "configs/composition.py:pocket",
    "trials": 8,
    "steps": 40,
    "rounds": 5,
    "workers": 0,
    "planned": 10_000,
    "launchers": Flag(many=True, default=("vmap", "local", "ray", "slurm")),
    "parts": Flag(many=True, default=("steps", "devices", "overhead", "planning")),
    "out": OUT,
}
WORKER = "population_worker.py"
PLANNING = ("plan", "stopped", "done")
DEVICES = (1, 2, 4, 8)
LAUNCHERS = {
    "vmap": [],
    "local": ["--workers=1"],
    "ray": ["--workers=1"],
    "slurm": ["--cluster=local", "--workers=1"],
}


def main(argv: list[str]) -> None:
    """Measure the requested parts and add them to the existing results."""
    flags, _ = parse_flags(argv, FLAGS)
    parts = {"steps": steps, "devices": devices, "overhead": overhead, "planning": planning}
    for name in flags["parts"]:
        load = os.getloadavg()[0]
        made = {"case": {key: flags[key] for key in FLAGS if key not in ("out", "parts")}}
        measured = parts[name](flags)
        # This starts jax, which takes GPU memory that the workers need, so it comes last.
        out = result_file(flags["out"], "populations")
        found = json.loads(out.read_text()) if out.exists() else {}
        found[name] = {**made, "load_average": load, **measured, **made_on()}
        write_json(out, found)
        print(name, json.dumps(found[name], indent=1))


def _worker(flags: dict[str, Any], how: str, count: int, *only: int, **environment: str) -> Peer:
    # Several workers wait on one GPU, and with preallocation each would reserve most of its memory.
    environment |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    peer = Peer(sys.executable, WORKER, Path("."), PYTHONPATH=path, **environment)
    own = [",".join(map(str, only))] if only else []
    peer.ask(" ".join(["set", flags["config"], how, str(count), *own]))
    return peer


def steps(flags: dict[str, Any]) -> dict[str, Any]:
    """Compare three ways to train the same trials."""
    trials, count = flags["trials"], flags["steps"]
    dealt = device_shares(flags["workers"] or None)
    part, over = divmod(trials, len(dealt))
    if over:
        raise InputError(
            f"{trials} trials cannot be divided evenly among {len(dealt)} workers; choose a number "
            "of --workers that divides the number of trials"
        )
    as_devices = {"JAX_NUM_CPU_DEVICES": str(len(available_cores()))}
    population = _worker(flags, "population", trials, **as_devices)
    sequence = _worker(flags, "alone", trials)
    limit = sequence.ask("limit")  # one CPU device with all cores, or all GPUs
    pool = [_worker(flags, "alone", part, *each.cores, **each.environment) for each in dealt]

    def together() -> float:
        began = time.perf_counter()
        for peer in pool:
            peer.tell(f"steps {count}")
        for peer in pool:
            peer.listen()
        return time.perf_counter() - began

    sides = {
        "population": lambda: population.ask(f"steps {count}")["seconds"],
        "in sequence": lambda: sequence.ask(f"steps {count}")["seconds"],
        "pool": together,
    }
    seconds = take_turns(sides, flags["rounds"])
    for peer in (population, sequence, *pool):
        peer.close()
    a_step = {name: [s / count / trials for s in each] for name, each in seconds.items()}
    peak = limit["peak_flops"] * limit["devices"]
    return {
        **limit,
        "share_of_peak": {
            name: spread([limit["flop_a_step_and_trial"] / s / peak for s in each])
            for name, each in a_step.items()
        },
        "milliseconds_a_step_and_trial": {
            name: {key: 1e3 * value for key, value in spread(each).items()}
            for name, each in a_step.items()
        },
        "times_as_fast": {
            name: ratio(seconds, name, "population") for name in ("in sequence", "pool")
        },
    }


def devices(flags: dict[str, Any]) -> dict[str, Any]:
    """Measure the population with increasing numbers of devices."""
    peers = {
        str(count): _worker(flags, "population", flags["trials"], JAX_NUM_CPU_DEVICES=str(count))
        for count in DEVICES
    }
    line = f"steps {flags['steps']}"
    sides = {name: (lambda peer=peer: peer.ask(line)["seconds"]) for name, peer in peers.items()}
    seconds = take_turns(sides, flags["rounds"])
    for peer in peers.values():
        peer.close()
    one = {name: ratio(seconds, "1", name) for name in seconds if name != "1"}
    return {"seconds": {name: spread(s) for name, s in seconds.items()}, "times_one_device": one}


def overhead(flags: dict[str, Any]) -> dict[str, Any]:
    """Measure launchers on `few` and on `many` trials of zero steps.

    Returns:
      The seconds per trial.
    """
    few, many = 1, 4
    # Disable the compilation cache, because workers would use it and `vmap` would not.
    uncached = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    found = {}
    for launcher in flags["launchers"]:
        words, took = LAUNCHERS[launcher], {}
        for count in (few, many):
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, __file__, "--launch", launcher, str(count), folder]
                command.append(flags["config"])
                began = time.perf_counter()
                quiet = subprocess.DEVNULL
                subprocess.run([*command, *words], check=True, stdout=quiet, env=uncached)
                took[count] = time.perf_counter() - began
        found[launcher] = {
            "seconds_a_trial": (took[many] - took[few]) / (many - few),
            "seconds_of_one": took[few],
        }
        print(launcher, found[launcher], file=sys.stderr, flush=True)
    return {"launchers": found}


def launch(launcher: str, count: int, folder: str, config: str, words: list[str]) -> None:
    """Train `count` trials of one shape for zero steps."""
    from implicit_reasoning.config import load_config
    from implicit_reasoning.sweeps import grid, make_sweep, run_sweep

    sweep = make_sweep(load_config(config), list(grid({"seed": range(count)})))
    given = {key: value for key, value in (w.removeprefix("--").split("=") for w in words)}
    options = {key: int(v) if v.isdecimal() else v for key, v in given.items()}
    run_sweep(sweep, folder, launcher=launcher, stop_at=0, options=options)


def planning(flags: dict[str, Any]) -> dict[str, Any]:
    """Measure planning, with each case in a separate process.

    Separate processes make it possible to measure the peak memory of each case.
    """
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for what in PLANNING:
            command = [sys.executable, __file__, "--planning", what, folder, str(flags["planned"])]
            command.append(flags["config"])
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[what] = json.loads(said.splitlines()[-1])
    return found


def plan(folder: str, count: int, what: str, config: str) -> None:
    """Measure the preparation of a sweep.

    The preparation consists of the definition, the directory and the list of pending trials.
    Afterwards, prepare the directory for the next case of `PLANNING`.
    """
    began = time.perf_counter()
    from implicit_reasoning.config import load_config
    from implicit_reasoning.runs import write_config
    from implicit_reasoning.sweeps import grid, make_sweep
    from implicit_reasoning.sweeps.directory import Journal, SweepLayout, begin
    from implicit_reasoning.sweeps.run import pending_trials

    overrides = grid({"optimizer.weight_decay": [0.1, 0.5], "seed": range(count // 2)})
    files = SweepLayout(Path(folder))
    sweep = begin(files, make_sweep(load_config(config), list(overrides)))
    journal = Journal(files)
    left = pending_trials(files, sweep, journal)
    took = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    there = sum(1 for path in files.workdir.rglob("*") if path.is_file())
    assert len(left) == (0 if what == "done" else count)
    for trial in left:
        if what == "plan":
            files.trial(trial).workdir.mkdir(parents=True)
            write_config(files.trial(trial).config, sweep.config(trial))
        step, state = (1, "stopped") if what == "plan" else (sweep.base.steps, "done")
        journal.note(trial, state, step=step)
    journal.close()
    print(json.dumps({"seconds": took, "peak_mib": peak, "files": there}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--launch"]:
        launch(sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5], sys.argv[6:])
    elif sys.argv[1:2] == ["--planning"]:
        plan(sys.argv[3], int(sys.argv[4]), sys.argv[2], sys.argv[5])
    else:
        main(sys.argv[1:])
