"""Train a set of dictionaries of a run, resumable; and keep them in the run.

Nothing waits for the device but where a row is due: what a chunk of steps says is read while the
next one runs. A signal saves; the same call goes on, and comes to the same dictionaries.
"""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict
from tqdm import tqdm

from implicit_reasoning.config import changed_keys, listed, to_json
from implicit_reasoning.dictionaries.fields import FORMAT, completed, read_config
from implicit_reasoning.dictionaries.plan import Plan, make_plan
from implicit_reasoning.dictionaries.population import Population, make_members, stack_pools
from implicit_reasoning.dictionaries.states import split_states, states
from implicit_reasoning.dictionaries.steps import Pool, Recipe, State, Window
from implicit_reasoning.dictionaries.store import Dictionaries, Files, Member, load, save
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import FORMAT_VERSION, write_json
from implicit_reasoning.model import Params
from implicit_reasoning.runs import Checkpoints, Damaged, Run, check_path, read_starts
from implicit_reasoning.runs.stores import numbered
from implicit_reasoning.runtime.locks import exclusive_lock
from implicit_reasoning.runtime.machine import provenance
from implicit_reasoning.runtime.mapping import fitting_mesh
from implicit_reasoning.runtime.shutdown import (
    Interrupted,
    ShutdownRequest,
    shutdown_requests,
    signal_name,
)
from implicit_reasoning.runtime.writers import MetricsFile
from implicit_reasoning.training.directory import check_numerics

_KEPT = 2  # states to resume from
_ROUTINE = ("progress", "log_every", "resume_every")  # what may differ when training goes on


def train_dictionaries(run: Run, config: ConfigDict) -> Dictionaries:
    """Train what a configuration asks for, or go on with it; finished ones are opened.

    Args:
      run: with checkpoints.
      config: as in `defaults.py`.

    Returns:
      The dictionaries, kept in `dictionaries/<config.name>/` of the run.

    Raises:
      InputError: the configuration does not fit the run, others are there under that name, another
        process trains them, or JAX has other settings than when they were begun.
      Interrupted: SIGTERM or SIGINT came; the state is saved.
    """
    config = completed(config)
    files = Files.of(run, config.name)
    check_path(files.folder)
    plan = make_plan(run, config)
    _check_same(files, config)
    if files.finished.exists():
        return load(run, config.name)
    refusal = (
        f"another process is training dictionaries in {files.folder}; wait for it, or choose "
        "another config.name"
    )
    with exclusive_lock(files.folder, refusal):
        _check_same(files, config)  # another process may have begun, or finished, since we looked
        if files.finished.exists():
            return load(run, config.name)
        _note_start(files, config)
        with shutdown_requests() as shutdown:
            params = _Training(run, config, plan, files).go(shutdown)
        dictionaries = Dictionaries(plan.recipe.dictionary.finished(), params, plan.members, config)
        save(files, dictionaries)
    return dictionaries


def _note_start(files: Files, config: ConfigDict) -> None:
    """Write down what is trained, and under which versions and settings it goes on now."""
    starts = read_starts(files.provenance)
    newest = max(numbered(files.resume), default=0)
    if newest:
        check_numerics(files.folder, starts)
    write_json(files.config, {FORMAT_VERSION: FORMAT, **to_json(config)})
    start = {"step": newest, "time": time.time(), **provenance()}
    write_json(files.provenance, [*starts, start])


def _check_same(files: Files, config: ConfigDict) -> None:
    if not files.config.exists():
        return
    changes = changed_keys(read_config(files.config), completed(config))
    changes = [change for change in changes if change.key not in _ROUTINE]
    if changes:
        raise InputError(
            f"{files.folder} holds other dictionaries ({listed(changes)}); choose another "
            "config.name, or remove that folder"
        )


@dataclass(frozen=True)
class Material:
    """What the members of a stage are trained on.

    Attributes:
      pools: states by checkpoint and site, divided by their scales.
      pool: of each member, the number of its own.
      scale_in, scale_out: by pool.
    """

    pools: Pool
    pool: list[int]
    scale_in: Float[Array, " pool"]
    scale_out: Float[Array, " pool"]


