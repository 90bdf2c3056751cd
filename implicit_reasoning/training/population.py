"""A population: many trials of one shape, trained in step with each other by one program.

What may differ between them: the seeds of initialisation and world, phi, learning rate, weight
decay (`VARIED`). Worlds stand one after the other in one table of rows; which of them a trial sees
is two numbers. Each trial sees the data that it would see alone, in the same order, so its first
losses are those of the run alone, up to rounding.

The axis of trials is dealt out to all devices; where they do not divide it, it is filled up with
copies of the first trial, whose results nobody reads. A trial that diverges stays as it is, and the
others go on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Wrapped
from ml_collections import ConfigDict

from implicit_reasoning.config import flatten
from implicit_reasoning.errors import InputError
from implicit_reasoning.runs import (
    DamagedCheckpoint,
    Layout,
    begin_segment,
    check_path,
    read_starts,
)
from implicit_reasoning.runs.stores import finished_steps
from implicit_reasoning.runtime import distributed, sharding
from implicit_reasoning.runtime.mapping import map_over_axis
from implicit_reasoning.runtime.shutdown import ShutdownRequest
from implicit_reasoning.training import directory, optimizer, saved_states, setup
from implicit_reasoning.training.cost import row_shape
from implicit_reasoning.training.evaluation import (
    EvaluationRows,
    Outcome,
    ProbeMetrics,
    evaluate_chunks,
    evaluation_rows,
)
from implicit_reasoning.training.loop import NonFiniteLoss
from implicit_reasoning.training.models import ModelTraining
from implicit_reasoning.training.record import Record
from implicit_reasoning.training.settings import Trial
from implicit_reasoning.training.step import StepRecipe, TrainingRows, TrainState
from implicit_reasoning.worlds import Dataset

VARIED = (
    *("seed", "optimizer.learning_rate", "optimizer.weight_decay"),
    *("task.world_seed", "task.phi"),
)
"""Fields in which the trials of a population may differ."""


def shape_of(config: ConfigDict) -> str:
    """What the trials of one population have in common, as text to compare."""
    return json.dumps({key: v for key, v in flatten(config).items() if key not in VARIED})


def train_population(
    trials: Sequence[Trial],
    files: Layout,
    stop: int,
    shutdown: ShutdownRequest,
    *,
    lost: Callable[[int, int], None] | None = None,
    title: str = "",
) -> list[Record]:
    """Train trials until step `stop`, or go on from where they are, all at one step.

    Args:
      trials: in the order of their rows.
      files: of the population, new each time: stacked checkpoints and states; all else is in the
        trials' own.
      stop: the step to stop at.
      shutdown: whether a signal asks to stop earlier.
      lost: is told at once of a trial that diverges: its number, the step.
      title: of the progress bar.

    Returns:
      What was noted of each; `diverged` says at which step one was lost, if it was.

    Raises:
      InputError: the trials cannot be one population, or another process trains one of them.
      DamagedCheckpoint: the newest state of one cannot be read, and is set aside: it goes on from
        the one before it, which may be of another step than the other trials'.
      Interrupted: a signal came; the states are saved.
      PeerLost: another process is gone; what was saved before is whole.
    """
    if finished_steps(files.resume) or finished_steps(files.checkpoints):
        raise InputError(f"there is a population in {files.workdir}; each start makes a new one")
    for each in (files, *(trial.files for trial in trials)):
        check_path(each.workdir)
    program, scorings = make_population(trials), _scorings(trials)
    records = [
        Record(
            trial,
            scorings[id(trial.dataset)],
            functools.partial(lost, number) if lost else None,
        )
        for number, trial in enumerate(trials)
    ]
    with contextlib.ExitStack() as stack:
        for trial in trials:
            stack.enter_context(directory.exclusive(trial.files.workdir))
        stack.enter_context(distributed.exit_if_peer_lost())
        for trial in trials:
            directory.check_numerics(trial.files.workdir, read_starts(trial.files.provenance))
        start = _start(trials, program)
        for row, trial in enumerate(trials):
            directory.begin(trial.files, trial.config, trial.dataset)
            if distributed.is_primary():
                begin_segment(trial.files, files.workdir, row, start.step if start else 0)
        training = ModelTraining(program, records, files, start=start)
        with contextlib.suppress(NonFiniteLoss):  # all have diverged, as the records say
            training.loop(title).run(stop, shutdown)
    return records


def _scorings(trials: Sequence[Trial]) -> dict[int, ProbeMetrics]:
    """One for each dataset."""
    return {
        key: ProbeMetrics(dataset)
        for key, dataset in {id(t.dataset): t.dataset for t in trials}.items()
    }


def _start(trials: Sequence[Trial], program: setup.Program) -> saved_states.StartingPoint | None:
    """Where the trials are; None where none has begun."""
    saved = [saved_states.newest(trial.files) for trial in trials]
    found = [each for each in saved if each is not None]
    if not found:
        return None
    if len({None if each is None else each.step for each in saved}) > 1:
        raise InputError("the trials of a population must have been saved at one step")
    start, damage = None, None
    try:
        start = saved_states.read(found, program.like, stacked=True)
    except DamagedCheckpoint as error:
        damage = error
    if distributed.allgather(np.array([damage is None], np.float32)).all():
        return start
    if (
        damage is None or distributed.is_distributed()
    ):  # one host alone must not change what others read
        said = damage or "a state of the trials cannot be read by another process"
        raise InputError(f"{said}; move it away to go on from the one before it")
    for trial, each in zip(trials, found, strict=True):
        if (
            each.folder / str(each.step) == damage.folder
            and len(saved_states.all_states(trial.files)) == 1
        ):
            raise InputError(
                f"no state of {trial.files.workdir} can be read; remove that folder to train it "
                "again from step 0"
            )
    saved_states.set_aside(damage.folder)
    raise damage


def make_mesh(sizes: Mapping[str, int]) -> Mesh:
    """The mesh of a population: what a config's `mesh` says, all that is left over to trials."""
    return sharding.make_mesh({**sizes, "trial": -1, "data": max(1, sizes["data"])})


