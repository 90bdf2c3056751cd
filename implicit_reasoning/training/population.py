"""Training of a population: joint training of trials with equal array shapes.

Trials may differ in the seeds of initialization and world, the checkpoint of the initial
parameters, phi, learning rate and weight decay (`VARIED`). The training rows of all worlds are
concatenated in one table; each trial stores the index of the first row of its world and the number
of rows. A trial and a run that is trained alone receive the same data in the same order.
Their first losses are therefore equal up to rounding.

The trial axis is sharded over all devices. If the number of trials is not a multiple of the number
of devices, copies of the first trial pad the axis. The results of the copies are ignored. A trial
that diverges keeps its last finite state, and all other trials continue.
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
from implicit_reasoning.training.early import EarlySettings
from implicit_reasoning.training.evaluation import (
    EvaluationRows,
    Outcome,
    ProbeMetrics,
    evaluate_chunks,
    evaluation_rows,
)
from implicit_reasoning.training.loop import NonFiniteLoss
from implicit_reasoning.training.models import ModelTraining, check_initial
from implicit_reasoning.training.record import Record
from implicit_reasoning.training.settings import Trial
from implicit_reasoning.training.step import RowTable, StepRecipe, TrainingRows, TrainState
from implicit_reasoning.worlds import Dataset

VARIED = (
    *("seed", "optimizer.learning_rate", "optimizer.weight_decay"),
    *("task.world_seed", "task.phi", "init_from.workdir", "init_from.step"),
)
"""Fields in which the trials of a population may differ."""


def shape_of(config: ConfigDict) -> str:
    """Return the configuration without the fields in `VARIED`, as JSON.

    Trials can be in one population only if their JSON texts are equal.
    """
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
    """Train trials together until step `stop`.

    All trials begin at step 0, or all trials resume from saved states of the same step.

    Args:
      trials: the trials; row i of the population is trial i.
      files: the directory for the stacked checkpoints and states. It must not contain checkpoints
        or states. All other files are written to the directories of the trials.
      stop: the step to stop at.
      shutdown: the shutdown request, which can stop training earlier.
      lost: function that is called with the index of a trial and the step when the trial diverges.
      title: the title of the progress bar.

    Returns:
      The result files of each trial. `Record.diverged` is the step at which the trial diverged, or
      None.

    Raises:
      InputError: the trials cannot be one population, or a different process trains one of the
        trials.
      DamagedCheckpoint: the newest state of a trial cannot be read. This state was moved away, so a
        new call resumes the trial from an earlier state. The trials may then be at different steps.
      Interrupted: a shutdown was requested, and the states are saved.
      PeerLost: a process of a distributed run was lost. Earlier checkpoints and metrics are intact.
    """
    if finished_steps(files.resume) or finished_steps(files.checkpoints):
        raise InputError(
            f"{files.workdir} already contains a population; use a new folder for each start of a "
            "population"
        )
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
    check_initial(trials)
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
        with contextlib.suppress(NonFiniteLoss):  # All trials diverged; the records have the steps.
            training.loop(title).run(stop, shutdown)
    return records


def _scorings(trials: Sequence[Trial]) -> dict[int, ProbeMetrics]:
    """Create one `ProbeMetrics` for each distinct dataset; the keys are `id(dataset)`."""
    return {
        key: ProbeMetrics(dataset)
        for key, dataset in {id(t.dataset): t.dataset for t in trials}.items()
    }


def _start(trials: Sequence[Trial], program: setup.Program) -> saved_states.StartingPoint | None:
    """Load the newest state of each trial, or return None if no trial has a saved state."""
    saved = [saved_states.newest(trial.files) for trial in trials]
    found = [each for each in saved if each is not None]
    if not found:
        return None
    if len({None if each is None else each.step for each in saved}) > 1:
        raise InputError(
            "the newest states of the trials are from different steps; the trials of a population "
            "must all be new or all resume from the same step"
        )
    start, damage = None, None
    try:
        start = saved_states.read(found, program.like, stacked=True)
    except DamagedCheckpoint as error:
        damage = error
    if distributed.allgather(np.array([damage is None], np.float32)).all():
        return start
    if (
        damage is None or distributed.is_distributed()
    ):  # One process alone must not move files that other processes read.
        said = damage or "another process of the run cannot read the newest state of a trial"
        raise InputError(
            f"{said}; move this state to a different folder to resume from the previous state"
        )
    for trial, each in zip(trials, found, strict=True):
        if (
            each.folder / str(each.step) == damage.folder
            and len(saved_states.all_states(trial.files)) == 1
        ):
            raise InputError(
                f"no state of the trial {trial.files.workdir} can be read; remove this folder to "
                "train the trial again from step 0"
            )
    saved_states.set_aside(damage.folder)
    raise damage


def make_mesh(sizes: Mapping[str, int]) -> Mesh:
    """Make the mesh of a population. The axis `trial` gets all devices that `sizes` leaves free."""
    return sharding.make_mesh({**sizes, "trial": -1, "data": max(1, sizes["data"])})


def make_population(trials: Sequence[Trial]) -> setup.Program:
    """Make one program for all trials. The arguments of the program have a leading trial axis.

    Raises:
      InputError: the trials differ in a field outside `VARIED` or in the shapes of their arrays, or
        the mesh does not fit the devices.
    """
    settings = trials[0].settings
    mesh = make_mesh(settings.mesh)
    _check_alike(trials)
    recipes = [setup.make_recipe(trial.settings, trial.dataset, mesh) for trial in trials]
    devices = mesh.shape["trial"]
    # Inside the `shard_map` over `trial`, a `PartitionSpec` refers to the mesh of that context.
    by_rows = PartitionSpec("data") if devices > 1 else recipes[0].batch_sharding
    recipe = dataclasses.replace(recipes[0], batch_sharding=by_rows)
    filled = [*trials, *[trials[0]] * (-len(trials) % devices)]
    whole, by_trial = sharding.replicated(mesh), NamedSharding(mesh, PartitionSpec("trial"))

    datasets = list({id(trial.dataset): trial.dataset for trial in filled}.values())
    number = [next(n for n, d in enumerate(datasets) if d is trial.dataset) for trial in filled]
    rows = _all_rows(datasets, number, settings.early)
    probes, chunks = _all_probes(datasets, number)
    probes, chunks = jax.device_put(probes, whole), jax.device_put(chunks, by_trial)

    seeds = jnp.array([trial.settings.seed for trial in filled], jnp.int32)
    init_keys, stream_keys = jax.jit(jax.vmap(setup.keys), out_shardings=by_trial)(seeds)
    hypers = [optimizer.hyperparameters(trial.settings.optimizer) for trial in filled]
    functions = _functions(recipe, mesh, settings.fsdp, len(filled))
    return setup.Program(
        recipe=recipe,
        rows=TrainingRows(jax.device_put(rows.table, whole), *jax.device_put(rows[1:], by_trial)),
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
    """The functions of `setup.CompiledFunctions` for a population, and its evaluation."""

    like: Any
    init: Wrapped
    advance: Wrapped
    snapshot: Wrapped
    evaluate: Wrapped


@functools.lru_cache(maxsize=setup.MAX_KEPT_PROGRAMS)
def _functions(recipe: StepRecipe, mesh: Mesh, fsdp: bool, count: int) -> _Functions:
    """Return the compiled functions for `count` trials; equal arguments share one compilation."""
    whole = sharding.replicated(mesh)
    dealt = functools.partial(map_over_axis, mesh=mesh if mesh.shape["trial"] > 1 else None)

    def init(keys: Any) -> TrainState:
        state: TrainState = dealt(recipe.init, keys)
        return state

    def advance(state: TrainState, rows: TrainingRows, hyper: Any, keys: Any, n: Any) -> TrainState:
        def one(item: Any, table: RowTable, n: Any) -> TrainState:
            state, own, hyper, key = item
            return recipe.run(state, TrainingRows(table, *own), hyper, key, n)

        items = (state, rows[1:], hyper, keys)
        advanced: TrainState = dealt(one, items, shared=(rows.table, n))
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
                f"{trial.files.workdir} and {first.files.workdir} cannot be one population; trials "
                f"of a population may differ only in {', '.join(VARIED)}"
            )
        if (trial.dataset.vocab, trial.dataset.n_ctx) != (first.dataset.vocab, first.dataset.n_ctx):
            raise InputError(
                f"{trial.files.workdir} and {first.files.workdir} cannot be one population, "
                "because the tokens or the lengths of rows of their worlds differ"
            )


def _all_rows(
    datasets: Sequence[Dataset], number: Sequence[int], early: EarlySettings
) -> TrainingRows:
    """Concatenate the training rows of all worlds; `first` and `n_rows` have one entry per trial.

    Args:
      datasets: the distinct datasets.
      number: for each trial, the index of its dataset.
      early: the settings of early supervision.
    """
    slots = max(row_shape(dataset)["n_slots"] for dataset in datasets)
    parts = [setup.training_rows(dataset, early, slots) for dataset in datasets]
    sizes = np.array([part.n_rows for part in parts], np.int32)
    table = jax.tree.map(lambda *columns: np.concatenate(columns), *(part.table for part in parts))
    first = (np.cumsum(sizes) - sizes).astype(np.int32)
    return TrainingRows(table, first[number], sizes[number])


def _all_probes(
    datasets: Sequence[Dataset], number: Sequence[int]
) -> tuple[EvaluationRows, np.ndarray]:
    """Concatenate the probe chunks of all worlds.

    Args:
      datasets: the distinct datasets.
      number: for each trial, the index of its dataset.

    Returns:
      The chunks, and the indices of the chunks of each trial, int32 `[trial, chunk]`.
    """
    tables = [evaluation_rows(dataset) for dataset in datasets]
    sizes = np.array([len(table.tokens) for table in tables])
    starts = np.cumsum(sizes) - sizes
    # A trial that has fewer chunks than others repeats its last chunk. The results of the
    # repetitions are ignored.
    within = np.minimum(np.arange(sizes.max()), sizes[:, None] - 1)
    probes = jax.tree.map(lambda *columns: np.concatenate(columns), *tables)
    return probes, (starts[:, None] + within)[number].astype(np.int32)
