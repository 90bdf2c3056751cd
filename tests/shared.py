"""Runs that many tests read. Each is trained once per session, by the first test that asks.

pytest-xdist's workers are processes, so every run is made under a file lock in a folder of the
session (see `tests/conftest.py`). A shared run must not be changed. A test that trains further,
damages files or writes files uses a copy.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from implicit_reasoning.runs import Run
from implicit_reasoning.sweeps import define, run_sweep
from implicit_reasoning.training import train
from tests.compile_counts import uncounted
from tests.training.tiny import tiny

SWEEP = "tests/sweeps/small.py"
THOROUGH = os.environ.get("TESTS") == "thorough"  # `make test-all`


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """Return the folder that `make(folder)` fills once per session; other processes wait for the
    first.
    """
    root = Path(os.environ["IMPLICIT_REASONING_TEST_RUNS"])
    folder, done = root / name, root / f"{name}.done"
    with FileLock(root / f"{name}.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # left by a test that failed while making it
            with uncounted():  # it belongs to no file in particular
                make(folder)
            done.touch()
    return folder


def finished(**overrides) -> Path:
    """Return a finished `train(tiny(**overrides))`."""
    changes = [f"{key}={value}" for key, value in overrides.items()]
    return made_once("-".join(["tiny", *changes]), lambda folder: train(tiny(**overrides), folder))


def finished_copy(to: Path, **overrides) -> Path:
    """Return a copy of it, for a test that changes it."""
    return Path(shutil.copytree(finished(**overrides), to))


def seed(number: int) -> Path:
    """Return the tiny run of a seed; seed 0 is the run that other tests also read."""
    return finished(seed=number) if number else finished()


def swept(stop_at: int | None = None) -> Path:
    """Return the sweep `seeds`, trained by vmap to its end or stopped at a step."""
    return made_once(
        f"seeds-{stop_at}",
        lambda folder: run_sweep(define(SWEEP, "seeds"), folder, stop_at=stop_at),
    )


def swept_copy(to: Path, stop_at: int | None = None) -> Path:
    """Return a copy of it, for a test that changes it."""
    return Path(shutil.copytree(swept(stop_at), to, dirs_exist_ok=True))


def losses(workdir: Path) -> list[float]:
    """Return the losses in the rows of a run."""
    return [row["loss"] for row in Run(workdir).metrics[1:]]
