"""Setup of training: checks of a configuration, and the compiled program that trains a run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.stages import Wrapped
from jaxtyping import Array
from ml_collections import ConfigDict

from implicit_reasoning.config import flatten, schema_faults, value_faults
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.runs import fields
from implicit_reasoning.runtime import distributed, sharding
from implicit_reasoning.training import batches, optimizer, schedule
from implicit_reasoning.training.cost import row_shape
from implicit_reasoning.training.early import NO_EARLY, EarlySettings, early_targets
from implicit_reasoning.training.evaluation import Outcome, make_evaluator
from implicit_reasoning.training.settings import TrainingSettings, make_model
from implicit_reasoning.training.step import RowTable, StepRecipe, TrainingRows
from implicit_reasoning.worlds import Dataset

MAX_KEPT_PROGRAMS = 8
"""Maximum number of cached programs. Programs of populations are cached separately."""


def check_config(config: ConfigDict) -> None:
    """Check that a configuration is valid for training.

    Raises:
      InputError: fields are missing, unknown or out of bounds. The message lists all such fields.
    """
    values = flatten(config)
    faults = schema_faults(values, fields.schema(config), fields.open_groups(config))
    faults += _large(values)
    if not faults:  # The following checks need valid fields.
        faults += schedule.faults(values) + distributed.faults(config.distributed)
    if faults:
        raise InputError("the configuration cannot be trained: " + "; ".join(faults))


def field_faults(values: Mapping[str, Any]) -> list[str]:
    """Return an error message for each field that is out of bounds.

    Args:
      values: dict from dotted names of fields to values. Fields may be missing.
    """
    return value_faults(values, fields.FIELDS) + _large(values)


def _large(values: Mapping[str, Any]) -> list[str]:
    bounded = {key for key, field in fields.FIELDS.items() if field.bounded}
    return [
        f"{key} is {value}; counts and seeds must be below 2**31"
        for key, value in values.items()
        if key not in bounded and isinstance(value, int) and abs(value) >= 2**31
    ]


def make_recipe(settings: TrainingSettings, dataset: Dataset, mesh: Mesh) -> StepRecipe:
    """Create the training step of a run.

    Raises:
      InputError: the order of the rows is invalid, the batch size is not a multiple of the size of
        the mesh axis `data`, or the layers of early supervision do not exist in the model.
    """
    batches.check_order(settings.order, settings.batch_size, dataset.n_train)
    if settings.batch_size % mesh.shape["data"]:
        raise InputError(
            f"batch_size is {settings.batch_size}; it must be a multiple of mesh.data = "
            f"{mesh.shape['data']}, because each device must get an equal share of a batch"
        )
    model = make_model(settings.model, dataset)
    return StepRecipe(
        model=model,
        preconditioner=optimizer.preconditioner(settings.optimizer),
        relative_rate=optimizer.relative_rate(settings.optimizer, settings.schedule.horizon),
        batch_size=settings.batch_size,
        order=settings.order,
        dropout=settings.dropout,
        log_every=settings.schedule.log_every,
        batch_sharding=sharding.row_sharded(mesh),
        early=settings.early.resolve(model),
    )


def training_rows(
    dataset: Dataset, early: EarlySettings = NO_EARLY, n_slots: int | None = None
) -> TrainingRows:
    """Return the training rows of a dataset as numpy arrays.

    Args:
      dataset: the dataset.
      early: the settings of early supervision.
      n_slots: the number of supervised positions per row after padding. The default is the largest
        number of supervised positions in a row of this dataset.
    """
    tokens, targets = dataset.tokens[: dataset.n_train], dataset.targets[: dataset.n_train]
    supervised, slots = targets >= 0, n_slots or row_shape(dataset)["n_slots"]
    # The supervised positions come first, in order. The remaining slots have the answer -1.
    positions = np.argsort(~supervised, axis=1, kind="stable")[:, :slots].astype(np.int32)
    return TrainingRows(
        table=RowTable(
            tokens=tokens,
            positions=positions,
            answers=np.take_along_axis(targets, positions, axis=1),
            early=early_targets(dataset, early.rows) if early.weight else None,
        ),
        first=np.array(0, np.int32),
        n_rows=np.array(dataset.n_train, np.int32),
    )


class Program(NamedTuple):
    """The jitted functions of a run, and their arguments.

    In the program of a population (jointly trained trials), all arrays except the row tables have a
    leading trial axis.

    Attributes:
      recipe: the training step.
      rows: the training rows, replicated on every device.
      hyper: the traced hyperparameters.
      init_key: the random key of the initialization.
      stream_key: the random key of data order and dropout.
      whole: the sharding of arrays that are replicated on all devices.
      like: the shapes and shardings of the state.
      init: `init(init_key)` returns the state before the first step.
      advance: `advance(state, rows, hyper, stream_key, n_steps)` returns the state after `n_steps`
        more steps. The buffers of `state` are donated.
      snapshot: `snapshot(state, hyper)` returns copies of the values that the host reads.
      evaluate: `evaluate(params)` returns an `Outcome`: loss and rank of the evaluated rows.
      split: converts a host pytree with a trial axis to a list with one pytree per trial.
      stack: converts a list with one array per trial to one array with a trial axis.
    """

    recipe: StepRecipe
    rows: TrainingRows
    hyper: optimizer.Hyperparameters
    init_key: Any
    stream_key: Any
    whole: NamedSharding
    like: Any
    init: Wrapped
    advance: Wrapped
    snapshot: Wrapped
    evaluate: Callable[[Params], Outcome]
    split: Callable[[Any], list[Any]]
    stack: Callable[[Sequence[np.ndarray]], np.ndarray]


def make_program(settings: TrainingSettings, dataset: Dataset) -> Program:
    """Make the program of a single run on the mesh in `settings`.

    Raises:
      InputError: the settings contradict each other, the dataset or the devices.
    """
    mesh = sharding.make_mesh(settings.mesh)
    whole, recipe = sharding.replicated(mesh), make_recipe(settings, dataset, mesh)
    seed = sharding.put_scalar(settings.seed, whole)
    init_key, stream_key = jax.jit(keys, out_shardings=whole)(seed)
    functions = _functions(recipe, mesh, settings.fsdp)
    return Program(
        recipe=recipe,
        rows=jax.device_put(training_rows(dataset, settings.early), whole),
        hyper=jax.device_put(optimizer.hyperparameters(settings.optimizer), whole),
        init_key=init_key,
        stream_key=stream_key,
        whole=whole,
        like=functions.like,
        init=functions.init,
        advance=functions.advance,
        snapshot=functions.snapshot,
        evaluate=make_evaluator(recipe.model, dataset, whole),
        split=lambda tree: [tree],
        stack=lambda arrays: arrays[0],
    )


class CompiledFunctions(NamedTuple):
    """The jitted functions of a `Program`, and the shapes and shardings of its state.

    This object contains no arrays, so a cached object needs no device memory.
    """

    like: Any
    init: Wrapped
    advance: Wrapped
    snapshot: Wrapped


@functools.lru_cache(maxsize=MAX_KEPT_PROGRAMS)
def _functions(recipe: StepRecipe, mesh: Mesh, fsdp: bool) -> CompiledFunctions:
    """Return the jitted functions; equal arguments share one compilation in a process."""
    shapes = jax.eval_shape(lambda: recipe.init(jax.random.key(0)))
    places = sharding.tree_shardings(mesh, shapes, mesh_axes(recipe.model), fsdp=fsdp)
    return CompiledFunctions(
        like=placed(shapes, places),
        init=jax.jit(recipe.init, out_shardings=places),
        advance=jax.jit(recipe.run, donate_argnums=0, out_shardings=places),
        snapshot=jax.jit(recipe.snapshot, out_shardings=sharding.replicated(mesh)),
    )


def mesh_axes(model: Transformer) -> dict[str, tuple[str | None, ...]]:
    """Return the mesh axes of every parameter, for `sharding.tree_shardings`."""
    return {name: parameter.axes for name, parameter in model.parameters.items()}


def placed(shapes: Any, places: Any) -> Any:
    """Return the pytree `shapes` with the shardings from the pytree `places`."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        shapes,
        places,
    )


def keys(seed: int | Array) -> tuple[Any, Any]:
    """Return the random keys of a run: `(initialization, stream)`.

    The stream key determines data order and dropout. At every update, `fold_in(stream, step)` gives
    the key of the step.
    """
    init_key, stream_key = jax.random.split(jax.random.key(seed))
    return init_key, stream_key
