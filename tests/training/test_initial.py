"""A run can begin with the parameters of a checkpoint of another run."""

import shutil

import jax
import numpy as np
import pytest

from implicit_reasoning.errors import InputError
from implicit_reasoning.runs import Layout, Run
from implicit_reasoning.runtime.shutdown import ShutdownRequest
from implicit_reasoning.training import train
from implicit_reasoning.training.population import train_population
from tests import shared
from tests.training.test_population import trials
from tests.training.tiny import tiny


def assert_equal_params(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="module")
def source():
    return Run(shared.finished())


def from_(run, step=-1, **changes):
    """Return a configuration that begins with a checkpoint, on another world."""
    names = {"init_from__workdir": str(run.files.workdir), "init_from__step": step}
    return tiny(**{"task__world_seed": 2, "task__phi": 1.2} | names | changes)


@pytest.mark.parametrize(
    ("step", "found"), [pytest.param(25, 25, marks=pytest.mark.slow), (-1, 60)]
)
def test_step_0_is_the_checkpoint_and_training_goes_on_from_it(source, tmp_path, step, found):
    run = train(from_(source, step), tmp_path / "run", stop_at=7)
    assert_equal_params(run.params([0]), source.params([found]))
    start = run.starts[0]
    assert start["init_from"] == {
        "workdir": str(source.files.workdir),
        "step": found,
        "fingerprint": source.fingerprint(found),
    }
    # Adam's moments start at 0, and the learning rate starts its warm-up again.
    assert run.metrics[0]["step"] == 0 and run.metrics[0]["learning_rate"] == 0


@pytest.mark.slow
def test_the_source_is_not_needed_to_resume(source, tmp_path):
    copy = shutil.copytree(source.files.workdir, tmp_path / "source")
    config = from_(Run(copy))
    whole = train(config, tmp_path / "whole")
    train(config, tmp_path / "resumed", stop_at=25)
    shutil.rmtree(copy)
    resumed = train(config, tmp_path / "resumed")
    assert_equal_params(resumed.params(), whole.params())
    assert "init_from" not in resumed.starts[1]


@pytest.mark.slow
def test_trials_of_a_population_begin_with_their_own_checkpoints(source, tmp_path):
    names = {"init_from__workdir": str(source.files.workdir)}
    changes = ({}, names, {**names, "init_from__step": 25, "task__world_seed": 2})
    made = trials(tmp_path, changes)
    train_population(made, Layout(tmp_path / "population"), 7, ShutdownRequest())
    random, last, early = (Run(trial.files.workdir).params([0]) for trial in made)
    assert_equal_params(random, source.params([0]))
    assert_equal_params(last, source.params([60]))
    assert_equal_params(early, source.params([25]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from__step": 26}, r"init_from.step is 26, but .* no checkpoint .* steps 0, 25,"),
        ({"init_from__workdir": "nowhere"}, "there is no directory|not a run directory|nowhere"),
        (
            {"model__d_mlp": 24},
            r"do not fit the model: blocks.0.mlp.W_in has shape \(8, 16\) in the checkpoint and",
        ),
        ({"model__n_layers": 3}, r"do not fit the model: blocks.2.* has shape none in"),
        ({"task__n_entities": 13}, r"do not fit the model: embed.W_E has shape"),
    ],
)
def test_what_cannot_be_the_beginning_is_refused_before_anything_is_written(
    source, tmp_path, changes, message
):
    with pytest.raises(InputError, match=message):
        train(from_(source, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
