"""Measure runs with instruments, and save the results.

Example: `analyze(run, "lens")`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

from implicit_reasoning import imports
from implicit_reasoning.analysis import storage, used
from implicit_reasoning.analysis.instrument import Instrument, NotApplicable
from implicit_reasoning.analysis.patching.pair_instrument import PairInstrument
from implicit_reasoning.analysis.seeds import measure_seeds
from implicit_reasoning.analysis.storage import CHECKPOINTS, identity_of
from implicit_reasoning.errors import InputError
from implicit_reasoning.runs import (
    CachedStore,
    Run,
    current_instrument,
    find_result,
    load_result,
)
from implicit_reasoning.runtime.locks import wait_for_lock
from implicit_reasoning.runtime.machine import memory_per_program
from implicit_reasoning.runtime.progress import write

_HERE = "implicit_reasoning.analysis"
INSTRUMENTS = {
    "behaviour": f"{_HERE}.behaviour:Behaviour",
    "lens": f"{_HERE}.reading.lens:LogitLens",
    "tuned_lens": f"{_HERE}.reading.tuned_lens:TunedLens",
    "decoding": f"{_HERE}.reading.decoding:Decoding",
    "probes": f"{_HERE}.reading.probes:Probes",
    "geometry": f"{_HERE}.reading.geometry:Geometry",
    "activation_patching": f"{_HERE}.patching.activation_patching:ActivationPatching",
    "cross_query_patching": f"{_HERE}.patching.cross_query_patching:CrossQueryPatching",
    "pair_patching": f"{_HERE}.patching.pair_patching:PairPatching",
    "neuron_patching": f"{_HERE}.patching.neurons:NeuronPatching",
    "back_patching": f"{_HERE}.patching.back_patching:BackPatching",
    "parameter_patching": f"{_HERE}.patching.parameters:ParameterPatching",
    "direct_logit_attribution": (
        f"{_HERE}.components.direct_logit_attribution:DirectLogitAttribution"
    ),
    "attribution": f"{_HERE}.components.attribution:Attribution",
    "neuron_attribution": f"{_HERE}.components.neuron_attribution:NeuronAttribution",
    "ablation": f"{_HERE}.components.ablation:Ablation",
    "attention": f"{_HERE}.components.attention:Attention",
    "head_scores": f"{_HERE}.components.head_scores:HeadScores",
    "head_circuits": f"{_HERE}.components.head_circuits:HeadCircuits",
    "head_moves": f"{_HERE}.components.head_moves:HeadMoves",
    "neuron_keys": f"{_HERE}.components.neuron_keys:NeuronKeys",
    "neuron_importance": f"{_HERE}.components.neuron_importance:NeuronImportance",
    "fact_neurons": f"{_HERE}.components.fact_neurons:FactNeurons",
    "enrichment": f"{_HERE}.components.enrichment:Enrichment",
    "fourier_progress": f"{_HERE}.components.fourier_progress:FourierProgress",
    "composition_progress": f"{_HERE}.components.composition_progress:CompositionProgress",
    "edge_patching": f"{_HERE}.circuits.edge_patching:EdgePatching",
    "circuit_discovery": f"{_HERE}.circuits.circuit_discovery:CircuitDiscovery",
    "causal_scrubbing": f"{_HERE}.circuits.causal_scrubbing:CausalScrubbing",
    "mean_swap": f"{_HERE}.variables.mean_swap:MeanSwap",
    "erasure": f"{_HERE}.variables.erasure:Erasure",
    "das": f"{_HERE}.variables.das:Alignment",
    "steering": f"{_HERE}.steering.steering:Steering",
    "knowledge_editing": f"{_HERE}.editing.knowledge_editing:KnowledgeEditing",
}
"""Import paths of the built-in instruments by name. The report shows instruments in this order."""


def analyze(
    run: Run,
    instrument: str | Instrument,
    *,
    steps: Sequence[int] | None = None,
    again: bool = False,
    progress: bool = True,
) -> xr.Dataset:
    """Measure a run's checkpoints with one instrument, and save the result.

    The result is saved in `analysis/<name>.nc` in the folder of the run.

    Steps that are already in the saved result are not measured again. New steps are merged into the
    saved result. All saved steps are measured again in two cases:

    - The instrument compares checkpoints with the last checkpoint, and training has continued since
      the result was saved.
    - An earlier version of the package computed the saved confidence intervals with another method.

    Args:
      run: the run to measure.
      instrument: an `Instrument`, a key of `INSTRUMENTS`, or an import path. An import path is
        `package.module:Class` or `/path/to/file.py:Class`.
      steps: steps of the checkpoints; default: all.
      again: whether to discard the saved result and measure again.
      progress: whether to show a progress bar on standard error.

    Returns:
      The result, with the saved steps and the new steps.

    Raises:
      NotApplicable: the instrument cannot be used for this run's task.
      InputError: the instrument or a step does not exist; the saved result was measured with a
        different version or with different options; or the parameters of the last saved step have
        changed since the measurement.
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
    """Run `analyze` for several runs.

    Runs with equal models and equal datasets are measured together in one compiled program. Each
    run has its own result. `xr.concat(results, "run")` combines the results into one dataset.
    `statistics.mean_over_seeds` computes the mean of the results.

    Returns:
      The result of each run, in the order of `runs`.
    """
    instrument = find_instrument(instrument)
    # Parameters are read twice, for the measurement and for the fingerprints, so cache them.
    runs = [_holding(run, len(runs)) for run in runs]
    paths = [run.files.analysis / f"{instrument.name}.nc" for run in runs]
    before = [storage.version_of_file(path) for path in paths]
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
            identity = identity_of(instrument, run) | {"reference": new.attrs["reference"]}
            storage.save_merged(paths[number], new, identity, stale=stale)
    return [run.result(instrument.name) for run in runs]


