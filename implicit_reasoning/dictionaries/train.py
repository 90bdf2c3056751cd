"""Train a set of dictionaries of a run, resumable; and keep them in the run.

Nothing waits for the device but where a row is due: what a chunk of steps says is read while the
next one runs. A signal saves; the same call goes on, and comes to the same dictionaries.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict
from tqdm import tqdm

from implicit_reasoning.config import changed_keys, from_json, to_json
from implicit_reasoning.dictionaries.plan import ALL, Plan, make_plan
from implicit_reasoning.dictionaries.population import (
    Population,
    fitting_mesh,
    make_members,
    stack_pools,
)
from implicit_reasoning.dictionaries.splice import Sites
from implicit_reasoning.dictionaries.states import Places, distinct_places, split_places, states
from implicit_reasoning.dictionaries.steps import Pool, State, Window
from implicit_reasoning.dictionaries.store import Dictionaries, Files, Member, load, save
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import read_json, write_json
from implicit_reasoning.model import Params
from implicit_reasoning.runs import Checkpoints, Run
from implicit_reasoning.training.interruption import Interrupted, Wish, signal_name, wishes
from implicit_reasoning.training.writers import MetricsFile

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
      InputError: the configuration does not fit the run, or others are there under that name.
      Interrupted: SIGTERM or SIGINT came; the state is saved.
    """
    plan, files = make_plan(run, config), Files.of(run, config.name)
    _check_same(files, config)
    if files.finished.exists():
        return load(run, config.name)
    write_json(files.config, to_json(config))
    with wishes() as wish:
        params = _Training(run, config, plan, files).go(wish)
    dictionaries = Dictionaries(plan.dictionary.finished(), params, plan.members, config)
    save(files, dictionaries)
    return dictionaries


