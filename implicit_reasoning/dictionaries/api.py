"""Measure dictionaries with instruments, and save the results in the run.

The results of an instrument are saved in `dictionaries/<set>/measured/<instrument>.nc`. Only
checkpoints without a saved result are measured. Instruments that must measure the same checkpoints
share compiled programs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from implicit_reasoning.analysis import storage
from implicit_reasoning.analysis.api import load_instrument
from implicit_reasoning.analysis.instrument import NotApplicable
from implicit_reasoning.analysis.storage import (
    CHECKPOINTS,
    DICTIONARIES,
    attributes_of,
    identity_of,
)
from implicit_reasoning.dictionaries.evolution import Evolution, over_training
from implicit_reasoning.dictionaries.instrument import DictionaryInstrument, ExampleSource
from implicit_reasoning.dictionaries.measure import Chosen, example_source, measure
from implicit_reasoning.dictionaries.results import open_measured
from implicit_reasoning.dictionaries.store import ALL_STEPS, TRAINED, UNTRAINED, Dictionaries, Files
from implicit_reasoning.errors import InputError
from implicit_reasoning.runs import Run, load_arrays
from implicit_reasoning.runtime.progress import say

_HERE = "implicit_reasoning.dictionaries.measures"
INSTRUMENTS = {
    "reconstruction": f"{_HERE}.reconstruction:Reconstruction",
    "answers": f"{_HERE}.answers:Spliced",
    "concepts": f"{_HERE}.concepts:Concepts",
    "roles": f"{_HERE}.roles:Roles",
    "absorption": f"{_HERE}.absorption:Absorption",
    "superposition": f"{_HERE}.superposition:Superposition",
    "bridge_superposition": f"{_HERE}.superposition:BridgeSuperposition",
    "use": f"{_HERE}.use:Use",
}
"""The built-in instruments, by name. Other instruments are found by import path."""

_FOLLOWS_THE_RUN = {"intervals", "world", "model", "set"}
"""Keys of a result's identity whose change causes a new measurement.

