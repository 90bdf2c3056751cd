"""Train a set of dictionaries for a run, and save the set in the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from implicit_reasoning.config import changed_keys, to_json
from implicit_reasoning.dictionaries.fields import (
    FORMAT,
    completed,
    read_config,
    with_current_names,
)
from implicit_reasoning.dictionaries.population import Population, make_members, stack_pools
from implicit_reasoning.dictionaries.resolved import ResolvedSet, resolve
from implicit_reasoning.dictionaries.states import split_states, states
from implicit_reasoning.dictionaries.steps import DictionaryState, Pool, StepMeans
from implicit_reasoning.dictionaries.store import Dictionaries, Files, Member, load, save
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import FORMAT_VERSION, write_json
from implicit_reasoning.model import Params
from implicit_reasoning.runs import Run, check_path, read_starts
from implicit_reasoning.runs.stores import finished_steps
from implicit_reasoning.runtime.mapping import fitting_mesh
from implicit_reasoning.runtime.shutdown import shutdown_requests
from implicit_reasoning.runtime.writers import MetricsFile
from implicit_reasoning.training.directory import check_numerics, exclusive, record_start
from implicit_reasoning.training.loop import NOT_BEGUN, Chunk, ResumableLoop

_ROUTINE = ("progress", "log_every", "resume_every")  # fields that may change on resuming


def train_dictionaries(run: Run, config: ConfigDict) -> Dictionaries:
    """Train a set of dictionaries and save the set in the run.

    If training was interrupted, the function resumes training. If the set is already finished, the
    function loads the set.

    Args:
      run: a run with model checkpoints.
      config: a configuration with the fields of `defaults.get_config()`.

    Returns:
      The trained dictionaries, which are also saved in `dictionaries/<config.name>/` of the run.

    Raises:
      InputError: the configuration does not fit the run, the folder contains dictionaries with a
        different configuration, a second process is training in the folder, or training began with
        different JAX settings.
      Interrupted: the process received SIGTERM or SIGINT. The training state is saved before the
        error is raised.
    """
    config = completed(with_current_names(config))
    files = Files.of(run, config.name)
    check_path(files.folder)
    resolved = resolve(run, config)
    _check_same(files, config)
    if files.finished.exists():
        return load(run, config.name)
    with exclusive(files.folder, "training dictionaries", "config.name"):
        # Another process may have started or finished training before the folder was locked.
        _check_same(files, config)
        if files.finished.exists():
            return load(run, config.name)
        _begin(files, config)
        training = DictionaryTraining(run, resolved, files)
        with shutdown_requests() as shutdown:
            params = training.loop().run(training.steps, shutdown).finished
        assert params is not None
        finished = resolved.recipe.dictionary.for_inference()
        dictionaries = Dictionaries(finished, params, resolved.members, config, files)
        save(files, dictionaries)
    return dictionaries


def _begin(files: Files, config: ConfigDict) -> None:
    """Save the configuration, and record the versions and settings of this start of training."""
    newest = max(finished_steps(files.resume), default=0)
    if newest:
        check_numerics(files.folder, read_starts(files.provenance))
    write_json(files.config, {FORMAT_VERSION: FORMAT, **to_json(config)})
    record_start(files.provenance, newest)


def _check_same(files: Files, config: ConfigDict) -> None:
    if not files.config.exists():
        return
    changes = changed_keys(read_config(files.config), config)
    changes = [change for change in changes if change.key not in _ROUTINE]
    if changes:
        differences = "; ".join(
            f"{key} is {old!r} in the folder and {new!r} in config" for key, old, new in changes
        )
        raise InputError(
            f"{files.folder} contains dictionaries with a different configuration ({differences}); "
            "choose a different config.name, or remove the folder"
        )


@dataclass(frozen=True)
class StageData:
    """The training data of one training stage.

    Attributes:
      pools: stacked pools of states, one pool per combination of checkpoint and hook sites. Inputs
        and targets are divided by `scale_in` and `scale_out`.
      pool: for each dictionary, the index of its pool in `pools`.
      scale_in: for each pool, the number by which the inputs are divided.
      scale_out: for each pool, the number by which the targets are divided.
    """

    pools: Pool
    pool: list[int]
    scale_in: Float[Array, " pool"]
    scale_out: Float[Array, " pool"]


def make_material(run: Run, resolved: ResolvedSet, members: tuple[Member, ...]) -> StageData:
    """Compute the states on which the dictionaries `members` are trained."""
    places, trained, _ = split_states(run.dataset, resolved.positions)
    places = places.only(trained)
    compiled = jax.jit(partial(states, run.model, places), static_argnums=1)

    def scaled(values: Array) -> tuple[Array, Array]:
        scale = _scale(values) if resolved.normalize else jnp.float32(1)
        return values / scale, scale

    sources = list(dict.fromkeys(member.source for member in members))
    found = []
    for steps, sites in sources:
        params = run.params(steps)
        read = compiled(params, sites.read)
        write = read if sites.read == sites.write else compiled(params, sites.write)
        found.append((*scaled(read), *scaled(write)))
    x, scale_in, y, scale_out = (jnp.stack(parts) for parts in zip(*found, strict=True))
    pools = stack_pools(x, y, places.counts(len(run.dataset.positions)))
    return StageData(pools, [sources.index(one.source) for one in members], scale_in, scale_out)


def _scale(states: Float[Array, "state width"]) -> Float[Array, ""]:
    """Return the divisor that gives states a mean norm of sqrt(width)."""
    return jnp.linalg.norm(states, axis=1).mean() / np.sqrt(states.shape[1])


def make_population(
    run: Run, resolved: ResolvedSet, members: tuple[Member, ...]
) -> tuple[Population, StageData]:
    """Return a population that trains the dictionaries `members`, and the training data."""
    material = make_material(run, resolved, members)
    made = make_members(
        material.pool, [member.sparsity for member in members], [member.seed for member in members]
    )
    mesh = fitting_mesh(len(members))
    return Population(resolved.recipe, material.pools, made, mesh=mesh), material


def train_members(run: Run, resolved: ResolvedSet, members: tuple[Member, ...]) -> Params:
    """Train the dictionaries `members` without saving, and return stacked parameters."""
    population, material = make_population(run, resolved, members)
    state, _ = population.advance(population.begin(), 0, resolved.recipe.settings.steps)
    return _finish(population, state, material)


class Stage(NamedTuple):
    """The training state of a set of dictionaries, with the data of the current stage.

    Stages are trained in sequence. The dictionaries of a stage are trained at the same time.

    Attributes:
      number: index of the current stage. If all stages are finished, `number` is the number of
        stages.
      population: the population that trains the dictionaries of the stage.
      material: the training data of the stage.
      state: the training state of the dictionaries of the stage.
      finished: stacked parameters of the dictionaries of earlier stages, or None in the first
        stage.
      window: metrics averaged over the last chunk of steps, or None before the first chunk.
    """

    number: int
    population: Population
    material: StageData
    state: DictionaryState
    finished: Params | None
    window: StepMeans | None


class DictionaryTraining:
    """Adapts the training of dictionaries to the interface of `training.loop`."""

    def __init__(self, run: Run, resolved: ResolvedSet, files: Files):
        """Store the arguments. No file is read or written."""
        self._run, self._resolved, self._files = run, resolved, files
        self._stage_steps = resolved.recipe.settings.steps
        self._metrics: MetricsFile | None = None
        self.begins_at = NOT_BEGUN

    def loop(self) -> ResumableLoop[Stage]:
        """Return the resumable loop that trains the set."""
        title, shown = f"{len(self._resolved.members)} dictionaries", self._resolved.progress
        return ResumableLoop(self, self._files.resume, title=title, progress=shown)

    @property
    def steps(self) -> int:
        """The total number of training steps of all stages."""
        return self._stage_steps * len(self._resolved.stages)

    def init(self) -> Stage:
        """Return the first stage before the first training step."""
        return self._begin(0)

    def _begin(self, number: int, before: Stage | None = None) -> Stage:
        """Start a stage; if there is a stage before it, start from its final parameters."""
        population, material = self._population(number)
        if before is None:
            return Stage(number, population, material, population.begin(), None, None)
        state = population.begin(before.state.params)
        return Stage(number, population, material, state, before.finished, before.window)

    def _population(self, number: int) -> tuple[Population, StageData]:
        """Return the population and the training data of a stage."""
        return make_population(self._run, self._resolved, self._resolved.stages[number])

    def restore(self, step: int, read: Callable[[Any], Any]) -> Stage:
        """Return the stage at step `step`, restored from the state that `read` returns."""
        number = step // self._stage_steps
        population, material = self._population(number)
        earlier = sum(len(stage) for stage in self._resolved.stages[:number])

        def shapes() -> dict[str, Any]:
            state = population.begin()
            own = _finish(population, state, material=None)
            before = jax.tree.map(lambda leaf: jnp.resize(leaf, (earlier, *leaf.shape[1:])), own)
            return _saved(state, before if earlier else None)

        tree = read(jax.eval_shape(shapes))
        state = population.put(DictionaryState(*tree["state"]))
        return Stage(number, population, material, state, tree.get("finished"), None)

    def saved(self, stage: Stage) -> dict[str, Any]:
        """Return the pytree to save: the training state and the parameters of earlier stages."""
        return _saved(stage.state, stage.finished)

    def open(self, step: int) -> None:
        """Open the metrics file, and remove all rows of steps after `step`."""
        self._metrics = MetricsFile(self._files.metrics, resumed_at=step)

    def close(self) -> None:
        """Close the metrics file."""
        if self._metrics:
            self._metrics.close()

    def chunk_end(self, step: int, count: int) -> int:
        """Return the step at which the next chunk of steps ends.

        A chunk ends at the next multiple of `log_every` or at the end of the stage, whichever comes
        first. The argument `count` is ignored, because a metrics row contains means over a whole
        chunk.
        """
        every = self._resolved.log_every
        end_of_stage = (step // self._stage_steps + 1) * self._stage_steps
        return min((step // every + 1) * every, end_of_stage)

    def advance(self, stage: Stage, step: int, count: int) -> Stage:
        """Train the stage for `count` steps.

        If the stage is then finished, return the next stage.
        """
        within = step - stage.number * self._stage_steps
        state, window = stage.population.advance(stage.state, within, count)
        stage = stage._replace(state=state, window=window)
        return stage if within + count < self._stage_steps else self._next(stage)

    def _next(self, stage: Stage) -> Stage:
        # Starting a stage loads checkpoints from disk to the device.
        with jax.transfer_guard("allow"):
            own = _finish(stage.population, stage.state, stage.material)
            if stage.finished is not None:
                both = stage.finished, own
                own = jax.tree.map(lambda *parts: jnp.concatenate(parts), *both)
            stage = stage._replace(finished=own)
            number = stage.number + 1
            if number == len(self._resolved.stages):
                return stage._replace(number=number)
            return self._begin(number, before=stage)

    def arrive(self, before: int, step: int, stage: Stage) -> StepMeans | None:
        """Return metrics averaged over the chunk that ends at `step`.

        The function returns None if the chunk is empty.

        """
        return stage.window if step > before else None

    def write(self, chunk: Chunk) -> Mapping[str, str]:
        """Write the metrics row of a chunk, and return texts for the progress bar.

        The row contains one number per dictionary for each metric.
        """
        if chunk.results is None or self._metrics is None:
            return {}
        means = chunk.results._asdict()
        row = {name: [float(one) for one in value] for name, value in means.items()}
        self._metrics.write({"step": chunk.step, "time": time.time(), **row})
        return {name: f"{np.mean(row[name]):.3g}" for name in ("mse", "l0", "dead")}

    def keeps_at(self, step: int) -> bool:
        """Return False, because dictionaries are saved only after all stages are finished."""
        return False

    def resumes_at(self, step: int) -> bool:
        """Return whether the training state is saved at `step`.

        After each multiple of `resume_every`, the training state is saved at the next end of a
        chunk. The training state is not saved at the end of a stage. At the end of training, the
        finished dictionaries are saved instead.
        """
        if step % self._stage_steps == 0:
            return False
        return step % self._resolved.resume_every < self.chunk_end(step, 0) - step

    def keep(self, step: int, stage: Stage, *, resumable: bool) -> None:
        """Do nothing, because checkpoints of unfinished dictionaries are not kept."""


def _saved(state: DictionaryState, finished: Params | None) -> dict[str, Any]:
    """Return the tree to save. The state becomes a plain tuple, so that fields may be renamed."""
    tree: dict[str, Any] = {"state": tuple(state)}
    return tree if finished is None else tree | {"finished": finished}


def _finish(population: Population, state: DictionaryState, material: StageData | None) -> Params:
    """Return the finished parameters of a stage's members.

    If `material` is given, its scales are folded in, so that the dictionaries read raw states.
    """
    scales: tuple[Array, ...] = ()
    if material is not None:
        pool = jnp.asarray(material.pool)
        scales = material.scale_in[pool], material.scale_out[pool]
    finish = jax.vmap(population.recipe.dictionary.finish)
    found: Params = finish(state.params, state.threshold, population.members.sparsity, *scales)
    return found
