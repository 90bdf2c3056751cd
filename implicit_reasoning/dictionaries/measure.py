"""Measure a set of dictionaries, and what has to be beaten, with everything in `measures/`.

On distinct states of prefixes that no dictionary was trained on: reconstruction and sparsity.
With a dictionary's output in place of the true one, answers by split. For every truth variable how
well its best features stand for its values, with a permutation null; the same of bridges that
out-of-distribution facts lead to; absorption; superposition; and whether the model goes on with a
bridge's feature. Then across dictionaries: which features last from checkpoint to checkpoint, which
come back from another seed, and when bridges' features are born (`evolution.py`). Of the last
checkpoint the same is measured of baselines (`baselines.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array
from tqdm import tqdm

from implicit_reasoning.dictionaries.baselines import Candidate, make_baselines
from implicit_reasoning.dictionaries.dictionary import Finished
from implicit_reasoning.dictionaries.evolution import over_training
from implicit_reasoning.dictionaries.measures import MEASURES, Asked, Coded, Measure, Subject
from implicit_reasoning.dictionaries.splice import Sites
from implicit_reasoning.dictionaries.states import Split, split_states, states
from implicit_reasoning.dictionaries.store import ALL, TRAINED, Dictionaries, Files, Member
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.runs import Run, load_arrays, save_arrays
from implicit_reasoning.runtime.machine import highest_precision, provenance
from implicit_reasoning.runtime.mapping import fitting_mesh, mapped
from implicit_reasoning.statistics import INTERVALS

_WITH = "measured_with"  # attribute of a result


def measured(run: Run, made: Dictionaries) -> xr.Dataset:
    """What was found of dictionaries; measured now, and kept beside them, if that was not done.

    A result that is there counts if it is of these dictionaries, of these parameters of the run's
    checkpoints and of this world; else it is measured again, and a line on standard error says so.
    """
    path = Files.of(run, made.config.name).measured
    if path.exists():
        kept = load_arrays(path)
        other = _differences(kept, run, made)
        if not other:
            return kept
        say = f"{path} is of other {' and '.join(other)}; measuring again"
        tqdm.write(f"implicit_reasoning: {say}", file=sys.stderr)
    save_arrays(path, measure_dictionaries(run, made, progress=made.config.progress))
    return load_arrays(path)


def _measured_with(run: Run, made: Dictionaries) -> dict[str, Any]:
    """What a result depends on, by name."""
    steps = sorted({step for member in made.members for step in member.steps})
    return {
        "dictionaries": made.fingerprint,
        "checkpoints": {str(step): run.fingerprint(step) for step in steps},
        "world": run.dataset.fingerprint(),
        "options": {
            "baselines": bool(made.config.baselines),
            "positions": list(made.config.positions),
        },
        "intervals": INTERVALS,
    }


def _differences(kept: xr.Dataset, run: Run, made: Dictionaries) -> list[str]:
    """What a result that is there was measured with, and would not be now; names."""
    if _WITH in kept.attrs:
        wanted, was = _measured_with(run, made), kept.attrs[_WITH]
        return [name for name in wanted if was.get(name) != wanted[name]]
    return ["intervals"]  # of results from before this was noted, which had another kind


def measure_dictionaries(run: Run, made: Dictionaries, *, progress: bool = True) -> xr.Dataset:
    """Measure all of them, and baselines.

    Returns:
      Labelled arrays by `member` (with the coordinates step, site, sparsity, seed, and what it is:
      "trained" or a baseline's name); attributes say what is what.
    """
    asked = ask(run, made)
    measures, split = choose_measures(asked), asked.split
    candidates = [
        Candidate(TRAINED, member, made.finished, made.params_of(number))
        for number, member in enumerate(made.members)
    ]
    if made.config.baselines:
        candidates += make_baselines(run, made, split)
    outputs = _outputs(run, candidates, measures, split, progress)
    members, what = [one.member for one in candidates], [one.name for one in candidates]
    result = _labelled(outputs, measures, members, what)
    own = result.isel(member=slice(len(made)))
    missing = len(candidates) - len(made)  # baselines are of one checkpoint
    result = result.merge(over_training(made, own).pad(member=(0, missing)))
    return result.assign_attrs(
        n_states=int(split.held_out.sum()),
        n_trained=int(split.trained.sum()),
        start=made.config.start,
        definition=" ".join((__doc__ or "").split()),
        made_with=provenance(),
        **{_WITH: _measured_with(run, made)},
    )


def ask(run: Run, made: Dictionaries) -> Asked:
    """What is to be measured of a set of dictionaries."""
    dataset, positions = run.dataset, made.config.positions
    where = np.array([not positions or name in positions for name in dataset.positions])
    return Asked(run, split_states(dataset, positions), made.members, where)


def choose_measures(asked: Asked) -> list[Measure]:
    """Those that apply; no single model has a place for a dictionary of all checkpoints."""
    of_all = any(member.step == ALL for member in asked.members)
    wanted = [kind for kind in MEASURES if not (kind.needs_model and of_all)]
    return [measure for kind in wanted if (measure := kind.choose(asked)) is not None]


def _outputs(
    run: Run,
    candidates: Sequence[Candidate],
    measures: Sequence[Measure],
    split: Split,
    progress: bool,
) -> dict[str, Any]:
    """What all measures find, stacked over candidates in their order.

    Those that read and write the same sites, and are of one shape, are one program.
    """
    program = _program(run.model, measures, split)
    found: dict[int, Any] = {}
    with tqdm(
        total=len(candidates), desc="measuring", unit="dictionary", disable=not progress
    ) as bar:
        for (sites, finished), numbers in _alike(candidates).items():
            some = [candidates[number] for number in numbers]
            steps = sorted({one.member.steps for one in some})
            params = _stack([run.params(of) for of in steps])
            source = [steps.index(one.member.steps) for one in some]
            # Filled up, so that every device has as many.
            missing = -len(some) % len(jax.local_devices())
            filled = np.resize(np.arange(len(some)), len(some) + missing)
            items = np.asarray(source)[filled], _stack([some[n].params for n in filled])
            outputs = jax.device_get(program(params, items, sites, finished))
            for place, number in enumerate(numbers):
                found[number] = jax.tree.map(lambda leaf, p=place: leaf[p], outputs)
            bar.update(len(numbers))
    return _padded([found[number] for number in range(len(candidates))])


def _alike(candidates: Sequence[Candidate]) -> dict[tuple[Sites, Finished], list[int]]:
    """Numbers by what is static of a program."""
    found: dict[tuple[Sites, Finished], list[int]] = {}
    for number, one in enumerate(candidates):
        found.setdefault((one.member.sites, one.finished), []).append(number)
    return found


def _program(model: Transformer, measures: Sequence[Measure], split: Split) -> Any:
    """Compiled: everything of some dictionaries of one shape, of several sources."""

    @partial(jax.jit, static_argnums=(2, 3))
    @highest_precision
    def program(
        params: Params, items: tuple[Array, Params], sites: Sites, finished: Finished
    ) -> dict[str, Any]:
        def source(params: Params) -> tuple[Params, Array, Array, dict[str, Any]]:
            x, y = (states(model, split.places, params, of) for of in (sites.read, sites.write))
            # The first checkpoint, of all but crosscoders the only one.
            first = jax.tree.map(lambda leaf: leaf[0], params)
            subject = Subject(model, first, sites, x, y)
            return first, x, y, {one.name: one.shared(subject) for one in measures}

        sources = jax.lax.map(source, params)

        def one(item: tuple[Array, Params]) -> dict[str, Any]:
            number, dictionary = item
            first, x, y, shared = jax.tree.map(lambda leaf: leaf[number], sources)
            subject = Subject(model, first, sites, x, y)
            coded = Coded(finished, dictionary, finished.encode(dictionary, x))
            return {one.name: one.of_one(subject, shared[one.name], coded) for one in measures}

        found: dict[str, Any] = mapped(one, items, fitting_mesh(len(items[0])))
        return found

    return program


def _labelled(
    outputs: dict[str, Any],
    measures: Sequence[Measure],
    members: Sequence[Member],
    what: Sequence[str],
) -> xr.Dataset:
    names = ("step", "site", "sparsity", "seed")
    variables: dict[str, Any] = {}
    coords: dict[str, Any] = {
        name: ("member", [getattr(member, name) for member in members]) for name in names
    }
    coords["what"] = "member", list(what)
    for measure in measures:
        more, labels = measure.labelled(outputs[measure.name])
        variables, coords = variables | more, coords | labels
    return xr.Dataset(variables, coords)


@jax.jit
def _stack(trees: Sequence[Any]) -> Any:
    """One program for all leaves, not one for each shape."""
    return jax.tree.map(lambda *parts: jnp.stack(parts), *trees)


def _padded(outputs: Sequence[Any]) -> Any:
    """Stacked; baselines of fewer features have nothing, nan, for those that they lack."""

    def stack(*parts: Any) -> np.ndarray:
        shape = np.max([part.shape for part in parts], axis=0)
        if all(part.shape == tuple(shape) for part in parts):
            return np.stack(parts)
        missing = [[(0, m - n) for m, n in zip(shape, p.shape, strict=True)] for p in parts]
        return np.stack(
            [np.pad(p, by, constant_values=np.nan) for p, by in zip(parts, missing, strict=True)]
        )

    return jax.tree.map(stack, *outputs)
