r"""Benchmark of this commit against a second commit, with the same scripts in turns.

    git worktree add ../other COMMIT
    python experiments/benchmarks/against.py --other=../other --out=runs/against.json

Each round starts one process per commit, and the order alternates between rounds. Each commit runs
its own scripts, without other packages (`--peer=none`). These scripts must have the flags in
`CASES`. `default_set` needs a run that both commits can open (`--workdir`). The result has, for
both commits, the median and the range of every time over rounds. It also has the ratio of the times
of this commit and the second commit, by round. `within_spread` is false if the median of this
commit is above the slowest round of the second commit.

Smoke test:
    python experiments/benchmarks/against.py --other=. --cases=smoke --rounds=1 \
        --out=runs/smoke/against.json
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from machines import keep
from measure import spread
from outfile import OUT
from tqdm import tqdm

from implicit_reasoning.config import Flag, parse_flags
from implicit_reasoning.errors import InputError

HERE = Path(__file__).resolve().parents[2]
Times = dict[str, float]


class Case(NamedTuple):
    """A script with flags, and a function that extracts the times from its result."""

    script: str
    flags: tuple[str, ...]
    times: Callable[[dict[str, Any]], Times]


def _default_set(result: dict[str, Any]) -> Times:
    """Return the seconds of all instruments together and of each instrument."""
    parts = {name: one["seconds"]["median"] for name, one in result["by_instrument"].items()}
    return {"all": result["seconds"]["median"], **parts}


def _populations(result: dict[str, Any]) -> Times:
    """Return the milliseconds per step and trial, and the seconds of planning."""
    steps = result["steps"]["milliseconds_a_step_and_trial"]
    plans = {name: result["planning"][name]["seconds"] for name in ("plan", "stopped", "done")}
    return {name: value["median"] for name, value in steps.items()} | plans


def _dictionaries(result: dict[str, Any]) -> Times:
    """Return the milliseconds per step, by case."""
    return {
        name: value["milliseconds_a_step"]["ours"]["median"]
        for name, value in result.items()
        if "milliseconds_a_step" in value
    }


def _train_step(result: dict[str, Any]) -> Times:
    return {"step": result["milliseconds"]["ours"]["median"]}


CASES = {
    "train_step": Case("train_step", ("--peer=none",), _train_step),
    "default_set": Case("default_set", ("--rounds=1",), _default_set),
    "patch_grid": Case(
        "patch_grid",
        ("--peer=none",),
        lambda result: {"grid": result["seconds"]["cones"]["median"]},
    ),
    "cross_query": Case(
        "cross_query",
        ("--peer=none", "--pairs=500", "--rounds=3", "--forwards=100"),
        lambda result: {"pairs": result["seconds"]["ours"]["median"]},
    ),
    "dictionaries": Case("dictionaries", ("--peer=none", "--rounds=3"), _dictionaries),
    "populations": Case("populations", ("--parts=steps,planning", "--rounds=2"), _populations),
    "smoke": Case(
        "train_step",
        ("--config=experiments/smoke.py", "--peer=none", "--rounds=1", "--steps=2"),
        _train_step,
    ),
}
FLAGS = {
    "other": Flag(kind=Path),
    "cases": Flag(many=True, default=tuple(name for name in CASES if name != "smoke")),
    "rounds": 3,
    "workdir": Flag(kind=Path, default=Path("runs/pocket")),
    "out": OUT,
}


def main(argv: list[str]) -> None:
    """Run the benchmarks in turns, then write times and ratios."""
    flags, _ = parse_flags(argv, FLAGS)
    if unknown := [name for name in flags["cases"] if name not in CASES]:
        raise InputError(f"--cases has {unknown[0]!r}; it must be one of {', '.join(CASES)}")
    sides = {"here": HERE, "other": flags["other"].resolve()}
    commits = {side: _commit(folder) for side, folder in sides.items()}
    found: dict[str, Any] = {}
    with tqdm(total=2 * flags["rounds"] * len(flags["cases"]), unit="process") as bar:
        for name in flags["cases"]:
            rounds: dict[str, list[Times]] = {side: [] for side in sides}
            for turn in range(flags["rounds"]):
                for side in sorted(sides, reverse=bool(turn % 2)):
                    bar.set_description(f"{name}, {side}")
                    rounds[side].append(_measure(CASES[name], sides[side], flags["workdir"]))
                    bar.update()
            found[name] = _compared(rounds)
            # Write after every case, because a later case may fail.
            result = {"commits": commits, "load_average": os.getloadavg()[0], "times": found}
            keep(result, flags["out"], "against")


def _measure(case: Case, folder: Path, workdir: Path) -> Times:
    """Run one process of a commit and return its times."""
    script = f"experiments/benchmarks/{case.script}.py"
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "result.json"
        words = [sys.executable, script, *case.flags, f"--out={out}"]
        if case.script == "default_set":
            words.append(f"--workdir={workdir.resolve()}")
        environment = os.environ | {"PYTHONPATH": str(folder)}
        ended = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
        if ended.returncode:
            raise InputError(f"{script} of {folder} failed:\n{ended.stderr[-2000:]}")
        return case.times(json.loads(out.read_text()))


def _compared(rounds: Mapping[str, list[Times]]) -> dict[str, Any]:
    """Return the times of both commits and their ratios, for times that both commits have."""
    found = {}
    for name in rounds["here"][0]:
        if name not in rounds["other"][0]:
            continue
        here, other = ([times[name] for times in rounds[side]] for side in ("here", "other"))
        sides = {"here": spread(here), "other": spread(other)}
        found[name] = {
            **sides,
            "ratio": spread([a / b for a, b in zip(here, other, strict=True)]),
            "within_spread": sides["here"]["median"] <= sides["other"]["high"],
        }
    return found


def _commit(folder: Path) -> str:
    words = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main(sys.argv[1:])
