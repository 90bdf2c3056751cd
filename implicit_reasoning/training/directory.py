"""Beginning a run directory, or coming back to one: the same experiment, and nobody else in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from implicit_reasoning.config import changed_keys, from_json, to_json
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import read_json, write_json
from implicit_reasoning.runs import Layout
from implicit_reasoning.worlds import Dataset, build

_PACKAGES = ("implicit_reasoning", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@contextlib.contextmanager
def exclusive(files: Layout) -> Iterator[None]:
    """Hold the directory; an `InputError` if another process trains in it.

    The lock belongs to the process, so a killed one does not leave it behind.
    """
    files.workdir.mkdir(parents=True, exist_ok=True)
    path = files.workdir / ".lock"
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another process is training in {files.workdir}; wait for it, or choose another "
                "--workdir"
            ) from None
        try:
            yield
        finally:
            if not files.config.exists():  # nothing came of it: leave no trace
                path.unlink()
                with contextlib.suppress(OSError):
                    files.workdir.rmdir()


def open_dataset(files: Layout, config: ConfigDict) -> Dataset:
    """The dataset of a run that began before, or a new one; nothing is written yet.

    Raises:
      InputError: the run that began here had another configuration; the keys are listed.
    """
    if not files.config.exists():
        return build(config.task)
    changes = changed_keys(from_json(read_json(files.config)), config)
    if changes:
        listed = "; ".join(f"{key} was {old!r}, is {new!r}" for key, old, new in changes)
        raise InputError(
            f"{files.workdir} holds a run with another configuration ({listed}); go on with the "
            "old one, or choose another --workdir"
        )
    return Dataset.load(files.world)


def begin(files: Layout, config: ConfigDict, dataset: Dataset) -> None:
    """Write what makes a directory a run; `config.json` comes last, so it vouches for the rest."""
    for stale in files.workdir.glob(".*.tmp"):  # a killed process was writing these
        stale.unlink()
    if not files.config.exists():
        dataset.save(files.world)
    write_json(files.config, to_json(config))


def record_start(files: Layout, step: int) -> None:
    """Add this start, its versions and hardware, to `provenance.json`."""
    starts = read_json(files.provenance) if files.provenance.exists() else []
    write_json(files.provenance, [*starts, {"step": step, "time": time.time(), **provenance()}])


def provenance() -> dict[str, Any]:
    """Versions and hardware of this process."""
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in _PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "device": devices[0].device_kind,
        "device_count": len(devices),
        "processes": jax.process_count(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
    }


def _cpu_model() -> str:
    """What Linux calls the processor; elsewhere what Python knows of it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a checkout on the path is not an installed distribution
        return "unknown"
