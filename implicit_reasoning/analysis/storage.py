"""Merge results, and write results to disk under a lock.

The identity of a result consists of its instrument, version, options, world and model (see
`identity_of`). Results with equal identities are merged by step. Results with different identities
cannot be merged. The files `analysis/<instrument>.nc` and
`dictionaries/<set>/measured/<instrument>.nc` of a run contain one result each.
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
    """Return the identity of the result that an instrument measures on a subject.

    The identity is a dict of attributes, such as version and options. Two results can be merged
    only if all these attributes are equal.

    The text `definition` is not part of the identity.
    """
    compares = isinstance(instrument, Instrument) and instrument.reference
    return {
        "instrument": instrument.name,
        "version": instrument.version,
        # Options are normalized to the form in which a file returns them.
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
    """Return the attributes of a result: identity, definition, null controls and provenance.

    Args:
      instrument: the instrument that was run.
      identity: the identity of the result, from `identity_of`.
      nulls: the null controls of the result; default: `instrument.nulls`.
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
    """Compare the identity of a saved result with an expected identity.

    Older versions of the package did not save all attributes. Missing `options` mean that the
    instrument had no options. Missing `intervals` mean version 1 (percentile bootstrap, clustered
    by first fact). If a field of `model` is missing, the value that reproduces the old behavior is
    used.

    Args:
      old: the attributes of the saved result.
      now: the expected identity, from `identity_of`.

    Returns:
      For each attribute that differs, by name, the pair (saved value, expected value).
    """
    was: dict[str, Any] = {"options": {}, "intervals": 1} | dict(old)
    if isinstance(was.get("model"), Mapping):
        was["model"] = Spec.completed(was["model"])
    return {what: (was.get(what), now[what]) for what in now if was.get(what) != now[what]}


def check_identity(old: xr.Dataset, identity: Mapping[str, Any]) -> None:
    """Check that a saved result has the expected identity.

    Args:
      old: the saved result.
      identity: the expected identity, from `identity_of`.

    Raises:
      InputError: an attribute of the identity differs, such as the version.
    """
    for what, (was, now) in differences(old.attrs, identity).items():
        raise InputError(
            f"saved result for {identity['instrument']!r} has {what} {was!r}, expected {now!r}; "
            "rerun with --again"
        )


def check_fingerprints(old: xr.Dataset, run: Run) -> None:
    """Check that the parameters of the last measured checkpoint have not changed.

    Results of older versions of the package have no fingerprints of parameters. These results are
    not checked.

    Args:
      old: the saved result.
      run: the run that was measured.

    Raises:
      InputError: the parameters have changed since the measurement.
    """
    prints = {int(step): found for step, found in old.attrs.get(CHECKPOINTS, {}).items()}
    known = [step for step in prints if step in run.steps]
    if known and run.fingerprint(max(known)) != prints[max(known)]:
        raise InputError(
            f"saved result for {old.attrs['instrument']!r} is out of date: the parameters of step "
            f"{max(known)} in {run.files.workdir} have changed since the measurement; rerun with "
            "--again"
        )


def merge(old: xr.Dataset, new: xr.Dataset) -> xr.Dataset:
    """Merge two results by step. If both results contain a step, the values of `new` are used.

    Results for runs have the dimension `step`. Results for dictionaries have the dimension
    `member`, with a coordinate `step`.
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
    """Return a value that changes when a result file is replaced.

    The value consists of the inode and the modification time. The value is None if the file does
    not exist.
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
    """Write a result to a file, merged with the result that the file contains.

    Another process can write the file during the measurement. A lock prevents simultaneous writes.

    Args:
      path: path of the file.
      new: the result to write.
      identity: the identity of the result, from `identity_of`.
      stale: the value that `version_of_file` returned for a result that is no longer needed. If the
        value has not changed, the file is overwritten. Otherwise, another process has replaced the
        file, and the results are merged. None means that all existing results are needed.

    Raises:
      InputError: another process has written a result with a different identity. The file is then
        not changed.
    """
    with wait_for_lock(path.parent):
        there = version_of_file(path)
        if there is not None and there != stale:
            other = load_result(find_result(path))
            if different := differences(other.attrs, identity):
                what, (was, now) = next(iter(different.items()))
                raise InputError(
                    f"the new result for {identity['instrument']!r} is not saved, because another "
                    f"process has saved a result in {path.parent} whose {what} is {was!r}, not "
                    f"{now!r}; measure again after the other process has ended"
                )
            new = merge(other, new)
        save_arrays(path, new)
