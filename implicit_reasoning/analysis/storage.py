"""Results on disk: what identifies one, when two can be merged, and writing under a lock.

A result is identified by its instrument, its version, its options, the world and the model. Results
of one identity merge by step. `analysis/<instrument>.nc` of a run holds one result; so does
`dictionaries/<set>/measured/<instrument>.nc`.
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
"""Attribute of a result that is kept in a run: a fingerprint of the parameters of every step."""

DICTIONARIES = "dictionaries"
"""Attribute of a result of dictionaries: a fingerprint of those of every step."""

BY_STEP = (CHECKPOINTS, DICTIONARIES)


def identity_of(instrument: BaseInstrument, subject: Subject) -> dict[str, Any]:
    """What has to be equal for numbers to be comparable.

    The wording of `definition` is not part of it.
    """
    return {
        "instrument": instrument.name,
        "version": instrument.version,
        # As they are read back from a file.
        "options": plain(instrument.options(), f"the options of instrument {instrument.name!r}"),
        "seed": SEED,
        "intervals": INTERVALS,
        "world": subject.dataset.fingerprint(),
        "model": dataclasses.asdict(subject.model.spec),
        # Numbers against the last checkpoint are others once training went on.
        "reference": subject.steps[-1] if _has_reference(instrument) else None,
    }


def _has_reference(instrument: BaseInstrument) -> bool:
    return isinstance(instrument, Instrument) and instrument.reference


def differences(old: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """How the identity in a result's attributes differs from `now`: `{what: (old, now)}`.

    Results that were kept before instruments had options are of instruments without. Results that
    do not name their intervals have percentiles of a bootstrap by first fact. Attributes of the
    model that were added since have the value that reproduces what the model did.
    """
    was: dict[str, Any] = {"options": {}, "intervals": 1} | dict(old)
    if isinstance(was.get("model"), Mapping):
        was["model"] = Spec.completed(was["model"])
    return {what: (was.get(what), now[what]) for what in now if was.get(what) != now[what]}


def check_identity(old: xr.Dataset, identity: Mapping[str, Any]) -> None:
    """Raise an `InputError` if a result has another identity, such as another version."""
    for what, (was, now) in differences(old.attrs, identity).items():
        another = f"other {what}" if what == "options" else f"another {what}"
        raise InputError(
            f"the result of instrument {identity['instrument']!r} that is there has {another} "
            f"({was!r}, now {now!r}); measure all of it again (--again)"
        )


def check_fingerprints(old: xr.Dataset, run: Run) -> None:
    """Raise an `InputError` if the last checkpoint of a result has other parameters now.

    Results from before fingerprints were noted are not checked.
    """
    prints = {int(step): found for step, found in old.attrs.get(CHECKPOINTS, {}).items()}
    known = [step for step in prints if step in run.steps]
    if known and run.fingerprint(max(known)) != prints[max(known)]:
        raise InputError(
            f"the result of instrument {old.attrs['instrument']!r} that is there is of other "
            f"parameters of step {max(known)} than {run.files.workdir} has now; measure all of it "
            "again (--again)"
        )


def merge(old: xr.Dataset, new: xr.Dataset) -> xr.Dataset:
    """Put new steps into what was measured before; a step that is in both is taken from `new`.

    Results are by `step`, or, of dictionaries, by `member`, each of which has a step.
    """
    [along] = new["step"].dims
    stay = ~np.isin(old["step"].values, new["step"].values)
    both = new
    if stay.any():
        parts = [old.isel({along: stay}), new]
        # Dictionaries and their baselines may differ in how many features there are.
        both = xr.concat(
            parts, along, data_vars="minimal", coords="different", compat="equals", join="outer"
        )
    by_step = {
        name: old.attrs.get(name, {}) | new.attrs[name] for name in BY_STEP if name in new.attrs
    }
    return both.sortby("step").assign_attrs(new.attrs | by_step)


def version_of_file(path: Path) -> tuple[int, int] | None:
    """What tells a file from the next one of that name; None where there is no file."""
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
    """Write a result, merged with the one that is there, which may be another process's.

    Args:
      path: of the file.
      new: the result.
      identity: of the result.
      stale: `version_of_file` of the file that the result replaces; any other is merged with.

    Raises:
      InputError: another process wrote a result of another identity; `new` is not kept.
    """
    with wait_for_lock(path.parent):
        there = version_of_file(path)
        if there is not None and there != stale:
            other = load_result(find_result(path))
            if different := differences(other.attrs, identity):
                what, (was, now) = next(iter(different.items()))
                raise InputError(
                    f"while instrument {identity['instrument']!r} measured {path.parent}, another "
                    f"process kept a result of another {what} ({was!r}, not {now!r}); the new one "
                    "is not kept; measure again when the other process has ended"
                )
            new = merge(other, new)
        save_arrays(path, new)
