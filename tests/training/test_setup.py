"""A configuration is checked, with all faults reported at once, and turned into training data."""

import dataclasses
import gc
import weakref
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from implicit_reasoning.config import apply_overrides, load_config
from implicit_reasoning.errors import InputError
from implicit_reasoning.runs.fields import FIELDS
from implicit_reasoning.runtime.sharding import make_mesh
from implicit_reasoning.training import setup
from implicit_reasoning.training.settings import TrainingSettings
from implicit_reasoning.training.setup import (
    check_config,
    keys,
    make_model,
    make_program,
    make_recipe,
    training_rows,
)
from implicit_reasoning.worlds import build
from tests.training.tiny import tiny


def test_a_whole_configuration_passes():
    check_config(tiny())


def test_all_faults_are_told_at_once():
    config = tiny(steps=0, optimizer__b2=1.0, model__dropout=1.0, optimizer__clip_norm=-1.0)
    config_mesh = tuple(config.mesh)
    with config.unlocked():
        del config.batch_size, config.optimizer.eps, config.mesh
    with pytest.raises(InputError) as caught:
        check_config(config)
    faults = str(caught.value).removeprefix("the configuration cannot be trained: ").split("; ")
    missing = ("batch_size", "optimizer.eps", *(f"mesh.{name}" for name in config_mesh))
    assert {fault for fault in faults if "missing" in fault} == {f"{k} is missing" for k in missing}
    for key in ("steps is 0", "optimizer.b2 is 1.0", "dropout is 1.0", "clip_norm is -1.0"):
        assert key in str(caught.value)
    assert str(caught.value).count("it must be between") == 4
    assert "steps is 0; it must be between 1 and 2.14748e+09" in str(caught.value)


@pytest.mark.parametrize("key", [key for key, field in FIELDS.items() if field.required])
def test_every_required_field_is_missed(key):
    config = tiny()
    *groups, name = key.split(".")
    group = config
    for each in groups:
        group = group[each]
    with config.unlocked():
        del group[name]
    with pytest.raises(
        InputError, match=rf"^the configuration cannot be trained: {key} is missing$"
    ):
        check_config(config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch_size", 0),
        ("log_every", 0),
        ("resume_every", 0),
        ("evaluation__every", 0),
        ("evaluation__per_doubling", -1),
        ("checkpoints__every", -5),
        ("checkpoints__per_doubling", 65),
        ("model__dropout", -0.1),
        ("optimizer__learning_rate", -1e-3),
        ("optimizer__weight_decay", -1.0),
        ("optimizer__warmup_steps", -1),
        ("optimizer__final_fraction", 1.5),
        ("optimizer__b1", 1.0),
        ("optimizer__eps", 0.0),  # 0 / 0 for every token that has not occurred
    ],
)
def test_values_that_cannot_work_are_refused(key, value):
    key_in_words = key.replace("__", ".")
    with pytest.raises(
        InputError, match=f"trained: {key_in_words} is {value}; it must be (between|at least)"
    ):
        check_config(tiny(**{key: value}))


@pytest.mark.parametrize("value", [float("nan"), "100", None])
def test_what_is_no_number_is_out_of_bounds(value):
    """A configuration file may contain any value."""
    config = tiny()
    with config.unlocked(), config.optimizer.ignore_type():
        config.optimizer.weight_decay = value
    with pytest.raises(InputError, match=r"weight_decay is ('100'|nan|None); it must be between 0"):
        check_config(config)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(tiny().mesh)


def settings_of(**changes):
    return TrainingSettings.from_config(tiny(**changes))


@pytest.fixture(scope="module", params=[False, True], ids=["answer", "answer and end token"])
def dataset(request):
    return build(tiny(task__end_token=request.param).task)


def assert_spells_the_targets(rows, dataset):
    """Targets agree position by position and row by row."""
    assert rows.n_rows == dataset.n_train == len(rows.table.tokens)
    np.testing.assert_array_equal(rows.table.tokens, dataset.tokens[: dataset.n_train])
    columns = dataset.targets[: dataset.n_train], rows.table.positions, rows.table.answers
    for targets, positions, answers in zip(*columns, strict=True):
        wanted = [(i, target) for i, target in enumerate(targets.tolist()) if target >= 0]
        slots = list(zip(positions.tolist(), answers.tolist(), strict=True))
        assert slots[: len(wanted)] == wanted
        assert all(answer == -1 for _, answer in slots[len(wanted) :])
    assert {leaf.dtype for leaf in jax.tree.leaves(rows)} == {np.dtype(np.int32)}


def test_training_rows_are_the_supervised_positions(dataset):
    rows = training_rows(dataset)
    assert rows.table.positions.shape == (dataset.n_train, 2 if "</a>" in dataset.vocab else 1)
    assert_spells_the_targets(rows, dataset)


def test_rows_with_fewer_supervised_positions_are_filled_up_with_nothing(dataset):
    targets = dataset.targets.copy()
    targets[::3, 0] = 5  # rows now have one to three targets, in any order
    targets[1::3] = np.where(np.arange(dataset.n_ctx) == 1, 7, -1)
    uneven = dataclasses.replace(dataset, targets=targets)
    rows = training_rows(uneven)
    assert (rows.table.answers == -1).any()
    assert_spells_the_targets(rows, uneven)


def test_a_batch_is_shared_equally():
    settings, dataset = settings_of(batch_size=15), build(tiny().task)
    two = Mock(spec=Mesh, shape={"trial": 1, "data": 2, "model": 1})  # this machine has one device
    with pytest.raises(
        InputError, match=r"batch_size is 15; it must be a multiple of mesh.data = 2"
    ):
        make_recipe(settings, dataset, two)


def test_equal_programs_share_compiled_functions_and_no_data():
    """Otherwise each call of `train` would trace for seconds, and retained data would fill the
    memory.
    """
    dataset, another = build(tiny().task), build(tiny(task__world_seed=2).task)
    program = make_program(settings_of(), dataset)
    other = make_program(settings_of(seed=3, optimizer__learning_rate=0.1), another)
    assert other.advance is program.advance and other.init is program.init
    for change in ({"optimizer__b1": 0.8}, {"optimizer__warmup_steps": 6}, {"log_every": 8}):
        assert make_program(settings_of(**change), dataset).advance is not program.advance
    rows = weakref.ref(program.rows.table.tokens)
    del program
    gc.collect()
    assert rows() is None
    assert setup._functions.cache_info().maxsize == setup.MAX_KEPT_PROGRAMS


def test_the_model_is_sized_for_its_dataset(dataset):
    spec = make_model(settings_of(model__precision="high").model, dataset).spec
    assert (spec.d_vocab, spec.n_ctx) == (dataset.n_vocab, dataset.n_ctx)
    assert (spec.d_model, spec.n_layers, spec.precision) == (8, 2, "high")


def test_seeds_and_purposes_have_keys_of_their_own():
    numbers = {tuple(jax.random.key_data(key).tolist()) for seed in (0, 1) for key in keys(seed)}
    assert len(numbers) == 4


def test_a_task_without_rows_to_train_on_is_refused():
    config = load_config("configs/modular_addition.py:pocket")
    dataset = build(apply_overrides(config, {"task.train_fraction": 0.0}).task)
    with pytest.raises(InputError, match="no training rows"):
        training_rows(dataset)