A change of any other key raises an error.
"""


def measure_dictionaries(
    run: Run,
    made: Dictionaries,
    instruments: Sequence[str | DictionaryInstrument] | None = None,
    *,
    again: bool = False,
) -> xr.Dataset:
    """Compute missing results of a set of dictionaries, and return all results.

    A saved result is valid for a checkpoint if the parameters of the model and of the dictionaries
    are unchanged since the measurement. The function measures all checkpoints without a valid
    result and merges the new results into the saved file. If the run or the parameters changed, the
    function reports the change on standard error. The returned table ignores a file `measured.nc`
    that an earlier version wrote.

    Args:
      run: the run whose model the dictionaries were trained on.
      made: the set of dictionaries to measure.
      instruments: instruments, keys of `INSTRUMENTS`, or import paths such as
        `package.module:Class` and `/path/to/file.py:Class`. The default is all built-in instruments
        that apply to the set.
      again: whether to measure all checkpoints again and replace the saved results.

    Returns:
      A dataset with the dimension `member`. `results.open_measured` describes the layout. The
      dataset does not include results of user-defined instruments, which are only saved.

    Raises:
      NotApplicable: an instrument in `instruments` does not apply to the run's task or to the
        dictionaries.
      InputError: an instrument does not exist, no instrument has results, or a saved result has a
        different version or different settings than the instrument.
    """
    files, source = Files.of(run, made.config.name), example_source(run, made)
    missing: dict[tuple[int, ...], list[Chosen]] = {}
    stale: dict[str, tuple[int, int] | None] = {}
    for one in choose_instruments(source, instruments):
        path = files.result(one.name)
        before = storage.version_of_file(path)
        steps, replace = _missing(run, made, one, path, again)
        stale[one.name] = before if replace else None
        if steps:
            missing.setdefault(steps, []).append(one)
    for steps, chosen in missing.items():
        # The fingerprints are taken before measuring, because training may go on meanwhile.
        prints = _fingerprints(run, made, steps)
        found = measure(source, made, chosen, steps, progress=made.config.progress)
        for one, result in zip(chosen, found, strict=True):
            result = result.assign_attrs(_about(run, made, one, source, result) | prints)
            identity = _identity(run, made, one.instrument)
            storage.save_merged(files.result(one.name), result, identity, stale=stale[one.name])
    if missing:
        _compare_over_training(run, made, files)
    table = open_measured(run, made.config.name)
    if table is None:
        raise InputError(
            f"{run} has no measured results for the dictionaries {made.config.name!r}; choose at "
            "least one built-in instrument that applies to the dictionaries"
        )
    return table


def choose_instruments(
    source: ExampleSource, instruments: Sequence[str | DictionaryInstrument] | None = None
) -> list[Chosen]:
    """Find instruments by name, and choose the examples of each instrument.

    The default is all built-in instruments that apply to `source`.

    Raises:
      NotApplicable: an instrument in `instruments` does not apply to `source`.
    """
    chosen = []
    for name in INSTRUMENTS if instruments is None else instruments:
        instrument = find_instrument(name)
        try:
            chosen.append(Chosen(instrument, _examples(instrument, source)))
        except NotApplicable:
            if instruments is not None:
                raise
    return chosen


def find_instrument(name: str | DictionaryInstrument) -> DictionaryInstrument:
    """Return the instrument with the given name or import path.

    A name is a key of `INSTRUMENTS`. An import path is `package.module:Class` or
    `/path/to/file.py:Class`. If `name` is already an instrument, the function returns `name`
    unchanged.
    """
    found: DictionaryInstrument = load_instrument(name, INSTRUMENTS, DictionaryInstrument)
    return found


def _examples(instrument: DictionaryInstrument, source: ExampleSource) -> Any:
    if instrument.needs_model and any(member.step == ALL_STEPS for member in source.members):
        raise NotApplicable(
            f"instrument {instrument.name!r} runs the model of one checkpoint and does not apply "
            "to crosscoders, which read several checkpoints"
        )
    return instrument.examples(source)


def _missing(
    run: Run, made: Dictionaries, one: Chosen, path: Path, again: bool
) -> tuple[tuple[int, ...], bool]:
    """Return the steps to measure, and whether their results replace the saved file."""
    wanted = tuple(dict.fromkeys(member.step for member in made.members))
    if again or not path.exists():
        return wanted, again
    old, identity = load_arrays(path), _identity(run, made, one.instrument)
    if changed := storage.differences(old.attrs, identity).keys():
        if not changed <= _FOLLOWS_THE_RUN:
            storage.check_identity(old, identity)
        _say(path, " and ".join(changed), made)
        return wanted, True
    there = set(old["step"].values.tolist())
    now = _fingerprints(run, made, wanted)
    others = {
        name: [step for step in there & set(wanted) if was.get(str(step)) != prints[str(step)]]
        for name, prints in now.items()
        for was in [old.attrs.get(name, {})]
    }
    if any(others.values()):
        _say(path, " and ".join(name for name, steps in others.items() if steps), made)
    outdated = {step for steps in others.values() for step in steps}
    return tuple(step for step in wanted if step not in there or step in outdated), False


def _say(path: Path, what: str, made: Dictionaries) -> None:
    if made.config.progress:
        say(f"{path}: {what} changed after the measurement; measuring again")


def _identity(run: Run, made: Dictionaries, instrument: Any) -> dict[str, Any]:
    """Return the attributes that must be equal for results of two steps to be comparable."""
    about = {
        # Attributes in files keep their old names, so that old and new results can be merged.
        "kind": made.config.architecture,
        "sizes": dataclasses.asdict(made.dictionary.architecture),
        "architecture": made.dictionary.saelens_architecture,
        "positions": list(made.config.positions),
        "baselines": bool(made.config.baselines),
    }
    return identity_of(instrument, run) | {"set": about}


def _fingerprints(run: Run, made: Dictionaries, steps: Sequence[int]) -> dict[str, dict[str, str]]:
    """Return digests of the checkpoints' and the dictionaries' parameters, by step."""
    of = {member.step: member.steps for member in made.members}
    return {
        CHECKPOINTS: {str(s): " ".join(run.fingerprint(one) for one in of[s]) for s in steps},
        DICTIONARIES: {str(step): made.fingerprint(step) for step in steps},
    }


def _about(
    run: Run, made: Dictionaries, one: Chosen, source: ExampleSource, result: xr.Dataset
) -> dict[str, Any]:
    """Return a result's attributes. Baselines and dictionaries of step 0 are null controls."""
    instrument = one.instrument
    nulls = dict(instrument.nulls)
    nulls |= {name: {"what": name} for name in dict.fromkeys(result["what"].values.tolist())}
    del nulls[TRAINED]
    if 0 in result["step"].values[result["what"].values == TRAINED]:
        nulls[UNTRAINED] = {"step": 0}
    return {
        **attributes_of(instrument, _identity(run, made, instrument), nulls),
        "group": instrument.group,
        "groups": list(one.examples.groups),
        "n_states": int(source.split.held_out.sum()),
        "n_trained": int(source.split.trained.sum()),
        "start": made.config.start,
    }


def _compare_over_training(run: Run, made: Dictionaries, files: Files) -> None:
    """Compare all steps and seeds again, because a new step may precede a step that is saved."""
    if not files.result("reconstruction").exists():
        return
    table = open_measured(run, made.config.name)
    assert table is not None
    own = table.sel(member=(table["what"] == TRAINED).values)
    result = over_training(made, own)
    path, identity = files.result(Evolution.name), _identity(run, made, Evolution())
    result = result.assign_attrs(attributes_of(Evolution(), identity) | {"group": ""})
    storage.save_merged(path, result, identity, stale=storage.version_of_file(path))
