"""`analyze(run, "lens")`: find instruments by name, measure what is missing, keep it in the run."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import xarray as xr

from implicit_reasoning import imports
from implicit_reasoning.analysis.instrument import Instrument, NotApplicable
from implicit_reasoning.analysis.runner import check_same, measure, merge
from implicit_reasoning.errors import InputError
from implicit_reasoning.runs import Run

_HERE = "implicit_reasoning.analysis"
INSTRUMENTS = {
    "behaviour": f"{_HERE}.behaviour:Behaviour",
    "lens": f"{_HERE}.reading.lens:LogitLens",
    "tuned_lens": f"{_HERE}.reading.tuned_lens:TunedLens",
    "decoding": f"{_HERE}.reading.decoding:Decoding",
    "probes": f"{_HERE}.reading.probes:Probes",
    "geometry": f"{_HERE}.reading.geometry:Geometry",
    "corruption": f"{_HERE}.patching.corruption:Corruption",
    "cross_query": f"{_HERE}.patching.cross_query:CrossQuery",
    "back_patching": f"{_HERE}.patching.back_patching:BackPatching",
    "parameter_patching": f"{_HERE}.patching.parameters:ParameterPatching",
    "swap": f"{_HERE}.variables.swap:ClassMeanSwap",
    "erasure": f"{_HERE}.variables.erasure:Erasure",
    "das": f"{_HERE}.variables.das:Alignment",
}
"""Those that come with the lab, in the order of the report; others are found by import path."""


def analyze(
    run: Run,
    instrument: str | Instrument,
    *,
    steps: Sequence[int] | None = None,
    again: bool = False,
    progress: bool = True,
) -> xr.Dataset:
    """Measure a run's checkpoints with one instrument, and keep it in `analysis/<name>.nc`.

    What is kept already is not measured again; new steps are merged into it.

    Args:
      run: to measure.
      instrument: its name (of `INSTRUMENTS`, or `package.module:Class`, or
        `/path/to/file.py:Class`), or the instrument itself.
      steps: which checkpoints; all by default.
      again: measure also what is there, and forget what was.
      progress: show a bar on standard error.

    Returns:
      The result, with all steps there are.

    Raises:
      NotApplicable: the instrument is not for this run's task.
      InputError: no such instrument or step, or a result is there of another version of it.
    """
    instrument = find_instrument(instrument)
    if not run.steps:
        raise InputError(f"{run.files.workdir} has no checkpoints yet; there is nothing to measure")
    wanted = tuple(run.steps if steps is None else dict.fromkeys(steps))
    if unknown := [step for step in wanted if step not in run.steps]:
        raise InputError(
            f"{run.files.workdir} has no checkpoint of step {unknown[0]}; there are {run.steps}"
        )
    path = run.files.analysis / f"{instrument.name}.nc"
    old = run.result(instrument.name) if path.exists() and not again else None
    if old is not None:
        check_same(old, instrument, run)
        wanted = tuple(step for step in wanted if step not in old.step.values)
        if not wanted:
            return old
    new = measure(instrument, run, wanted, progress=progress)
    result = new if old is None else merge(old, new)
    run.save_result(instrument.name, result)
    return result


def analyze_all(
    run: Run,
    instruments: Sequence[str | Instrument] | None = None,
    *,
    steps: Sequence[int] | None = None,
    again: bool = False,
    progress: bool = True,
) -> dict[str, xr.Dataset]:
    """`analyze` with several instruments; results by name.

    By default these are all that are marked so, but for those that are not for the run's task.
    """
    chosen = default_instruments() if instruments is None else map(find_instrument, instruments)
    results = {}
    for instrument in chosen:
        try:
            results[instrument.name] = analyze(
                run, instrument, steps=steps, again=again, progress=progress
            )
        except NotApplicable:
            if instruments is not None:
                raise
    return results


def default_instruments() -> list[Instrument]:
    """What is measured where nothing is named."""
    found = [find_instrument(name) for name in INSTRUMENTS]
    return [instrument for instrument in found if instrument.default]


def find_instrument(name: str | Instrument) -> Instrument:
    """The instrument behind a name; see `analyze`."""
    if isinstance(name, Instrument):
        return name
    where = INSTRUMENTS.get(name, name)
    if ":" not in where:
        close = difflib.get_close_matches(name, INSTRUMENTS, n=1)
        hint = f" - did you mean {close[0]!r}?" if close else ""
        raise InputError(
            f"unknown instrument {name!r}{hint} Known: {', '.join(INSTRUMENTS)}; or "
            "package.module:Class or /path/to/file.py:Class for one of your own"
        )
    source, _, attribute = where.rpartition(":")
    kind = getattr(imports.load(source, "instrument"), attribute, None)
    if not (isinstance(kind, type) and issubclass(kind, Instrument)):
        raise InputError(f"instrument {name!r}: {source} has no class {attribute!r} of instruments")
    instrument: Instrument = kind()
    instrument.found_at = where
    return instrument