def make_material(run: Run, stage: tuple[Member, ...], config: ConfigDict) -> Material:
    """States of a stage, computed on the device."""
    places, trained, _ = split_states(run.dataset, config.positions)
    places = places.only(trained)
    compiled = jax.jit(partial(states, run.model, places), static_argnums=1)

    def scaled(values: Array) -> tuple[Array, Array]:
        scale = _scale(values) if config.normalize else jnp.float32(1)
        return values / scale, scale

    sources = list(dict.fromkeys(member.source for member in stage))
    found = []
    for steps, sites in sources:
        params = run.params(steps)
        read = compiled(params, sites.read)
        write = read if sites.read == sites.write else compiled(params, sites.write)
        found.append((*scaled(read), *scaled(write)))
    x, scale_in, y, scale_out = (jnp.stack(parts) for parts in zip(*found, strict=True))
    pools = stack_pools(x, y, places.counts(len(run.dataset.positions)))
    return Material(pools, [sources.index(one.source) for one in stage], scale_in, scale_out)


def _scale(states: Float[Array, "state width"]) -> Float[Array, ""]:
    """What makes the mean norm sqrt(width)."""
    return jnp.linalg.norm(states, axis=1).mean() / np.sqrt(states.shape[1])


def make_population(
    run: Run, recipe: Recipe, members: tuple[Member, ...], config: ConfigDict
) -> tuple[Population, Material]:
    """What trains some members at once, and the states that it trains them on."""
    material = make_material(run, members, config)
    made = make_members(
        material.pool, [member.sparsity for member in members], [member.seed for member in members]
    )
    mesh = fitting_mesh(len(members))
    return Population(recipe, material.pools, made, mesh=mesh), material


def train_members(
    run: Run, recipe: Recipe, members: tuple[Member, ...], config: ConfigDict
) -> Params:
    """Train some members from the start to the end, and keep nothing; parameters, stacked."""
    population, material = make_population(run, recipe, members, config)
    state, _ = population.advance(population.begin(), 0, recipe.settings.steps)
    return _finish(population, material, state)


class _Stage(NamedTuple):
    """A stage to go on with.

    Attributes:
      number: which.
      population: what trains it.
      material: what it is trained on.
      state: where it is.
      finished: parameters of the members of earlier stages.
    """

    number: int
    population: Population
    material: Material
    state: State
    finished: Params | None