def make_population(trials: Sequence[Trial]) -> setup.Program:
    """One program for all trials; what it is called with has a leading axis of them.

    Raises:
      InputError: the trials differ in what trials of a population cannot, or do not fit the
        devices.
    """
    settings = trials[0].settings
    mesh = make_mesh(settings.mesh)
    _check_alike(trials)
    recipes = [setup.make_recipe(trial.settings, trial.dataset, mesh) for trial in trials]
    devices = mesh.shape["trial"]
    # Within a device's share of the trials, the mesh is the one of that place.
    by_rows = PartitionSpec("data") if devices > 1 else recipes[0].batch_sharding
    recipe = dataclasses.replace(recipes[0], batch_sharding=by_rows)
    filled = [*trials, *[trials[0]] * (-len(trials) % devices)]
    whole, by_trial = sharding.replicated(mesh), NamedSharding(mesh, PartitionSpec("trial"))

    datasets = list({id(trial.dataset): trial.dataset for trial in filled}.values())
    number = [next(n for n, d in enumerate(datasets) if d is trial.dataset) for trial in filled]
    rows = _all_rows(datasets, number)
    probes, chunks = _all_probes(datasets, number)
    probes, chunks = jax.device_put(probes, whole), jax.device_put(chunks, by_trial)

    seeds = jnp.array([trial.settings.seed for trial in filled], jnp.int32)
    init_keys, stream_keys = jax.jit(jax.vmap(setup.keys), out_shardings=by_trial)(seeds)
    hypers = [optimizer.hyperparameters(trial.settings.optimizer) for trial in filled]
    functions = _functions(recipe, mesh, settings.fsdp, len(filled))
    return setup.Program(
        recipe=recipe,
        rows=TrainingRows(*jax.device_put(rows[:3], whole), *jax.device_put(rows[3:], by_trial)),
        hyper=jax.device_put(jax.tree.map(lambda *leaves: np.stack(leaves), *hypers), by_trial),
        init_key=init_keys,
        stream_key=stream_keys,
        whole=whole,
        like=functions.like,
        init=functions.init,
        advance=functions.advance,
        snapshot=functions.snapshot,
        evaluate=lambda params: functions.evaluate(params, probes, chunks),
        split=lambda tree: [_row(tree, number) for number in range(len(trials))],
        stack=np.stack,
    )


