"""Trials of a population equal runs that are trained alone, whatever happens to other trials."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from implicit_reasoning.errors import InputError
from implicit_reasoning.runs import Layout, Run, read_segments
from implicit_reasoning.runtime.shutdown import ShutdownRequest
from implicit_reasoning.training import Interrupted, saved_states, train
from implicit_reasoning.training.population import train_population
from implicit_reasoning.training.settings import Trial
from implicit_reasoning.worlds import build
from tests import shared
from tests.training.tiny import tiny

# Everything that may differ does; the second has fewer training rows and fewer probe rows.
VARIED = (
    {},
    {"task__world_seed": 2, "task__phi": 1.2},
    {"seed": 5, "optimizer__weight_decay": 0.1, "optimizer__learning_rate": 3e-3},
)
DIVERGES = {"optimizer__learning_rate": 1e30, "optimizer__clip_norm": 1.0}


def trials(folder, changes=VARIED, **common):
    configs = [tiny(**common, **change) for change in changes]
    return [
        Trial(config, build(config.task), Layout(folder / f"trial{number}"))
        for number, config in enumerate(configs)
    ]


def alone(number):
    """Return the run of a trial that is trained alone."""
    return Run(shared.finished(**VARIED[number]))


@pytest.mark.slow
def test_each_trial_is_the_run_alone(tmp_path):
    """On one CPU they are bit-identical, because the same program runs trial after trial."""
    made = trials(tmp_path)
    train_population(made, Layout(tmp_path / "population"), 60, ShutdownRequest())
    for trial, run in zip(made, map(alone, range(3)), strict=True):
        # The files of a trial are those of a run, except parameters and states, which are stacked.
        opened = Run(trial.files.workdir)
        assert opened.steps == run.steps
        jax.tree.map(np.testing.assert_array_equal, opened.params(), run.params())
        np.testing.assert_array_equal(opened.first_correct["step"], run.first_correct["step"])
        own = [{k: v for k, v in row.items() if "time" not in k} for row in opened.metrics]
        assert [row["loss"] for row in own[1:]] == [row["loss"] for row in run.metrics[1:]]
        assert own[-1]["accuracy/test_ii"] == run.metrics[-1]["accuracy/test_ii"]
        assert not list(trial.files.workdir.glob("checkpoints"))


@pytest.mark.slow
def test_stopped_and_gone_on_with_in_whatever_company(tmp_path, monkeypatch):
    """Train all trials to step 20, then one alone and two together to 40, then all in another
    order.
    """
    original, read = saved_states.read_tree, []
    monkeypatch.setattr(
        saved_states, "read_tree", lambda *file: read.append(file) or original(*file)
    )
    made = trials(tmp_path)
    train_population(made, Layout(tmp_path / "a"), 20, ShutdownRequest())
    train(made[0].config, made[0].files.workdir, stop_at=40)
    assert len(read) == 1
    train_population(made[1:], Layout(tmp_path / "b"), 40, ShutdownRequest())
    assert len(read) == 2  # one saved state is read once for all its trials
    train_population([made[n] for n in (2, 1, 0)], Layout(tmp_path / "c"), 60, ShutdownRequest())
    for trial, run in zip(made, map(alone, range(3)), strict=True):
        opened = Run(trial.files.workdir)
        assert opened.steps == run.steps
        jax.tree.map(np.testing.assert_array_equal, opened.params(), run.params())
        np.testing.assert_array_equal(opened.first_correct["step"], run.first_correct["step"])
        assert [row["step"] for row in opened.metrics] == [row["step"] for row in run.metrics]
    assert [part.row for part in read_segments(made[1].files)] == [1, 0, 1]
    assert [part.last for part in read_segments(made[1].files)] == [20, 40, None]


@pytest.mark.slow
def test_a_signal_saves_all_trials_and_nothing_changes(tmp_path):
    made, wish = trials(tmp_path), ShutdownRequest()
    wish.number = 15
    with pytest.raises(Interrupted, match="saved at step 0"):
        train_population(made, Layout(tmp_path / "population"), 60, wish)
    with pytest.raises(InputError, match="use a new folder for each start"):
        train_population(made, Layout(tmp_path / "population"), 60, ShutdownRequest())
    train_population(made, Layout(tmp_path / "again"), 60, ShutdownRequest())
    for trial, run in zip(made, map(alone, range(3)), strict=True):
        jax.tree.map(np.testing.assert_array_equal, Run(trial.files.workdir).params(), run.params())


def test_a_trial_that_diverges_does_not_disturb_the_others(tmp_path):
    made, told = trials(tmp_path, (VARIED[0], {**DIVERGES, "seed": 9}, VARIED[1])), []
    records = train_population(
        made,
        Layout(tmp_path / "population"),
        60,
        ShutdownRequest(),
        lost=lambda *said: told.append(said),
    )
    assert told == [(1, records[1].diverged)]
    assert records[0].diverged is None and records[2].diverged is None
    lost = Run(made[1].files.workdir)
    assert 0 < records[1].diverged < 60
    assert max(lost.steps) <= records[1].diverged and lost.metrics[-1]["step"] < 60
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(lost.params()))
    for number, run in ((0, alone(0)), (2, alone(1))):
        opened = Run(made[number].files.workdir)
        jax.tree.map(np.testing.assert_array_equal, opened.params(), run.params())


@pytest.mark.slow
def test_with_all_trials_lost_it_says_so(tmp_path):
    made = trials(tmp_path, ({**DIVERGES, "seed": 1}, {**DIVERGES, "seed": 2}))
    records = train_population(made, Layout(tmp_path / "population"), 60, ShutdownRequest())
    assert all(0 < record.diverged < 60 for record in records)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (({}, {"model__d_model": 16}), "may differ only in seed, optimizer.learning_rate"),
        (({}, {"task__n_entities": 13}), "may differ only in seed"),
    ],
)
def test_what_cannot_be_one_population_is_refused_before_anything_is_written(
    changes, said, tmp_path
):
    with pytest.raises(InputError, match=said):
        train_population(
            trials(tmp_path, changes), Layout(tmp_path / "population"), 60, ShutdownRequest()
        )
    assert not list(tmp_path.iterdir())


def test_another_process_in_one_of_the_trials_is_met_by_name(tmp_path):
    made = trials(tmp_path, VARIED[:2])
    made[1].files.workdir.mkdir()
    hold = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
        "print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", hold, str(made[1].files.workdir / ".lock")], stdout=subprocess.PIPE
    )
    try:
        assert other.stdout.readline()
        with pytest.raises(InputError, match=r"another process is training in .*trial1"):
            train_population(made, Layout(tmp_path / "population"), 60, ShutdownRequest())
    finally:
        other.kill()
        other.communicate()


PROGRAM = """
import json, sys, jax
from pathlib import Path
from implicit_reasoning.runs import Layout, Run
from implicit_reasoning.runtime.shutdown import ShutdownRequest
from implicit_reasoning.training.population import train_population
from tests.training.test_population import trials
assert jax.device_count() == 8
folder, mesh = Path(sys.argv[1]), json.loads(sys.argv[2])
made = trials(folder, **mesh)
train_population(made, Layout(folder / "first"), 14, ShutdownRequest())
train_population(made, Layout(folder / "second"), 28, ShutdownRequest())
print(json.dumps([[row["loss"] for row in Run(t.files.workdir).metrics[1:]] for t in made]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param({}, id="trials over 8"),
        pytest.param({"mesh__data": 2, "mesh__model": 2}, id="trials, rows, heads over 2 each"),
        pytest.param({"mesh__data": 4, "mesh__fsdp": True}, id="trials over 2, weights over 4"),
    ],
)
def test_losses_on_eight_devices_are_those_of_one(mesh, alone, tmp_path):
    """Three trials on a device axis of 8 or 2 are padded with copies whose results are not read.

    Eight devices on two cores are slow, so they train 28 of the 60 steps, with a stop at step 14.
    """
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": os.getcwd()}
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), json.dumps(mesh)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stderr
    for losses, run in zip(json.loads(said.stdout), alone, strict=True):
        expected = [row["loss"] for row in run.metrics[1:] if row["step"] <= 28]
        np.testing.assert_allclose(losses, expected, rtol=1e-5)
