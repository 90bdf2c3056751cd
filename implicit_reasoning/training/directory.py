"""Run directories: creation, checks before a run is resumed, and a lock against other processes."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from implicit_reasoning.config import changed_keys, listed, to_json
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import write_json
from implicit_reasoning.paths import local_path
from implicit_reasoning.runs import (
    Layout,
    completed,
    edited_from,
    read_config,
    read_starts,
    write_config,
)
from implicit_reasoning.runs.fields import is_field
from implicit_reasoning.runtime import distributed
from implicit_reasoning.runtime.locks import exclusive_lock
from implicit_reasoning.runtime.machine import numerics, provenance
from implicit_reasoning.runtime.writers import read_metrics
from implicit_reasoning.worlds import Dataset, build

# Configuration groups that may differ between the processes of one run.
_OWN = ("distributed", "writers", "profile")


def exclusive(
    folder: Path, activity: str = "training", choose: str = "--workdir"
) -> AbstractContextManager[None]:
    """Lock a training folder against other processes.

    In a distributed run, only process 0 takes the lock.

    Args:
      folder: the folder to lock. A missing folder is created.
      activity: the use of the folder, for the error message.
      choose: the command line option that selects the folder, for the error message.

    Returns:
      A context manager that releases the lock on exit.

    Raises:
      InputError: another process has locked the folder.
    """
    if not distributed.is_primary():
        return contextlib.nullcontext()
    refusal = f"another process is {activity} in {folder}; wait for it, or choose another {choose}"
    return exclusive_lock(folder, refusal)


def open_dataset(files: Layout, config: ConfigDict) -> Dataset:
    """Load the dataset of an existing run, or build the dataset of a new run.

    Nothing is written. The configuration does not contain the code of a user-defined task. For such
    a task, the dataset of an existing run is therefore built again and compared with the saved
    dataset.

    Raises:
      InputError: the configuration, dataset or JAX settings of the existing run are different; the
        run is that of an edited model; a file of the run is damaged; or the configuration does not
        describe a valid dataset.
    """
    if not files.config.exists():
        return build(config.task)
    if edited_from(files):
        raise InputError(
            f"{files.workdir} contains an edited model, which cannot be continued; choose another "
            f"--workdir, and set --config.init_from.workdir={files.workdir} to start from the "
            "edited model"
        )
    check_same(files, config)
    # Read these files now, so that damage is reported before anything is changed.
    read_metrics(files.metrics)
    check_numerics(files.workdir, read_starts(files.provenance))
    dataset = Dataset.load(files.world)
    _check_task(files, config.task, dataset)
    return dataset


def _check_task(files: Layout, task: ConfigDict, dataset: Dataset) -> None:
    """Raise an `InputError` if a task from a user's file no longer builds the run's dataset."""
    name = str(task.name)
    where = name.rpartition(":")[0]
    before = read_config(files.config).task.name
    if not where.endswith(".py") or (name == before and not local_path(where).exists()):
        return  # An existing run does not need the file of its task.
    if (now := build(task).fingerprint()) != dataset.fingerprint():
        raise InputError(
            f"the dataset of the run in {files.workdir} has the fingerprint "
            f"{dataset.fingerprint()[:12]}, but task {name} now builds a dataset with the "
            f"fingerprint {now[:12]}; restore the code of the task, or choose another --workdir"
        )


def check_same(files: Layout, config: ConfigDict) -> None:
    """Check that a configuration equals the configuration of the existing run.

    If a field did not exist when the run began, the check uses the value that reproduces the
    behavior of the run (`Field.before`).

    Raises:
      InputError: the configurations differ; the message lists the fields that differ.
    """
    changes = changed_keys(read_config(files.config), completed(config))
    # Earlier versions accepted unknown fields. These fields are ignored, so that runs of earlier
    # versions can be resumed.
    changes = [change for change in changes if is_field(config, change.key)]
    if changes:
        raise InputError(
            f"{files.workdir} contains a run with a different configuration ({listed(changes)}); "
            "use the configuration of this run, or choose another --workdir"
        )


def check_numerics(workdir: Path, starts: Sequence[Mapping[str, Any]]) -> None:
    """Check that the JAX settings that affect results have not changed since the previous start.

    Args:
      workdir: the run directory, for the error message.
      starts: the recorded starts of the run, newest last. Starts without recorded settings, from
        versions before 2026-11-28, are skipped.

    Raises:
      InputError: a setting differs from the value at the previous start. The message names the
        setting.
    """
    noted = [start["numerics"] for start in starts if "numerics" in start]
    was: Mapping[str, Any] = noted[-1] if noted else {}
    now = numerics()
    other = [name for name in was if name in now and was[name] != now[name]]
    if other:
        listed_ = ", ".join(f"{name} was {was[name]!r}, is {now[name]!r}" for name in other)
        advice = " ".join(f"{name.upper()}={was[name]}" for name in other if was[name] is not None)
        unset = " ".join(name.upper() for name in other if was[name] is None)
        do = [f"set {advice}"] * bool(advice) + [f"unset {unset}"] * bool(unset)
        raise InputError(
            f"the run in {workdir} was trained with different JAX settings ({listed_}); "
            f"{' and '.join(do)} to continue, or choose another --workdir"
        )


def identity(config: ConfigDict, stop: int, dataset: Dataset) -> str:
    """Return a JSON text that must be equal in all processes of a distributed run."""
    same = {key: value for key, value in to_json(config).items() if key not in _OWN}
    return json.dumps([same, stop, dataset.fingerprint(), numerics()], sort_keys=True)


def begin(files: Layout, config: ConfigDict, dataset: Dataset) -> None:
    """Begin a run: write the dataset and the configuration.

    `config.json` is written last, so the dataset is complete if `config.json` exists.
    """
    if not distributed.is_primary():
        return
    for stale in files.workdir.glob(".*.tmp"):  # left by a process that was killed
        stale.unlink()
    if files.config.exists():
        check_same(files, config)  # Another process may have begun a run here in the meantime.
    else:
        dataset.save(files.world)
    write_config(files.config, config)


def record_start(path: Path, step: int, source: Mapping[str, Any] | None = None) -> None:
    """Append the step, time, versions and hardware of this start to `provenance.json`.

    Args:
      path: the file.
      step: the step at which training starts.
      source: additional fields that describe the checkpoint with the initial parameters.
    """
    start = {"step": step, "time": time.time(), **provenance(), **(source or {})}
    write_json(path, [*read_starts(path), start])