def _holding(run: Run, count: int) -> Run:
    """Return the run with an in-memory cache of checkpoints. A run that has a cache keeps it."""
    if isinstance(run.store, CachedStore):
        return run
    return run.with_cache(memory_per_program() // max(1, count))


def _there(
    run: Run, instrument: Instrument, again: bool, progress: bool
) -> tuple[xr.Dataset | None, list[int]]:
    """Load the saved result, or find which of its steps must be measured again.

    Returns:
      `(result, [])` if new steps can be merged into the saved result. Otherwise `(None, steps)`:
      the saved result is discarded, and `steps` are the saved steps to measure again. `steps` is
      empty if nothing is saved or `again` is set.

    Raises:
      InputError: the saved result was measured by another version, with other options or with other
        parameters.
    """
    path = find_result(run.files.analysis / f"{instrument.name}.nc")
    if again or not path.exists():
        return None, []
    old, identity = load_result(path), identity_of(instrument, run)
    different = storage.differences(old.attrs, identity)
    # The user did not choose these two changes, so measure again and raise no error. "reference"
    # changes if training continued. "intervals" changes if this version of the package computes
    # intervals with a new method, and a result must not mix intervals of two methods.
    changed, there = different.keys(), set(old.step.values.tolist()) <= set(run.steps)
    if changed and changed <= {"reference", "intervals"} and (there or "intervals" not in changed):
        if progress:
            about = "have the intervals of an earlier version"
            if "reference" in different:
                was, now = different["reference"]
                about = f"were compared with step {was}, but the last step is now {now}"
            say = f"{run.files.workdir}: numbers of {instrument.name} {about}; measuring them again"
            write(say)
        return None, old.step.values.tolist()
    storage.check_identity(old, identity)
    storage.check_fingerprints(old, run)
    return old, []


def _missing(
    run: Run, old: xr.Dataset | None, steps: Sequence[int] | None, outdated: Sequence[int]
) -> tuple[int, ...]:
    """Return the steps to measure: all outdated steps, and the wanted steps that are not saved.

    Raises:
      InputError: the run has no checkpoints, or a wanted step has no checkpoint.
    """
    if not run.steps:
        raise InputError(
            f"{run.files.workdir} contains no checkpoints to measure; train the run first"
        )
    wanted = tuple(run.steps if steps is None else dict.fromkeys(steps))
    if unknown := [step for step in wanted if step not in run.steps]:
        raise InputError(
            f"{run.files.workdir} contains no checkpoint of step {unknown[0]}; choose from the "
            f"steps {', '.join(map(str, run.steps))}"
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
    """Measure runs with several instruments, and save a summary table for each run.

    The summary table shows which variables can be decoded and which variables the model uses;
    `used.table` describes the columns. The table is saved in `analysis/used.nc` if the run has
    results of `mean_swap` and `erasure`.

    Args:
      runs: one or several runs.
      instruments: instruments, names or import paths; see `analyze`. The default is all built-in
        instruments with `default = True`, except instruments that cannot be used for the task.
      steps: steps of the checkpoints; default: all.
      again: whether to discard saved results and measure again.
      progress: whether to show progress bars on standard error.

    Returns:
      The names of the instruments that were run.

    Raises:
      NotApplicable: an instrument in `instruments` cannot be used for the task of the runs.
    """
    given = [runs] if isinstance(runs, Run) else runs
    memory = memory_per_program() // max(1, len(given))
    runs = [run.with_cache(memory) for run in given]
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
        with wait_for_lock(run.files.analysis):
            used.save_table(run)
    return names


def default_instruments() -> list[Instrument]:
    """Return the built-in instruments that `analyze_all` runs by default."""
    found = [find_instrument(name) for name in INSTRUMENTS]
    return [instrument for instrument in found if instrument.default]


def with_pairs(
    names: Sequence[str], pairs: str | None = None, metrics: Sequence[str] = ()
) -> list[Instrument]:
    """Find patching instruments by name, and set their prompt pairs and metrics.

    Args:
      names: names or import paths of instruments. An empty sequence means `pair_patching`.
      pairs: name or import path of a function that makes prompt pairs. None means the default pairs
        of each instrument.
      metrics: names or import paths of metrics. An empty sequence means the default metrics of each
        instrument.

    Raises:
      InputError: an instrument does not exist, or does not accept the options `pairs` and
        `metrics`.
    """
    chosen: dict[str, Any] = {"pairs": pairs} if pairs else {}
    chosen |= {"metrics": tuple(metrics)} if metrics else {}
    there = [find_instrument(name) for name in names or ("pair_patching",)]
    made: list[Instrument] = []
    for one in there:
        if not isinstance(one, PairInstrument):
            raise InputError(
                f"instrument {one.name!r} does not accept pairs or metrics; omit --pairs and "
                "--metrics, or choose an instrument that accepts both, such as pair_patching"
            )
        changed = type(one)(**chosen)
        changed.found_at = one.found_at
        made.append(changed)
    return made


def find_instrument(name: str | Instrument) -> Instrument:
    """Find an instrument by name or import path.

    A name is a key of `INSTRUMENTS`. An import path is `package.module:Class` or
    `/path/to/file.py:Class`. An `Instrument` is returned unchanged.
    """
    found: Instrument = load_instrument(name, INSTRUMENTS, Instrument)
    return found


def load_instrument(name: Any, known: Mapping[str, str], form: type) -> Any:
    """Load an instrument class by name or import path, and make an instance.

    Args:
      name: a key of `known`, or an import path such as `package.module:Class` or
        `/path/to/file.py:Class`. Former names of built-in instruments are also accepted. An
        instance of `form` is returned unchanged.
      known: the import path of each known name.
      form: the required base class of the loaded class.

    Raises:
      InputError: there is no instrument with this name or path.
    """
    if isinstance(name, form):
        return name
    name = name if name in known else current_instrument(name)
    instrument: Any = imports.find(name, known, "instrument", form)()
    instrument.found_at = known.get(name, name)
    return instrument