def _check_same(files: Files, config: ConfigDict) -> None:
    if not files.config.exists():
        return
    changes = changed_keys(from_json(read_json(files.config)), config)
    changes = [change for change in changes if change.key not in _ROUTINE]
    if changes:
        listed = "; ".join(f"{key} was {old!r}, is {new!r}" for key, old, new in changes)
        raise InputError(
            f"{files.folder} holds other dictionaries ({listed}); choose another config.name, or "
            "remove that folder"
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
    scale_in: Float[Array, "pool"]
    scale_out: Float[Array, "pool"]


def training_places(run: Run, config: ConfigDict) -> Places:
    """Where the states are that dictionaries are trained on: prefixes of training rows."""
    rows = np.arange(run.dataset.n_train)
    places = distinct_places(run.dataset, rows, config.positions)
    return places.only(~split_places(run.dataset, places))


def make_material(run: Run, plan: Plan, stage: tuple[Member, ...], config: ConfigDict) -> Material:
    """States of a stage, computed on the device."""
    places = training_places(run, config)
    sources = list(dict.fromkeys((member.step, member.sites) for member in stage))
    x, y, scale_in, scale_out = (
        jnp.stack(parts)
        for parts in zip(*_sources(run, plan, places, sources, config), strict=True)
    )
    counts = places.counts(len(run.dataset.positions))
    pool = [sources.index((member.step, member.sites)) for member in stage]
    return Material(stack_pools(x, y, counts), pool, scale_in, scale_out)


def _sources(
    run: Run,
    plan: Plan,
    places: Places,
    sources: list[tuple[int, Sites]],
    config: ConfigDict,
) -> list[tuple[Array, Array, Array, Array]]:
    """For each source its inputs and targets, and the scales that they were divided by."""

    @partial(jax.jit, static_argnums=1)
    def of(params: Params, sites: tuple[str, ...]) -> Float[Array, "state width"]:
        found = states(run.model, params, places, sites)
        return jnp.moveaxis(found, 0, 1).reshape(found.shape[1], -1)

    def read(step: int, names: tuple[str, ...]) -> Array:
        steps = plan.steps if step == ALL else (step,)
        params = run.params(steps)
        parts = [
            of(jax.tree.map(lambda leaf, n=number: leaf[n], params), names)
            for number in range(len(steps))
        ]
        return jnp.concatenate(parts, axis=1)

    found = []
    for step, sites in sources:
        x = read(step, sites.read)
        y = x if sites.read == sites.write else read(step, sites.write)
        scales = [_scale(value) if config.normalize else jnp.float32(1) for value in (x, y)]
        found.append((x / scales[0], y / scales[1], scales[0], scales[1]))
    return found


def _scale(states: Float[Array, "state width"]) -> Float[Array, ""]:
    """What makes the mean norm sqrt(width)."""
    return jnp.linalg.norm(states, axis=1).mean() / np.sqrt(states.shape[1])


@dataclass
class _Progress:
    """Where training stands, between two chunks of steps.

    Attributes:
      at: steps so far, over all stages.
      state: of the members of the stage under way; None before its first step.
      finished: parameters of the members of earlier stages, one after the other.
    """

    at: int
    state: State | None
    finished: list[Params]


class _Training:
    """A set of dictionaries in training."""

    def __init__(self, run: Run, config: ConfigDict, plan: Plan, files: Files):
        self._run, self._config, self._plan, self._files = run, config, plan, files
        self._steps = plan.settings.steps
        self._total = self._steps * len(plan.stages)

    def go(self, wish: Wish) -> Params:
        """All stages, from where the last call stopped; parameters of all members."""
        with contextlib.ExitStack() as stack:
            self._resumes = Checkpoints(self._files.resume, keep=_KEPT)
            stack.callback(self._resumes.close)
            progress = self._restore()
            self._metrics = MetricsFile(self._files.metrics, resumed_at=progress.at)
            stack.callback(self._metrics.close)
            self._bar = stack.enter_context(self._progress_bar(progress.at))
            warm: Params | None = None
            for number in range(progress.at // self._steps, len(self._plan.stages)):
                warm = self._stage(number, progress, warm, wish)
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *progress.finished)

    def _progress_bar(self, at: int) -> tqdm[Any]:
        return tqdm(
            total=self._total,
            initial=at,
            unit="step",
            desc=f"{len(self._plan.members)} dictionaries",
            disable=not self._config.progress,
            dynamic_ncols=True,
        )

    def _restore(self) -> _Progress:
        """What was saved last, if anything was."""
        if not self._resumes.steps:
            return _Progress(0, None, [])
        at = self._resumes.steps[-1]
        number = at // self._steps
        like = self._saved(_Progress(at, *jax.eval_shape(lambda: self._shapes(number))))
        saved = self._resumes.restore(at, like)
        done = saved.get("finished")
        return _Progress(at, State(*saved["state"]), [] if done is None else [done])

    def _shapes(self, number: int) -> tuple[State, list[Params]]:
        """Of a stage's state, and of what earlier ones left; to be evaluated for shapes only."""
        population, _ = self._population(number)
        state = population.begin()
        earlier = sum(len(stage) for stage in self._plan.stages[:number])

        def grown(leaf: Array) -> Array:
            return jnp.zeros((earlier, *leaf.shape[1:]), leaf.dtype)

        finish = jax.vmap(self._plan.dictionary.finish)
        one = finish(state.params, state.threshold, population.members.sparsity)
        return state, [jax.tree.map(grown, one)] if earlier else []

    def _saved(self, progress: _Progress) -> dict[str, Any]:
        """A tree of arrays for `Checkpoints`."""
        tree: dict[str, Any] = {"state": tuple(progress.state or ())}
        if progress.finished:
            together = jax.tree.map(lambda *parts: _joined(parts), *progress.finished)
            tree["finished"] = together
        return tree

    def _population(self, number: int) -> tuple[Population, Material]:
        stage = self._plan.stages[number]
        material = make_material(self._run, self._plan, stage, self._config)
        members = make_members(
            material.pool,
            [member.sparsity for member in stage],
            [member.seed for member in stage],
        )
        settings = self._plan.settings
        mesh = fitting_mesh(len(stage))
        made = Population(self._plan.dictionary, settings, material.pools, members, mesh=mesh)
        return made, material

    def _stage(self, number: int, progress: _Progress, warm: Params | None, wish: Wish) -> Params:
        """One stage to its end; returns what the next one may begin with."""
        population, material = self._population(number)
        state = population.begin(warm) if progress.state is None else progress.state
        end = (number + 1) * self._steps
        pending: tuple[int, Window] | None = None
        while progress.at < end:
            if wish:
                self._write(pending)
                self._save(progress, state)
                raise Interrupted(progress.at, signal_name(wish.number) or "a signal")
            count = min(self._until_row(progress.at), end - progress.at)
            state, window = population.advance(state, progress.at - number * self._steps, count)
            progress.at += count
            self._write(pending)
            pending = progress.at, window
            if progress.at < end and progress.at % self._config.resume_every < count:
                self._write(pending)
                pending = None
                self._save(progress, state)
        self._write(pending)
        progress.finished.append(self._finish(population, material, state))
        progress.state = None
        return state.params

    def _until_row(self, at: int) -> int:
        every: int = self._config.log_every
        return every - at % every

    def _save(self, progress: _Progress, state: State) -> None:
        progress.state = state
        self._resumes.save(progress.at, self._saved(progress))

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

    def _finish(self, population: Population, material: Material, state: State) -> Params:
        """Parameters in raw units, of all members of a stage."""
        pool = jnp.asarray(material.pool)
        found: Params = jax.vmap(self._plan.dictionary.finish)(
            state.params,
            state.threshold,
            population.members.sparsity,
            material.scale_in[pool],
            material.scale_out[pool],
        )
        return found


def _joined(parts: Any) -> Any:
    """Arrays one after the other; of shapes, the one there is."""
    return jnp.concatenate(parts) if isinstance(parts[0], jax.Array) else parts[0]
