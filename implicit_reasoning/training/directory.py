"""Beginning a run directory, or coming back to one: the same experiment, and nobody else in it."""

from __future__ import annotations

import contextlib
import json
import time
from contextlib import AbstractContextManager

from ml_collections import ConfigDict

from implicit_reasoning.config import changed_keys, from_json, listed, to_json
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import held, read_json, write_json
from implicit_reasoning.machine import provenance
from implicit_reasoning.runs import Layout, read_metrics, read_starts
from implicit_reasoning.training import distributed, fields
from implicit_reasoning.worlds import Dataset, build

# What may differ between the processes of one run.
_OWN = ("distributed", "writers", "profile")


def exclusive(files: Layout) -> AbstractContextManager[None]:
    """Hold the directory; an `InputError` if another process trains in it.

    Of a run of many processes, the one that writes holds it.
    """
    if not distributed.writes():
        return contextlib.nullcontext()
    return held(
        files.workdir,
        f"another process is training in {files.workdir}; wait for it, or choose another --workdir",
    )


def open_dataset(files: Layout, config: ConfigDict) -> Dataset:
    """The dataset of a run that began before, or a new one; nothing is written yet.

    Raises:
      InputError: the run that began here had another configuration, or one of its files is damaged,
        or this configuration makes no dataset.
    """
    if not files.config.exists():
        return build(config.task)
    check_same(files, config)
    # Damage that will be met later is found here, before anything is changed.
    read_metrics(files.metrics)
    read_starts(files.provenance)
    return Dataset.load(files.world)


def check_same(files: Layout, config: ConfigDict) -> None:
    """Raise an `InputError` that lists the keys if the run here has another configuration."""
    changes = changed_keys(from_json(read_json(files.config)), config)
    # A field that nothing reads was accepted once; a run that has one goes on without it.
    changes = [change for change in changes if fields.is_field(config, change.key)]
    if changes:
        raise InputError(
            f"{files.workdir} holds a run with another configuration ({listed(changes)}); go on "
            "with the old one, or choose another --workdir"
        )


def identity(config: ConfigDict, stop: int, dataset: Dataset) -> str:
    """What all processes of one run must have in common, as text."""
    same = {key: value for key, value in to_json(config).items() if key not in _OWN}
    return json.dumps([same, stop, dataset.fingerprint()], sort_keys=True)


def begin(files: Layout, config: ConfigDict, dataset: Dataset) -> None:
    """Write what makes a directory a run; `config.json` comes last, so it vouches for the rest."""
    if not distributed.writes():
        return
    for stale in files.workdir.glob(".*.tmp"):  # a killed process was writing these
        stale.unlink()
    if files.config.exists():
        check_same(files, config)  # another process may have begun one since we looked
    else:
        dataset.save(files.world)
    write_json(files.config, to_json(config))


def record_start(files: Layout, step: int) -> None:
    """Add this start, its versions and hardware, to `provenance.json`."""
    starts = read_starts(files.provenance)
    write_json(files.provenance, [*starts, {"step": step, "time": time.time(), **provenance()}])
