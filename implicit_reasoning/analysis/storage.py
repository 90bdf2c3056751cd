"""Results on disk: their identity, merging, and writing under a lock.

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
from implicit_reasoning.statistics import INTERVALS

CHECKPOINTS = "checkpoints"
"""Attribute of a result of a run: a fingerprint of the parameters at each step."""

DICTIONARIES = "dictionaries"
"""Attribute of a result of dictionaries: a fingerprint of the dictionaries at each step."""

BY_STEP = (CHECKPOINTS, DICTIONARIES)


def identity_of(instrument: BaseInstrument, subject: Subject) -> dict[str, Any]:
    """Return the attributes that two results must share for their numbers to be comparable.

    The wording of `definition` is not part of the identity.
    """
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
        "reference": subject.steps[-1] if _has_reference(instrument) else None,
    }


def _has_reference(instrument: BaseInstrument) -> bool:
    return isinstance(instrument, Instrument) and instrument.reference


def differences(old: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return how the identity in a result's attributes differs from `now`, as `{name: (old, now)}`.

    Attributes that older versions did not write get these defaults: a result without options has
    none, a result that does not name its intervals has percentile bootstrap intervals by first
    fact, and a missing model attribute has the value that reproduces the old behaviour.
    """
    was: dict[str, Any] = {"options": {}, "intervals": 1} | dict(old)
    if isinstance(was.get("model"), Mapping):
        was["model"] = Spec.completed(was["model"])
    return {what: (was.get(what), now[what]) for what in now if was.get(what) != now[what]}


def check_identity(old: xr.Dataset, identity: Mapping[str, Any]) -> None:
    """Raise an `InputError` if a result has a different identity, such as another version."""
    for what, (was, now) in differences(old.attrs, identity).items():
        raise InputError(
            f"saved result for {identity['instrument']!r} has {what} {was!r}, expected {now!r}; "
            "rerun with --again"
        )


def check_fingerprints(old: xr.Dataset, run: Run) -> None:
    """Raise an `InputError` if the parameters of the last measured checkpoint have changed.

    Results without fingerprints, from older versions, are not checked.
    """
    prints = {int(step): found for step, found in old.attrs.get(CHECKPOINTS, {}).items()}
    known = [step for step in prints if step in run.steps]
    if known and run.fingerprint(max(known)) != prints[max(known)]:
        raise InputError(
            f"saved result for {old.attrs['instrument']!r} was measured with other parameters of "
            f"step {max(known)} than {run.files.workdir} has now; rerun with --again"
        )


def merge(old: xr.Dataset, new: xr.Dataset) -> xr.Dataset:
    """Merge the steps of two results; a step that is in both is taken from `new`.

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
    """Return the inode and modification time of a result file; None if it does not exist.

    They change when the file is replaced by another one with the same name.
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
    """Write a result, merged with an existing file, which another process may have written.

    Args:
      path: path of the file.
      new: the result to write.
      identity: identity of the result.
      stale: `version_of_file` of the file to replace. The result is merged with any other file.

    Raises:
      InputError: another process wrote a result with a different identity; `new` is not written.
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
