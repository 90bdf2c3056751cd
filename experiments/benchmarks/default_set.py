r"""How long does it take to look at a run with every default instrument? In a fresh process.

    python experiments/benchmarks/default_set.py --workdir=runs/pocket

The default set of instruments over 20 checkpoints of a run, evenly over its schedule, and `das` (at
r1) on 3 of them; compiled anew, nothing cached, nothing measured before. A round is a process of
its own, on every core. Aim for a `pocket` run on two cores: 180 s, all included.

Of every instrument, seconds of wall clock in parts that add up:
- trace: Python that writes the program down, and its lowering;
- compile: XLA;
- run: the compiled program, for all checkpoints;
- examples, aggregate: choosing them, and means with intervals, on the host;
- files: checkpoints read, results written;
- other: the rest.
`--instruments` measures others than the default set; `--das=0` leaves `das` out.
The run is only read: what is needed of it is copied first.

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
COMPILER = "/jax/core/compile/"  # what jax calls the events of its compilation
XLA = f"{COMPILER}backend_compile_duration"


def main(argv: list[str]) -> None:
    """Measure and write; with `--once` be one of the measured processes."""
    began = time.perf_counter()
    # Imported here so that `import` counts it.
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
        raise InputError("--workdir is missing: a run with checkpoints")
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
    """Copy what instruments read of a run, with so many of its checkpoints; their steps."""
    from implicit_reasoning.runs import Layout, Run

    here, there = Layout(workdir), Layout(folder)
    steps = evenly(Run(workdir).steps, count)
    for step in steps:
        shutil.copytree(here.checkpoints / str(step), there.checkpoints / str(step))
    for name in ("world", "config"):
        shutil.copy(getattr(here, name), getattr(there, name))
    return steps


def evenly(steps: Sequence[int], count: int) -> list[int]:
    """So many of a schedule, the first and the last among them."""
    last = len(steps) - 1
    places = {round(number * last / max(count - 1, 1)) for number in range(count)}
    return [steps[place] for place in sorted(places)]


def summary(rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """Of every instrument: seconds, and their parts."""
    return {
        name: {
            "seconds": spread([sum(one[name].values()) for one in rounds]),
            **{part: spread([one[name][part] for one in rounds]) for part in PARTS},
        }
        for name in rounds[0]
    }


def fresh_process(folder: Path, instruments: Sequence[str], das: int) -> dict[str, Any]:
    """One process, from outside; what it said, and how long it lived."""
    from implicit_reasoning.config import join_list

    clean = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
    clean["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    command = [sys.executable, __file__, "--once", f"--workdir={folder}", f"--das={das}"]
    command += [f"--instruments={join_list(instruments)}"]
    began = time.perf_counter()
    said = subprocess.run(command, env=clean, check=True, stdout=subprocess.PIPE, text=True)
    return {"process": time.perf_counter() - began, **json.loads(said.stdout)}


def once(workdir: Path, names: Sequence[str], das: int, began: float) -> dict[str, Any]:
    """Measure; seconds of the import, and by instrument and part.

    With the instruments of these names, or the default set; and with `das` on so many checkpoints.
    """
    from implicit_reasoning.analysis import NotApplicable, analyze, find_instrument, runner
    from implicit_reasoning.analysis.api import default_instruments
    from implicit_reasoning.runs import Run
    from implicit_reasoning.runtime.machine import memory_per_program

    found: dict[str, Any] = {"import": time.perf_counter() - began, "instruments": {}}
    run, clock = Run(workdir).with_cache(memory_per_program()), Clock()  # as the command has it
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
    """Seconds by part. What is compiled counts as that, in whatever part it happens."""

    def __init__(self) -> None:
        from jax import monitoring

        monitoring.register_event_duration_secs_listener(self._compiled)
        self.start()

    def start(self) -> None:
        """Forget, and count from now."""
        self._began = time.perf_counter()
        self._spent = dict.fromkeys(PARTS, 0.0)
        self._spans: dict[bool, list[tuple[float, float]]] = {True: [], False: []}

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Let a function count as a part, from now on."""
        function: Callable[..., Any] = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            began, compiled = time.perf_counter(), self._compiling()
            found = function(*args, **kwargs)
            took = time.perf_counter() - began
            self._spent[part] += took - (self._compiling() - compiled)
            return found

        setattr(owner, name, counted)

    def parts(self) -> dict[str, float]:
        """Of all since the start."""
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
    """Of the union: a function traced inside another is an event of its own."""
    total, reached = 0.0, float("-inf")
    for began, ended in sorted(spans):
        total += max(0.0, ended - max(began, reached))
        reached = max(reached, ended)
    return total


if __name__ == "__main__":
    main(sys.argv[1:])