class _Functions(NamedTuple):
    """As `setup.Functions`, with evaluation."""

    like: Any
    init: Wrapped
    advance: Wrapped
    snapshot: Wrapped
    evaluate: Wrapped


@functools.lru_cache(maxsize=setup.MAX_KEPT_PROGRAMS)
def _functions(recipe: StepRecipe, mesh: Mesh, fsdp: bool, count: int) -> _Functions:
    """The same functions for equal programs of `count` trials, see `setup`."""
    whole = sharding.replicated(mesh)
    dealt = functools.partial(map_over_axis, mesh=mesh if mesh.shape["trial"] > 1 else None)

    def init(keys: Any) -> TrainState:
        state: TrainState = dealt(recipe.init, keys)
        return state

    def advance(state: TrainState, rows: TrainingRows, hyper: Any, keys: Any, n: Any) -> TrainState:
        def one(item: Any, tables: Sequence[Any], n: Any) -> TrainState:
            state, own, hyper, key = item
            return recipe.run(state, TrainingRows(*tables, *own), hyper, key, n)

        tables: Any = rows[:3]
        items = (state, rows[3:], hyper, keys)
        advanced: TrainState = dealt(one, items, shared=(tables, n))
        return advanced

    def snapshot(state: TrainState, hyper: Any) -> Any:
        return jax.vmap(recipe.snapshot)(state, hyper)

    def evaluate(params: Any, probes: EvaluationRows, chunks: Any) -> Outcome:
        def one(item: Any, probes: EvaluationRows) -> Outcome:
            return evaluate_chunks(recipe.model, item[0], probes, item[1])

        found: Outcome = dealt(one, (params, chunks), shared=(probes,))
        return found

    shapes = jax.eval_shape(lambda: init(jax.vmap(jax.random.key)(jnp.arange(count))))
    split = setup.mesh_axes(recipe.model)
    places = sharding.tree_shardings(mesh, shapes, split, fsdp=fsdp, stacked=True)
    return _Functions(
        like=setup.placed(shapes, places),
        init=jax.jit(init, out_shardings=places),
        advance=jax.jit(advance, donate_argnums=0, out_shardings=places),
        snapshot=jax.jit(snapshot, out_shardings=whole),
        evaluate=jax.jit(evaluate, out_shardings=whole),
    )


def _row(tree: Any, number: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[number], tree)


def _check_alike(trials: Sequence[Trial]) -> None:
    first = trials[0]
    for trial in trials[1:]:
        if shape_of(trial.config) != shape_of(first.config):
            raise InputError(
                f"{trial.files.workdir} and {first.files.workdir} cannot be one population: they "
                f"differ in more than {', '.join(VARIED)}"
            )
        if (trial.dataset.vocab, trial.dataset.n_ctx) != (first.dataset.vocab, first.dataset.n_ctx):
            raise InputError(
                f"{trial.files.workdir} and {first.files.workdir} cannot be one population: their "
                "worlds have other tokens"
            )


def _all_rows(datasets: Sequence[Dataset], number: Sequence[int]) -> TrainingRows:
    """All worlds in one table; `first` and `n_rows` by trial; numpy."""
    slots = max(row_shape(dataset)["n_slots"] for dataset in datasets)
    tables = [setup.training_rows(dataset, slots) for dataset in datasets]
    sizes = np.array([table.n_rows for table in tables], np.int32)
    tokens, positions, answers = map(np.concatenate, zip(*(t[:3] for t in tables), strict=True))
    first = (np.cumsum(sizes) - sizes).astype(np.int32)
    return TrainingRows(tokens, positions, answers, first[number], sizes[number])


def _all_probes(
    datasets: Sequence[Dataset], number: Sequence[int]
) -> tuple[EvaluationRows, np.ndarray]:
    """All worlds' chunks in one table, and the numbers of those to ask each trial; numpy."""
    tables = [evaluation_rows(dataset) for dataset in datasets]
    sizes = np.array([len(table.tokens) for table in tables])
    starts = np.cumsum(sizes) - sizes
    # Who has fewer chunks is asked its last again: what is beyond a trial's rows is not read.
    within = np.minimum(np.arange(sizes.max()), sizes[:, None] - 1)
    probes = EvaluationRows(*(np.concatenate(column) for column in zip(*tables, strict=True)))
    return probes, (starts[:, None] + within)[number].astype(np.int32)
