"""`analyze(run, "lens")`: find instruments by name, measure what is missing, keep it in the run."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence

import xarray as xr
from tqdm import tqdm

from implicit_reasoning import imports
from implicit_reasoning.analysis import used
from implicit_reasoning.analysis.instrument import Instrument, NotApplicable
from implicit_reasoning.analysis.runner import (
    CHECKPOINTS,
    between,
    check_same,
    differences,
    identity_of,
    merge,
)
from implicit_reasoning.analysis.seeds import measure_seeds
from implicit_reasoning.errors import InputError
from implicit_reasoning.runs import HeldStore, Run
from implicit_reasoning.runtime.locks import waiting_turn
from implicit_reasoning.runtime.machine import memory_per_program

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

    What is kept already is not measured again; new steps are merged into it. Numbers against the
    last checkpoint are measured anew, with all steps that were there, once training went on.

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
      InputError: no such instrument or step, or a result is there of another version of it, or
        with other options.
    """
    return analyze_runs([run], instrument, steps=steps, again=again, progress=progress)[0]


def analyze_runs(
    runs: Sequence[Run],
    instrument: str | Instrument,
    *,
    steps: Sequence[int] | None = None,
    again: bool = False,
    progress: bool = True,
) -> list[xr.Dataset]:
    """`analyze` for several runs, such as seeds: those of one model and dataset in one program.

    Each run keeps its own result. To have them in one array: `xr.concat(results, "run")`, and
    `statistics.mean_over_seeds` for their mean.
    """
    instrument = find_instrument(instrument)
    # Parameters are read once, to be measured and to be fingerprinted.
    runs = [_holding(run, len(runs)) for run in runs]
    before = [_seen(run, instrument) for run in runs]
    there: list[xr.Dataset | None] = []
    missing: dict[tuple[int, ...], list[int]] = {}
    for number, run in enumerate(runs):
        old, outdated = _there(run, instrument, again, progress)
        there.append(old)
        missing.setdefault(_missing(run, old, steps, outdated), []).append(number)
    for wanted, numbers in missing.items():
        if not wanted:
            continue
        chosen = [runs[number] for number in numbers]
        measured = measure_seeds(instrument, chosen, wanted, progress=progress)
        for number, new in zip(numbers, measured, strict=True):
            run = runs[number]
            prints = {str(step): run.fingerprint(step) for step in wanted}
            new = new.assign_attrs({CHECKPOINTS: prints})
            stale = before[number] if there[number] is None else None
            _keep(run, instrument, new, stale)
    return [run.result(instrument.name) for run in runs]


def _holding(run: Run, count: int) -> Run:
    """The run, keeping in memory the checkpoints it reads, unless it does so already."""
    if isinstance(run.store, HeldStore):
        return run
    return run.held(memory_per_program() // max(1, count))


def _seen(run: Run, instrument: Instrument) -> tuple[int, int] | None:
    """What tells one file of a result from the next one of that name; None: there is none."""
    path = run.files.analysis / f"{instrument.name}.nc"
    if not path.exists():
        return None
    about = path.stat()
    return about.st_ino, about.st_mtime_ns


def _keep(run: Run, instrument: Instrument, new: xr.Dataset, stale: tuple[int, int] | None) -> None:
    """Put a result beside what is there now, which another process may have written meanwhile.

    Args:
      run: measured.
      instrument: of the result.
      new: the result.
      stale: the file that it is to replace; any other is merged with.

    Raises:
      InputError: what was written meanwhile is not comparable; `new` is not kept.
    """
    with waiting_turn(run.files.analysis):
        there = _seen(run, instrument)
        if there is not None and there != stale:
            other = run.result(instrument.name)
            identity = identity_of(instrument, run) | {"reference": new.attrs["reference"]}
            if different := between(other.attrs, identity):
                what, (was, now) = next(iter(different.items()))
                raise InputError(
                    f"while instrument {instrument.name!r} measured {run.files.workdir}, another "
                    f"process kept a result of another {what} ({was!r}, not {now!r}); the new one "
                    "is not kept; measure again when the other process has ended"
                )
            new = merge(other, new)
        run.save_result(instrument.name, new)


def _there(
    run: Run, instrument: Instrument, again: bool, progress: bool
) -> tuple[xr.Dataset | None, list[int]]:
    """What is kept already and can be gone on from, or else the steps it had, to measure anew."""
    if again or not (run.files.analysis / f"{instrument.name}.nc").exists():
        return None, []
    old = run.result(instrument.name)
    different = differences(old, instrument, run)
    # Nobody chose otherwise: training went on, and the last checkpoint is another; or this version
    # of the lab has other intervals, of which a result must not hold two kinds.
    changed, there = different.keys(), set(old.step.values.tolist()) <= set(run.steps)
    if changed and changed <= {"reference", "intervals"} and (there or "intervals" not in changed):
        if progress:
            about = "have the intervals of an earlier version"
            if "reference" in different:
                was, now = different["reference"]
                about = f"were held against step {was}, the last one now is {now}"
            say = f"{run.files.workdir}: numbers of {instrument.name} {about}; measuring them anew"
            tqdm.write(say, file=sys.stderr)
        return None, old.step.values.tolist()
    check_same(old, instrument, run)
    _check_fingerprint(run, old, instrument)
    return old, []


def _check_fingerprint(run: Run, old: xr.Dataset, instrument: Instrument) -> None:
    """Refuse a result whose last checkpoint is another now; old ones do not say which it was."""
    prints = {int(step): found for step, found in old.attrs.get(CHECKPOINTS, {}).items()}
    known = [step for step in prints if step in run.steps]
    if known and run.fingerprint(max(known)) != prints[max(known)]:
        raise InputError(
            f"the result of instrument {instrument.name!r} that is there is of other parameters of "
            f"step {max(known)} than {run.files.workdir} has now; measure all of it again (--again)"
        )


def _missing(
    run: Run, old: xr.Dataset | None, steps: Sequence[int] | None, outdated: Sequence[int]
) -> tuple[int, ...]:
    """Steps that are wanted and not yet measured, or no longer as they have to be."""
    if not run.steps:
        raise InputError(f"{run.files.workdir} has no checkpoints yet; there is nothing to measure")
    wanted = tuple(run.steps if steps is None else dict.fromkeys(steps))
    if unknown := [step for step in wanted if step not in run.steps]:
        raise InputError(
            f"{run.files.workdir} has no checkpoint of step {unknown[0]}; there are {run.steps}"
        )
    if outdated:
        return tuple(step for step in run.steps if step in wanted or step in outdated)
    return wanted if old is None else tuple(s for s in wanted if s not in old.step.values)


def analyze_all(
    runs: Run | Sequence[Run],
    instruments: Sequence[str | Instrument] | None = None,
    *,
    steps: Sequence[int] | None = None,
    again: bool = False,
    progress: bool = True,
) -> list[str]:
    """`analyze_runs` with several instruments; returns the names of those that were run.

    By default these are all that are marked so, but for those that are not for the runs' task.
    """
    given = [runs] if isinstance(runs, Run) else runs
    memory = memory_per_program() // max(1, len(given))
    runs = [run.held(memory) for run in given]
    chosen = default_instruments() if instruments is None else map(find_instrument, instruments)
    names = []
    for instrument in chosen:
        try:
            analyze_runs(runs, instrument, steps=steps, again=again, progress=progress)
        except NotApplicable:
            if instruments is not None:
                raise
        else:
            names.append(instrument.name)
    for run in runs:
        with waiting_turn(run.files.analysis):
            used.keep(run)
    return names


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
