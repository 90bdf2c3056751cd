r"""Benchmark of all default instruments on a run, in a new process.

    python experiments/benchmarks/default_set.py --workdir=runs/pocket

The instruments are the default set on 20 checkpoints of a run, evenly spaced in its schedule, and
`das` (at r1) on 3 checkpoints. Everything is compiled, without the compilation cache and without
saved results. Each round is a separate process on every core. Aim for a `pocket` run on two cores:
180 s in total.

For every instrument, the result has wall-clock seconds in parts that add up to the total:

- trace: tracing and lowering;
- compile: XLA compilation;
- run: the compiled program, for all checkpoints;
- examples: choice of examples, on the host;
- aggregate: means with intervals, on the host;
- files: reading of checkpoints, writing of results;
- other: the rest.

`--instruments` replaces the default set; `--das=0` omits `das`. The run is not modified, because
the script works on a copy.

Smoke test:
    python experiments/benchmarks/default_set.py --workdir=runs/smoke/run --checkpoints=2 --das=0 \
        --instruments=behaviour --rounds=1 --out=runs/smoke/default_set.json
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from measure import spread

FLAGS = {
    "checkpoints": 20,
    "das": 3,
    "rounds": 3,
    "once": False,
}
AIM = 180.0
PARTS = ("trace", "compile", "run", "examples", "aggregate", "files", "other")
COMPILER = "/jax/core/compile/"  # prefix of JAX's compilation events
XLA = f"{COMPILER}backend_compile_duration"


def main(argv: list[str]) -> None:
    """Measure and write the results. With `--once`, run as one of the measured processes."""
    began = time.perf_counter()
    # Imported here, so that `import` includes these imports.
    from outfile import OUT

    from implicit_reasoning.config import Flag, parse_flags

    typed = {"workdir": Flag(kind=Path), "instruments": Flag(many=True, default=()), "out": OUT}
    flags, _ = parse_flags(argv, FLAGS | typed)
    if flags["once"]:
        print(json.dumps(once(flags["workdir"], flags["instruments"], flags["das"], began)))
        return
    from machines import keep

    from implicit_reasoning.errors import InputError

    if flags["workdir"] is None:
        raise InputError("--workdir is missing: give the directory of a run with checkpoints")
    rounds = []
    for number in range(flags["rounds"]):
        with tempfile.TemporaryDirectory() as folder:
            steps = copy_run(flags["workdir"], Path(folder), flags["checkpoints"])
            rounds.append(fresh_process(Path(folder), flags["instruments"], flags["das"]))
        print(f"{number + 1}/{flags['rounds']}", file=sys.stderr, flush=True)
    result = {
        "load_average": os.getloadavg()[0],
        "steps": steps,
        "aim": AIM,
        "seconds": spread([one["process"] for one in rounds]),
        "import": spread([one["import"] for one in rounds]),
        "by_instrument": summary([one["instruments"] for one in rounds]),
        "by_part": {
            part: spread([sum(i[part] for i in one["instruments"].values()) for one in rounds])
            for part in PARTS
        },
    }
    keep(result, flags["out"], "default_set")


def copy_run(workdir: Path, folder: Path, count: int) -> list[int]:
    """Copy the files of a run that instruments read; return the steps of `count` checkpoints."""
    from implicit_reasoning.runs import Layout, Run

    here, there = Layout(workdir), Layout(folder)
    steps = evenly(Run(workdir).steps, count)
    for step in steps:
        shutil.copytree(here.checkpoints / str(step), there.checkpoints / str(step))
    for name in ("world", "config"):
        shutil.copy(getattr(here, name), getattr(there, name))
    return steps


def evenly(steps: Sequence[int], count: int) -> list[int]:
    """Return `count` evenly spaced steps of a schedule, including the first and the last."""
    last = len(steps) - 1
    places = {round(number * last / max(count - 1, 1)) for number in range(count)}
    return [steps[place] for place in sorted(places)]


def summary(rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """Return the seconds of each instrument, in total and by part."""
    return {
        name: {
            "seconds": spread([sum(one[name].values()) for one in rounds]),
            **{part: spread([one[name][part] for one in rounds]) for part in PARTS},
        }
        for name in rounds[0]
    }


def fresh_process(folder: Path, instruments: Sequence[str], das: int) -> dict[str, Any]:
    """Run one process, and return its output and its duration."""
    from implicit_reasoning.config import join_list

    clean = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
    clean["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    command = [sys.executable, __file__, "--once", f"--workdir={folder}", f"--das={das}"]
    command += [f"--instruments={join_list(instruments)}"]
    began = time.perf_counter()
    said = subprocess.run(command, env=clean, check=True, stdout=subprocess.PIPE, text=True)
    return {"process": time.perf_counter() - began, **json.loads(said.stdout)}


def once(workdir: Path, names: Sequence[str], das: int, began: float) -> dict[str, Any]:
    """Measure the instruments, and return the seconds of the import and of each instrument by part.

    Args:
      workdir: folder of the run.
      names: names of the instruments; empty for the default set.
      das: number of checkpoints for `das`.
      began: time at which the process began.
    """
    from implicit_reasoning.analysis import NotApplicable, analyze, find_instrument, runner
    from implicit_reasoning.analysis.api import default_instruments
    from implicit_reasoning.runs import Run
    from implicit_reasoning.runtime.machine import memory_per_program

    found: dict[str, Any] = {"import": time.perf_counter() - began, "instruments": {}}
    # The cache is the same as in the command `analyze`.
    run, clock = Run(workdir).with_cache(memory_per_program()), Clock()
    clock.wrap(runner.Runner, "__call__", "run")
    clock.wrap(runner, "aggregate", "aggregate")
    clock.wrap(Run, "params", "files")
    clock.wrap(Run, "save_result", "files")
    instruments = [find_instrument(name) for name in names] or default_instruments()
    for instrument in [*instruments, *([find_instrument("das")] if das else [])]:
        clock.start()
        clock.wrap(instrument, "examples", "examples")
        steps = evenly(run.steps, das) if instrument.name == "das" else None
        try:
            analyze(run, instrument, steps=steps, progress=False)
        except NotApplicable:
            continue
        found["instruments"][instrument.name] = clock.parts()
    return found


class Clock:
    """Measures the seconds of each part. Compilation always counts as the part "compile"."""

    def __init__(self) -> None:
        from jax import monitoring

        monitoring.register_event_duration_secs_listener(self._compiled)
        self.start()

    def start(self) -> None:
        """Reset the clock."""
        self._began = time.perf_counter()
        self._spent = dict.fromkeys(PARTS, 0.0)
        self._spans: dict[bool, list[tuple[float, float]]] = {True: [], False: []}

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Replace a function of `owner` by a timed function, whose duration counts as `part`."""
        function: Callable[..., Any] = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            began, compiled = time.perf_counter(), self._compiling()
            found = function(*args, **kwargs)
            took = time.perf_counter() - began
            self._spent[part] += took - (self._compiling() - compiled)
            return found

        setattr(owner, name, counted)

    def parts(self) -> dict[str, float]:
        """Return the seconds of each part since the last `start`."""
        whole = time.perf_counter() - self._began
        xla = length(self._spans[True])
        parts = self._spent | {"trace": self._compiling() - xla, "compile": xla}
        return parts | {"other": whole - sum(parts.values())}

    def _compiling(self) -> float:
        return length(self._spans[True] + self._spans[False])

    def _compiled(self, event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith(COMPILER):
            now = time.perf_counter()
            self._spans[event == XLA].append((now - duration_secs, now))


def length(spans: list[tuple[float, float]]) -> float:
    """Return the length of the union of intervals. Events of nested functions overlap."""
    total, reached = 0.0, float("-inf")
    for began, ended in sorted(spans):
        total += max(0.0, ended - max(began, reached))
        reached = max(reached, ended)
    return total


if __name__ == "__main__":
    main(sys.argv[1:])
