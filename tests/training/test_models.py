"""The files that a run writes, and its messages when it cannot continue."""

import json

import jax
import numpy as np
import pytest

from implicit_reasoning.errors import InputError
from implicit_reasoning.runs import Checkpoints, Run
from implicit_reasoning.runtime.sharding import make_mesh
from implicit_reasoning.training import NonFiniteLoss, train
from implicit_reasoning.training.evaluation import NEVER, Evaluation
from implicit_reasoning.training.settings import TrainingSettings
from implicit_reasoning.training.setup import make_recipe
from implicit_reasoning.worlds.spelling import END_TOKEN
from tests import shared
from tests.training.tiny import tiny


@pytest.fixture(scope="module")
def run():
    return Run(shared.finished())


def test_the_run_directory_is_as_the_plan_lays_it_out(run):
    present = {p.name for p in run.files.workdir.iterdir()}
    assert present == {
        *(".lock", "config.json", "world.npz", "provenance.json", "metrics.jsonl"),
        *("tensorboard", "checkpoints", "resume", "first_correct.npz"),
    }
    assert run.steps == (0, 25, 50, 60)
    assert sorted(p.name for p in run.files.resume.iterdir()) == ["40", "60"]


def test_rows_are_where_the_schedule_says_and_hold_what_they_should(run):
    rows = {row["step"]: row for row in run.metrics}
    logged, evaluated = set(range(0, 61, 7)) | {60}, {0, 1, 2, 3, 4, 6, 8, *range(10, 61, 10)}
    assert set(rows) == logged | evaluated
    assert evaluated == {step for step, row in rows.items() if "accuracy/test_ii" in row}
    for step, row in rows.items():
        assert ("loss" in row) == (step > 0)
        assert json.loads(json.dumps(row)) == row


def test_losses_are_means_over_the_steps_since_the_last_row(run):
    """Losses agree with a run that writes a row for every step."""
    every = Run(shared.finished(log_every=1))
    losses = {row["step"]: row["loss"] for row in every.metrics if "loss" in row}
    steps = [row["step"] for row in run.metrics]
    for before, row in zip(steps, run.metrics[1:], strict=False):
        mean = np.mean([losses[step] for step in range(before + 1, row["step"] + 1)])
        assert row["loss"] == pytest.approx(mean, rel=1e-6)


def test_first_correct_is_the_first_evaluation_that_was_right():
    """The record agrees with the saved parameters, at evaluations that have a checkpoint."""
    run = Run(shared.finished())
    found, evaluation = run.first_correct, Evaluation(run.model, run.dataset)
    np.testing.assert_array_equal(found["row"], np.flatnonzero(run.dataset.probe))
    evaluated = [row["step"] for row in run.metrics if "accuracy/test_ii" in row]
    assert set(found["step"]) <= {NEVER, *evaluated}
    both = [step for step in run.steps if step in evaluated]
    assert both == [0, 50, 60]
    for step in both:
        params = jax.tree.map(lambda leaf: leaf[0], run.params([step]))
        right = evaluation.correct(evaluation.launch(params))
        # A right row was recorded at this step or earlier. A row recorded at this step is right.
        assert ((found["step"][right] >= 0) & (found["step"][right] <= step)).all()
        assert right[found["step"] == step].all()
    assert {0, 50, 60} <= set(found["step"])  # otherwise nothing was learned that could be recorded


def test_seeds_of_world_and_initialisation_are_separate(run, tmp_path):
    other_init = Run(shared.seed(1))
    other_world = train(tiny(task__world_seed=1), tmp_path / "world", stop_at=0)
    assert other_init.dataset.fingerprint() == run.dataset.fingerprint()
    assert other_world.dataset.fingerprint() != run.dataset.fingerprint()
    first = run.params([0])["embed"]["W_E"]
    np.testing.assert_array_equal(other_world.params([0])["embed"]["W_E"], first)
    assert (other_init.params([0])["embed"]["W_E"] != first).any()


def test_what_was_kept_is_on_disk_before_the_run_can_resume_after_it(tmp_path, monkeypatch):
    """Otherwise a run that is killed between the two saves would not revisit the step of the
    checkpoint.
    """
    original, folder, seen = Checkpoints.save, tmp_path / "run" / "checkpoints", []

    def save(self, step, tree):
        if "state" in tree:  # a resume point; a checkpoint has parameters only
            due = {kept for kept in (0, 25, 50, 60) if kept <= step}
            seen.append({int(p.name) for p in folder.iterdir() if p.name.isdecimal()} >= due)
        original(self, step, tree)

    monkeypatch.setattr(Checkpoints, "save", save)
    train(tiny(), tmp_path / "run")
    assert seen == [True, True, True]


def test_divergence_names_its_step_and_keeps_what_was_whole(tmp_path):
    config = tiny(optimizer__learning_rate=1e30)
    with pytest.raises(NonFiniteLoss, match="not finite at step") as caught:
        train(config, tmp_path / "run")
    run = Run(tmp_path / "run")
    step = caught.value.step
    assert 0 < step < 60
    assert run.steps and max(run.steps) <= step
    assert all(np.isfinite(leaf).all() for leaf in run.params()["embed"].values())
    assert all(np.isfinite(row.get("loss", 0)) for row in run.metrics)
    # Training again raises the same error and does not succeed silently.
    with pytest.raises(NonFiniteLoss, match=rf"at step {step}\."):
        train(config, tmp_path / "run")


@pytest.mark.parametrize("stop_at", [-1, 61])
def test_stopping_outside_the_run_is_refused(stop_at, tmp_path):
    with pytest.raises(InputError, match=r"stop_at is -?\d+; it must be between 0 and steps = 60"):
        train(tiny(), tmp_path / "run", stop_at=stop_at)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task__phi": 99.0}, "phi"),
        ({"model__n_heads": 3}, "not a multiple of"),
        ({"order": "random"}, "order is 'random'"),
        ({"optimizer__schedule": "linear"}, "schedule is 'linear'"),
        ({"mesh__data": 7}, "mesh"),
        ({"log_every": 0}, "log_every is 0"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(change, message, tmp_path):
    with pytest.raises(InputError, match=message):
        train(tiny(**change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_published_settings_train_too(dropout, tmp_path):
    """Epoch order, end token, tied weights, dropout, loops and bfloat16 train together."""
    config = tiny(
        order="epochs",
        task__end_token=True,
        model__n_layers=1,
        model__tied=True,
        model__dropout=dropout,
        model__n_loops=2,
        model__dtype="bfloat16",
        optimizer__schedule="constant",
    )
    run = train(config, tmp_path / "run")
    recipe = make_recipe(TrainingSettings.from_config(config), run.dataset, make_mesh(config.mesh))
    assert (recipe.order, recipe.dropout) == ("epochs", dropout)
    assert (recipe.model.spec.dtype, recipe.model.spec.depth) == ("bfloat16", 2)
    assert END_TOKEN in run.dataset.vocab and "unembed" not in run.params([60])
    rows = [row for row in run.metrics if row["step"] > 5]
    assert len({row["learning_rate"] for row in rows}) == 1
    assert rows[-1]["loss"] < 0.97 * rows[0]["loss"]  # the model learns
    assert run.model.spec.dtype == "float32" and run.model.spec.precision == "highest"
