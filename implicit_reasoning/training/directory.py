"""Beginning a run directory, or coming back to one: the same experiment, and nobody else in it."""

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
from implicit_reasoning.runs import Layout, completed, read_config, read_starts, write_config
from implicit_reasoning.runs.fields import is_field
from implicit_reasoning.runtime import distributed
from implicit_reasoning.runtime.locks import exclusive_lock
from implicit_reasoning.runtime.machine import numerics, provenance
from implicit_reasoning.runtime.writers import read_metrics
from implicit_reasoning.worlds import Dataset, build

# What may differ between the processes of one run.
_OWN = ("distributed", "writers", "profile")


def exclusive(
    folder: Path, activity: str = "training", choose: str = "--workdir"
) -> AbstractContextManager[None]:
    """Hold a folder in which something is trained; the primary process holds it for all.

    Args:
      folder: to hold; made if missing.
      activity: what another process would be doing there, for the message.
      choose: the option that names another folder, for the message.

    Raises:
      InputError: another process holds the folder.
    """
    if not distributed.is_primary():
        return contextlib.nullcontext()
    refusal = f"another process is {activity} in {folder}; wait for it, or choose another {choose}"
    return exclusive_lock(folder, refusal)


def open_dataset(files: Layout, config: ConfigDict) -> Dataset:
    """The dataset of a run that began before, or a new one; nothing is written yet.

    A task in a file of the user's is called again, because the configuration does not say what is
    in that file: it must give the dataset that the run began with.

    Raises:
      InputError: the run that began here had another configuration, another dataset or other
        settings of JAX, or one of its files is damaged, or this configuration makes no dataset.
    """
    if not files.config.exists():
        return build(config.task)
    check_same(files, config)
    # Damage that will be met later is found here, before anything is changed.
    read_metrics(files.metrics)
    check_numerics(files.workdir, read_starts(files.provenance))
    dataset = Dataset.load(files.world)
    _check_task(files, config.task, dataset)
    return dataset


def _check_task(files: Layout, task: ConfigDict, dataset: Dataset) -> None:
    """Raise an `InputError` if a task in a file gives another dataset than the run began with."""
    name = str(task.name)
    where = name.rpartition(":")[0]
    before = read_config(files.config).task.name
    if not where.endswith(".py") or (name == before and not local_path(where).exists()):
        return  # of a run that stayed where it was, the file may be gone
    if (now := build(task).fingerprint()) != dataset.fingerprint():
        raise InputError(
            f"{files.workdir} holds a run on another dataset: task {name} now gives one with "
            f"fingerprint {now[:12]}, the run began with {dataset.fingerprint()[:12]}; restore the "
            "task, or choose another --workdir"
        )


def check_same(files: Layout, config: ConfigDict) -> None:
    """Raise an `InputError` that lists the keys if the run here has another configuration.

    Fields that were added since the run began have the value that reproduces what it did.
    """
    changes = changed_keys(read_config(files.config), completed(config))
    # A field that nothing reads was accepted once; a run that has one goes on without it.
    changes = [change for change in changes if is_field(config, change.key)]
    if changes:
        raise InputError(
            f"{files.workdir} holds a run with another configuration ({listed(changes)}); go on "
            "with the old one, or choose another --workdir"
        )


def check_numerics(workdir: Path, starts: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to go on under settings of JAX that draw other random numbers or compute otherwise.

    Args:
      workdir: of the run, to be named.
      starts: of the run, the newest last; those before 2026-11-28 did not note their settings.

    Raises:
      InputError: a setting differs from that of the newest start which noted it; it is named.
    """
    noted = [start["numerics"] for start in starts if "numerics" in start]
    was: Mapping[str, Any] = noted[-1] if noted else {}
    now = numerics()
    other = [name for name in was if name in now and was[name] != now[name]]
    if other:
        listed_ = ", ".join(f"{name} = {was[name]!r}, now {now[name]!r}" for name in other)
        advice = " ".join(f"{name.upper()}={was[name]}" for name in other if was[name] is not None)
        unset = " ".join(name.upper() for name in other if was[name] is None)
        do = [f"set {advice}"] * bool(advice) + [f"unset {unset}"] * bool(unset)
        raise InputError(
            f"{workdir} was trained with other settings of JAX ({listed_}), and would go on as "
            f"another run; {' and '.join(do)} to go on, or choose another --workdir"
        )


def identity(config: ConfigDict, stop: int, dataset: Dataset) -> str:
    """What all processes of one run must have in common, as text."""
    same = {key: value for key, value in to_json(config).items() if key not in _OWN}
    return json.dumps([same, stop, dataset.fingerprint(), numerics()], sort_keys=True)


def begin(files: Layout, config: ConfigDict, dataset: Dataset) -> None:
    """Write what makes a directory a run; `config.json` comes last, so it vouches for the rest."""
    if not distributed.is_primary():
        return
    for stale in files.workdir.glob(".*.tmp"):  # a killed process was writing these
        stale.unlink()
    if files.config.exists():
        check_same(files, config)  # another process may have begun one since we looked
    else:
        dataset.save(files.world)
    write_config(files.config, config)


def record_start(path: Path, step: int) -> None:
    """Add this start, its versions and hardware, to a `provenance.json`."""
    start = {"step": step, "time": time.time(), **provenance()}
    write_json(path, [*read_starts(path), start])