class _Training:
    """A set of dictionaries in training."""

    def __init__(self, run: Run, config: ConfigDict, plan: Plan, files: Files):
        self._run, self._config, self._plan, self._files = run, config, plan, files
        self._steps = plan.recipe.settings.steps

    def go(self, shutdown: ShutdownRequest) -> Params:
        """All stages, from where the last call stopped; parameters of all members."""
        with contextlib.ExitStack() as stack:
            self._resumes = Checkpoints(self._files.resume, keep=_KEPT)
            stack.callback(self._resumes.close)
            stage = self._newest()
            self._resumes.drop_after(self._at)
            self._metrics = MetricsFile(self._files.metrics, resumed_at=self._at)
            stack.callback(self._metrics.close)
            self._bar = stack.enter_context(self._progress_bar())
            return self._all_stages(stage, shutdown)

    def _progress_bar(self) -> tqdm[Any]:
        return tqdm(
            total=self._steps * len(self._plan.stages),
            initial=self._at,
            unit="step",
            desc=f"{len(self._plan.members)} dictionaries",
            disable=not self._config.progress,
            dynamic_ncols=True,
        )

    def _newest(self) -> _Stage | None:
        """The newest state that can be read, at step `self._at`; None where training begins.

        A state that cannot be read is passed over for the one before it, from where training comes
        to the same dictionaries.

        Raises:
          InputError: there are states, and none can be read.
        """
        for step in reversed(self._resumes.steps):
            number = step // self._steps
            population, material = self._population(number)
            try:
                state, finished = self._restored(step, number, population)
            except Damaged as damage:
                print(f"implicit_reasoning: {damage}; trying the one before it", file=sys.stderr)
                continue
            self._at = step
            return _Stage(number, population, material, state, finished)
        if self._resumes.steps:
            raise InputError(
                f"no state in {self._files.resume} can be read; remove that folder to train again "
                "from step 0"
            )
        self._at = 0
        return None

    def _population(self, number: int) -> tuple[Population, Material]:
        """What trains a stage."""
        recipe, members = self._plan.recipe, self._plan.stages[number]
        return make_population(self._run, recipe, members, self._config)

    def _all_stages(self, restored: _Stage | None, shutdown: ShutdownRequest) -> Params:
        finished: Params | None = None
        warm: Params | None = None
        for number in range(self._at // self._steps, len(self._plan.stages)):
            if restored is not None and restored.number == number:
                _, population, material, state, finished = restored
            else:
                population, material = self._population(number)
                state = population.begin(warm)
            restored = None  # its state is given away, and can be freed
            state = self._stage(number, population, state, finished, shutdown)
            own = _finish(population, material, state)
            finished = own if finished is None else _one_after_the_other(finished, own)
            warm = state.params
        assert finished is not None  # there is a stage, and its last step is not one to resume from
        return finished

    def _restored(
        self, step: int, number: int, population: Population
    ) -> tuple[State, Params | None]:
        """The state of a stage that was saved, and parameters of the members of earlier stages."""
        earlier = sum(len(stage) for stage in self._plan.stages[:number])

        def shapes() -> dict[str, Any]:
            state = population.begin()
            dictionary, members = population.recipe.dictionary, population.members
            own = jax.vmap(dictionary.finish)(state.params, state.threshold, members.sparsity)
            before = jax.tree.map(lambda leaf: jnp.resize(leaf, (earlier, *leaf.shape[1:])), own)
            return _saved(state, before if earlier else None)

        saved = self._resumes.restore(step, jax.eval_shape(shapes))
        return State(*saved["state"]), saved.get("finished")

    def _stage(
        self,
        number: int,
        population: Population,
        state: State,
        finished: Params | None,
        shutdown: ShutdownRequest,
    ) -> State:
        """One stage to its end."""
        start, end = number * self._steps, (number + 1) * self._steps
        pending: tuple[int, Window] | None = None
        while self._at < end:
            count = min(self._config.log_every - self._at % self._config.log_every, end - self._at)
            due = self._at > start and self._at % self._config.resume_every < count
            asked = bool(shutdown)
            if asked or due:
                self._write(pending)
                pending = None
                self._resumes.save(self._at, _saved(state, finished))
            if asked:
                raise Interrupted(self._at, signal_name(shutdown.number) or "a signal")
            state, window = population.advance(state, self._at - start, count)
            self._at += count
            self._write(pending)
            pending = self._at, window
        self._write(pending)
        return state

    def _write(self, pending: tuple[int, Window] | None) -> None:
        """The row of a chunk, once the device knows it."""
        if pending is None:
            return
        at, window = pending
        values = jax.device_get(window)._asdict()
        row = {name: [float(one) for one in value] for name, value in values.items()}
        self._metrics.write({"step": at, "time": time.time(), **row})
        self._bar.update(at - self._bar.n)
        self._bar.set_postfix({name: f"{np.mean(row[name]):.3g}" for name in ("mse", "l0", "dead")})


def _saved(state: State, finished: Params | None) -> dict[str, Any]:
    """A tree of arrays for `Checkpoints`."""
    tree: dict[str, Any] = {"state": tuple(state)}
    return tree if finished is None else tree | {"finished": finished}


def _finish(population: Population, material: Material, state: State) -> Params:
    """Parameters in raw units, of all members of a stage."""
    pool = jnp.asarray(material.pool)
    found: Params = jax.vmap(population.recipe.dictionary.finish)(
        state.params,
        state.threshold,
        population.members.sparsity,
        material.scale_in[pool],
        material.scale_out[pool],
    )
    return found


def _one_after_the_other(*params: Params) -> Params:
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *params)
