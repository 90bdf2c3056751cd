"""Measure dictionaries with several instruments in one compiled program.

Dictionaries with equal shapes and equal hook sites share a compiled program. The program computes
the distinct states of the run and encodes these states once for all instruments. The outcomes of
the instruments are then averaged and labeled on the host. For the last checkpoint, the program
also measures baselines (`baselines.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr
from jaxtyping import Array

from implicit_reasoning.analysis.aggregate import aggregate
from implicit_reasoning.analysis.instrument import EXAMPLE, Examples
from implicit_reasoning.analysis.labels import check_labels
from implicit_reasoning.analysis.subject import stack_trees
from implicit_reasoning.dictionaries.baselines import Candidate, make_baselines
from implicit_reasoning.dictionaries.dictionary import InferenceDictionary
from implicit_reasoning.dictionaries.instrument import (
    DictionaryInstrument,
    DictionarySubject,
    EncodedStates,
    ExampleSource,
)
from implicit_reasoning.dictionaries.results import member_coords
from implicit_reasoning.dictionaries.splice import Sites
from implicit_reasoning.dictionaries.states import Split, split_states, states
from implicit_reasoning.dictionaries.store import TRAINED, Dictionaries
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.runs import Run
from implicit_reasoning.runtime.machine import highest_precision
from implicit_reasoning.runtime.mapping import fitting_mesh, map_over_axis
from implicit_reasoning.runtime.progress import ProgressBar


class Chosen(NamedTuple):
    """An instrument and the examples that the instrument chose."""

    instrument: DictionaryInstrument
    examples: Examples

    @property
    def name(self) -> str:
        """The name of the instrument."""
        return self.instrument.name


def example_source(run: Run, made: Dictionaries) -> ExampleSource:
    """Return the states and dictionaries from which instruments choose examples."""
    dataset, positions = run.dataset, made.config.positions
    where = np.array([not positions or name in positions for name in dataset.positions])
    return ExampleSource(run, split_states(dataset, positions), made.members, where)


def measure(
    source: ExampleSource,
    made: Dictionaries,
    chosen: Sequence[Chosen],
    steps: Sequence[int] | None = None,
    *,
    progress: bool = True,
) -> list[xr.Dataset]:
    """Measure the dictionaries of some checkpoints with several instruments.

    If `steps` contains the last checkpoint, the function also measures the baselines.

    Args:
      source: the result of `example_source`.
      made: the set of dictionaries to measure.
      chosen: the instruments, with the examples of each instrument.
      steps: training steps of the checkpoints. The step of a crosscoder is `ALL_STEPS`. The default
        is all checkpoints of the set.
      progress: whether to show a progress bar on standard error.

    Returns:
      One dataset per instrument, in the order of `chosen`. Each dataset has the dimension `member`.

    Raises:
      InputError: an instrument returned outputs that differ from its declared outputs.
    """
    run = source.run
    numbers = [n for n, one in enumerate(made.members) if steps is None or one.step in steps]
    candidates = [
        Candidate(TRAINED, made.members[n], made.dictionary, made.params_of(n)) for n in numbers
    ]
    if made.config.baselines and set(made.shown) <= set(numbers):
        candidates += make_baselines(run, made, source.split)
    outputs = _outputs(run, candidates, chosen, source.split, progress)
    width = max(one.dictionary.architecture.d_sae for one in candidates)
    return [_labelled(outputs[one.name], one, candidates, width) for one in chosen]


def _labelled(
    outputs: Mapping[str, np.ndarray], chosen: Chosen, candidates: Sequence[Candidate], width: int
) -> xr.Dataset:
    """Average per-example outputs within groups, with intervals, and label all outputs."""
    instrument, examples = chosen
    coords = {**examples.coords, "feature": range(width)}
    instrument.check_nulls(coords)
    dims = {dim for dims in instrument.outputs.values() for dim in dims} - {EXAMPLE}
    if "member" in dims:
        raise InputError(
            f"instrument {instrument.name!r} declares the dimension 'member'; rename this "
            "dimension, because every result has the dimension 'member' for dictionaries"
        )
    check_labels(instrument.name, coords, dims, examples.groups)
    sizes = {dim: len(labels) for dim, labels in coords.items()} | {EXAMPLE: len(examples.group)}
    instrument.check({name: value[0] for name, value in outputs.items()}, sizes)
    there = {name: _has_outcomes(instrument, name, outputs[name]) for name in outputs}
    filled = {
        name: value if there[name].all() else np.where(_like(there[name], value), value, 0)
        for name, value in outputs.items()
    }
    result = aggregate(instrument, filled, examples, coords, range(len(candidates)))
    for name, known in there.items():
        if not known.all():
            ends = [f"{name}{end}" for end in ("", "_low", "_high") if f"{name}{end}" in result]
            alive = xr.DataArray(known, dims="step")
            result = result.assign({end: result[end].where(alive) for end in ends})
    result = result.drop_vars("step").rename(step="member")
    of = member_coords([one.member for one in candidates], [one.name for one in candidates])
    result = result.assign_coords(of)
    return instrument.derived(result, examples)


def _has_outcomes(instrument: DictionaryInstrument, name: str, value: np.ndarray) -> np.ndarray:
    """Return which members have outcomes.

    An instrument returns nan if it has no outcome for a member, for example because the member's
    site is after the last block.
    """
    if instrument.outputs[name][-1:] != (EXAMPLE,):
        return np.ones(len(value), bool)
    finite = np.isfinite(value).reshape(len(value), -1)
    found: np.ndarray = finite.any(1) if name in instrument.given else finite.all(1)
    return found


def _like(known: np.ndarray, value: np.ndarray) -> np.ndarray:
    return known.reshape(-1, *[1] * (value.ndim - 1))


def _outputs(
    run: Run,
    candidates: Sequence[Candidate],
    chosen: Sequence[Chosen],
    split: Split,
    progress: bool,
) -> dict[str, dict[str, np.ndarray]]:
    """Run all instruments and stack their outputs in the order of the candidates.

    Candidates with the same sites and the same shape share one program.
    """
    program = _program(run.model, chosen, split)
    found: dict[int, Any] = {}
    with ProgressBar(len(candidates), title="measuring", unit="dictionary", shown=progress) as bar:
        for (sites, finished), numbers in _alike(candidates).items():
            some = [candidates[number] for number in numbers]
            steps = sorted({one.member.steps for one in some})
            params = stack_trees(*(run.params(of) for of in steps))
            source = [steps.index(one.member.steps) for one in some]
            # Candidates are repeated until every device has the same number of them.
            missing = -len(some) % len(jax.local_devices())
            filled = np.resize(np.arange(len(some)), len(some) + missing)
            items = np.asarray(source)[filled], stack_trees(*(some[n].params for n in filled))
            outputs = jax.device_get(program(params, items, sites, finished))
            for place, number in enumerate(numbers):
                found[number] = jax.tree.map(lambda leaf, p=place: leaf[p], outputs)
            bar.advance(len(numbers))
    return _padded([found[number] for number in range(len(candidates))])


def _alike(candidates: Sequence[Candidate]) -> dict[tuple[Sites, InferenceDictionary], list[int]]:
    """Group the indices of the candidates by the static arguments of the program."""
    found: dict[tuple[Sites, InferenceDictionary], list[int]] = {}
    for number, one in enumerate(candidates):
        found.setdefault((one.member.sites, one.dictionary), []).append(number)
    return found


def _program(model: Transformer, chosen: Sequence[Chosen], split: Split) -> Any:
    """Return a compiled function that runs all instruments on dictionaries of one shape."""

    @partial(jax.jit, static_argnums=(2, 3))
    @highest_precision
    def program(
        params: Params, items: tuple[Array, Params], sites: Sites, finished: InferenceDictionary
    ) -> dict[str, Any]:
        def source(params: Params) -> tuple[Params, Array, Array, dict[str, Any]]:
            x, y = (states(model, split.places, params, of) for of in (sites.read, sites.write))
            # Only crosscoders have more than one checkpoint.
            first = jax.tree.map(lambda leaf: leaf[0], params)
            subject = DictionarySubject(model, first, sites, x, y)
            shared = {
                one.name: one.instrument.shared(subject, one.examples.inputs) for one in chosen
            }
            return first, x, y, shared

        sources = jax.lax.map(source, params)

        def one_dictionary(item: tuple[Array, Params]) -> dict[str, Any]:
            number, dictionary = item
            first, x, y, shared = jax.tree.map(lambda leaf: leaf[number], sources)
            subject = DictionarySubject(model, first, sites, x, y)
            encoded = EncodedStates(finished, dictionary, finished.encode(dictionary, x))
            return {
                one.name: one.instrument.measure(
                    subject, shared[one.name], encoded, one.examples.inputs
                )
                for one in chosen
            }

        found: dict[str, Any] = map_over_axis(one_dictionary, items, fitting_mesh(len(items[0])))
        return found

    return program


def _padded(outputs: Sequence[Any]) -> Any:
    """Stack outputs. The outputs of candidates with fewer features are padded with nan."""

    def stack(*parts: Any) -> np.ndarray:
        shape = np.max([part.shape for part in parts], axis=0)
        if all(part.shape == tuple(shape) for part in parts):
            return np.stack(parts)
        missing = [[(0, m - n) for m, n in zip(shape, p.shape, strict=True)] for p in parts]
        return np.stack(
            [np.pad(p, by, constant_values=np.nan) for p, by in zip(parts, missing, strict=True)]
        )

    return jax.tree.map(stack, *outputs)
