"""Decide which results can be merged, merge them, and write them to disk under a lock.

The identity of a result is its instrument, version, options, world and model (see `identity_of`).
Results with equal identities are merged by step. The files `analysis/<instrument>.nc` of a run and
`dictionaries/<set>/measured/<instrument>.nc` hold one result each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from implicit_reasoning.analysis.instrument import SEED, BaseInstrument, Instrument
from implicit_reasoning.analysis.labels import plain
from implicit_reasoning.analysis.subject import Subject
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Spec
from implicit_reasoning.runs import Run, find_result, load_result, save_arrays
from implicit_reasoning.runtime.locks import wait_for_lock
from implicit_reasoning.runtime.machine import provenance
from implicit_reasoning.statistics import INTERVALS

CHECKPOINTS = "checkpoints"
"""Attribute of a run's result, with a fingerprint of the model's parameters at each step."""

DICTIONARIES = "dictionaries"
"""Attribute of a result for dictionaries, with a fingerprint of the dictionaries at each step."""

BY_STEP = (CHECKPOINTS, DICTIONARIES)


def identity_of(instrument: BaseInstrument, subject: Subject) -> dict[str, Any]:
    """Return the attributes that must be equal in two results for their numbers to be comparable.

    The wording of `definition` is not part of the identity.
    """
    compares = isinstance(instrument, Instrument) and instrument.reference
    return {
        "instrument": instrument.name,
        "version": instrument.version,
        # Options are normalised to the form in which a file returns them.
        "options": plain(instrument.options(), f"the options of instrument {instrument.name!r}"),
        "seed": SEED,
        "intervals": INTERVALS,
        "world": subject.dataset.fingerprint(),
        "model": dataclasses.asdict(subject.model.spec),
        # A comparison with the last checkpoint changes when training continues.
        "reference": subject.steps[-1] if compares else None,
    }


def attributes_of(
    instrument: BaseInstrument,
    identity: Mapping[str, Any],
    nulls: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return all attributes of a result: identity, definition, null controls and provenance.

    Args:
      instrument: the instrument that was run.
      identity: identity of the result.
      nulls: null controls of the result; default: those that the instrument declares.
    """
    found = dict(instrument.nulls if nulls is None else nulls)
    return {
        **identity,
        "definition": instrument.definition,
        "found_at": instrument.found_at,
        "nulls": plain(found, f"the nulls of instrument {instrument.name!r}"),
        "made_with": provenance(),
    }


def differences(old: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Compare the identity in a result's attributes with the identity `now`.

    Older versions did not write some attributes. A missing `options` means that the instrument had
    no options. A missing `intervals` means version 1: percentile bootstrap intervals by first fact.
    A missing field of `model` gets the value that reproduces the old behaviour.

    Returns:
      `{name: (old, now)}` for each attribute of `now` that differs.
    """
    was: dict[str, Any] = {"options": {}, "intervals": 1} | dict(old)
    if isinstance(was.get("model"), Mapping):
        was["model"] = Spec.completed(was["model"])
    return {what: (was.get(what), now[what]) for what in now if was.get(what) != now[what]}


def check_identity(old: xr.Dataset, identity: Mapping[str, Any]) -> None:
    """Raise an `InputError` if the identity of a result, such as its version, is not `identity`."""
    for what, (was, now) in differences(old.attrs, identity).items():
        raise InputError(
            f"saved result for {identity['instrument']!r} has {what} {was!r}, expected {now!r}; "
            "rerun with --again"
        )


def check_fingerprints(old: xr.Dataset, run: Run) -> None:
    """Raise an `InputError` if the parameters of the last measured checkpoint have changed.

    Results of older versions have no fingerprints and are not checked.
    """
    prints = {int(step): found for step, found in old.attrs.get(CHECKPOINTS, {}).items()}
    known = [step for step in prints if step in run.steps]
    if known and run.fingerprint(max(known)) != prints[max(known)]:
        raise InputError(
            f"saved result for {old.attrs['instrument']!r} is out of date: the parameters of step "
            f"{max(known)} in {run.files.workdir} have changed since they were measured; rerun "
            "with --again"
        )


def merge(old: xr.Dataset, new: xr.Dataset) -> xr.Dataset:
    """Merge the steps of two results. If a step is in both results, it is taken from `new`.

    Results of runs have the dimension `step`. Results of dictionaries have the dimension `member`,
    and each member has a step.
    """
    [along] = new["step"].dims
    stay = ~np.isin(old["step"].values, new["step"].values)
    both = new
    if stay.any():
        parts = [old.isel({along: stay}), new]
        # Dictionaries and their baselines may have different numbers of features.
        both = xr.concat(
            parts, along, data_vars="minimal", coords="different", compat="equals", join="outer"
        )
    by_step = {
        name: old.attrs.get(name, {}) | new.attrs[name] for name in BY_STEP if name in new.attrs
    }
    return both.sortby("step").assign_attrs(new.attrs | by_step)


def version_of_file(path: Path) -> tuple[int, int] | None:
    """Return the inode and modification time of a result file; None if the file does not exist.

    The value changes when the file is replaced.
    """
    path = find_result(path)
    if not path.exists():
        return None
    about = path.stat()
    return about.st_ino, about.st_mtime_ns


def save_merged(
    path: Path,
    new: xr.Dataset,
    identity: Mapping[str, Any],
    *,
    stale: tuple[int, int] | None = None,
) -> None:
    """Merge a result with the existing file, if there is one, and write it.

    Another process may have written the existing file during the measurement.

    Args:
      path: path of the file.
      new: the result to write.
      identity: identity of the result.
      stale: what `version_of_file` returned for a file whose contents must be discarded. If the
        existing file has a different version, another process replaced it, and its contents are
        merged. None means that the contents of any existing file are merged.

    Raises:
      InputError: the existing file has a different identity, because another process wrote it.
        `new` is then not written.
    """
    with wait_for_lock(path.parent):
        there = version_of_file(path)
        if there is not None and there != stale:
            other = load_result(find_result(path))
            if different := differences(other.attrs, identity):
                what, (was, now) = next(iter(different.items()))
                raise InputError(
                    f"while instrument {identity['instrument']!r} measured {path.parent}, "
                    f"another process saved a result with {what} {was!r} instead of {now!r}, so "
                    "the new result is not saved; measure again when the other process has ended"
                )
            new = merge(other, new)
        save_arrays(path, new)
