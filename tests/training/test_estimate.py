"""The estimate of what a run needs agrees with what a run needs."""

import jax
import numpy as np
import pytest

from implicit_reasoning.config import apply_overrides
from implicit_reasoning.errors import InputError
from implicit_reasoning.runtime import sharding
from implicit_reasoning.training import setup
from implicit_reasoning.training.estimate import plan
from implicit_reasoning.training.settings import TrainingSettings
from implicit_reasoning.worlds import build
from tests.training.tiny import tiny


def test_sizes_are_those_of_the_run():
    config = tiny()
    planned = plan(config, measure=False)
    settings, dataset = TrainingSettings.from_config(config), build(config.task)
    mesh = sharding.make_mesh(settings.mesh)
    recipe, rows = setup.make_recipe(settings, dataset, mesh), setup.training_rows(dataset)
    state = jax.eval_shape(recipe.init, jax.random.key(0))
    assert planned.cost.parameters == sum(leaf.size for leaf in jax.tree.leaves(state.params))
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.moments)) - 1  # without Adam's count
    assert planned.cost.state_bytes == 4 * (planned.cost.parameters + moments)
    assert planned.rows_bytes == sum(np.asarray(column).nbytes for column in rows.table[:3])
    assert planned.rows == dataset.n_train
    assert planned.seconds is None and "steps/s" not in planned.describe()


@pytest.mark.slow
def test_a_measured_plan_estimates_time():
    config = tiny()
    planned = plan(config)
    speed = planned.speed
    assert planned.seconds > config.steps * speed.step_seconds
    # The compiled loop contains at least the state and the rows. Donated buffers count once.
    assert speed.device_bytes >= planned.cost.state_bytes + planned.rows_bytes
    assert "steps/s" in planned.describe() and "about" in planned.describe()


def test_what_cannot_be_trained_cannot_be_planned():
    with pytest.raises(InputError, match="batch_size"):
        plan(apply_overrides(tiny(), {"batch_size": 0}))
