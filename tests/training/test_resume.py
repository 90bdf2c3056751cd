"""A run that is stopped or killed at any moment and started again is the same run."""

import os
import signal
import subprocess
import sys
import time

import pytest

from implicit_reasoning.__main__ import main
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import write_json
from implicit_reasoning.runs import Run
from implicit_reasoning.runtime.writers import read_metrics
from implicit_reasoning.training import train
from implicit_reasoning.training.loop import ResumableLoop
from tests import shared
from tests.training.tiny import LONG, TINY, assert_same_run, saved_state, tiny

COMMAND = [
    *(sys.executable, "-m", "implicit_reasoning", "train"),
    "--config=configs/composition.py:pocket",
]


@pytest.fixture
def uninterrupted():
    return shared.finished()


@pytest.fixture
def copied(tmp_path):
    """Return a copy of the finished run, for further training."""
    return shared.finished_copy(tmp_path / "copied")


def start(workdir, **changes):
    """Start the command in another process."""
    overrides = [f"--config.{key}={value}" for key, value in {**TINY, **changes}.items()]
    command = [*COMMAND, f"--workdir={workdir}", *overrides]
    return subprocess.Popen(command, env=dict(os.environ), stderr=subprocess.PIPE, text=True)


# Stops are between rows, at a checkpoint and at an evaluation; 0 is before the first update.
@pytest.mark.parametrize(
    "stops", [(0, 25, 47, 60), pytest.param((0, 3, 25, 30, 47, 60), marks=pytest.mark.slow)]
)
def test_stopped_at_odd_steps_and_resumed_it_is_the_same_run(stops, uninterrupted, tmp_path):
    for stop in stops:
        run = train(tiny(), tmp_path / "run", stop_at=stop)
        assert saved_state(run.files.workdir)["at"] == stop
    assert_same_run(uninterrupted, tmp_path / "run")


def test_a_finished_run_is_left_as_it_is_and_what_may_change_may(copied):
    before = read_metrics(copied / "metrics.jsonl")
    train(tiny(writers__tensorboard=False, mesh__data=1), copied)
    train(tiny(), copied)
    assert read_metrics(copied / "metrics.jsonl") == before


def _a_row(workdir, step):
    return any(row["step"] >= step for row in read_metrics(workdir / "metrics.jsonl"))


def _saves(workdir):
    """Return whether a save is going on; Orbax then uses a temporary name."""
    return any(workdir.glob("*/*orbax-checkpoint-tmp*"))


# When to kill: at the first row, in the middle of a save, right after a resume point, and late.
MOMENTS = {
    "first row": lambda w: (w / "metrics.jsonl").exists() and _a_row(w, 0),
    "mid-save": lambda w: _saves(w) and _a_row(w, 1),
    "mid-save after a resume point": lambda w: (w / "resume" / "20").is_dir() and _saves(w),
    "after a resume point": lambda w: (w / "resume" / "20").is_dir(),
    "late": lambda w: (w / "metrics.jsonl").exists() and _a_row(w, 49),
}


# (moments, how many of them must be hit; otherwise the test would test little)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("moments", "at_least"), [(("mid-save after a resume point",), 1), (tuple(MOMENTS), 4)]
)
def test_killed_at_several_moments_it_is_the_same_run_and_loses_nothing(
    moments, at_least, uninterrupted, tmp_path
):
    workdir = tmp_path / "run"
    killed = []
    for name in moments:
        moment = MOMENTS[name]
        process = start(workdir)
        while process.poll() is None and not moment(workdir):
            time.sleep(0.001)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed.append(name)
        process.wait()
        process.stderr.close()
        finished = {p.name for p in (workdir / "checkpoints").glob("[0-9]*") if p.name.isdecimal()}
        for step in finished:
            Run(workdir).params([int(step)])  # every checkpoint with a final name is complete
    assert len(killed) >= at_least
    last = start(workdir)
    assert last.wait() == 0, last.stderr.read()
    last.stderr.close()
    assert_same_run(uninterrupted, workdir)


def test_a_signal_to_the_command_saves_and_the_same_command_goes_on(
    uninterrupted, tmp_path, capfd, monkeypatch
):
    """This process runs the command, and gets the signal before its third chunk of steps."""
    chunks, original = [], ResumableLoop._agree

    def stop_at_the_third(self, shutdown):
        chunks.append(None)
        if len(chunks) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, shutdown)

    monkeypatch.setattr(ResumableLoop, "_agree", stop_at_the_third)
    command = [*COMMAND[3:], f"--workdir={tmp_path / 'run'}"]
    command += [f"--config.{key}={value}" for key, value in TINY.items()]
    assert main(command) == 75
    step = int(saved_state(tmp_path / "run")["at"])
    assert 0 < step < 60 and f"SIGTERM: saved at step {step}" in capfd.readouterr().err
    assert main(command) == 0
    assert_same_run(uninterrupted, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_with_its_own_exit_code(number, tmp_path):
    """While the process trains, no other process can train in the same directory."""
    workdir = tmp_path / "run"
    changes = {**LONG, "evaluation.every": 1000, "checkpoints.every": 5000}
    process = start(workdir, **changes)
    try:
        while not ((workdir / "metrics.jsonl").exists() and _a_row(workdir, 100)):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        with pytest.raises(InputError, match="another process is training in"):
            train(tiny(**changes), workdir)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 75
    step = int(saved_state(workdir)["at"])
    assert f"{number.name}: saved at step {step}" in said
    # It saved the same state as a run with `stop_at` at that step.
    train(tiny(**changes), tmp_path / "told", stop_at=step)
    assert_same_run(workdir, tmp_path / "told")


def test_another_configuration_is_refused_by_key(uninterrupted):
    before = (uninterrupted / "config.json").read_text()
    with pytest.raises(
        InputError, match=r"optimizer.weight_decay was 0.5, is 0.7; seed was 0, is 1"
    ):
        train(tiny(seed=1, optimizer__weight_decay=0.7), uninterrupted)
    assert (uninterrupted / "config.json").read_text() == before


def test_a_directory_of_something_else_is_refused(tmp_path):
    write_json(tmp_path / "config.json", ["not", "a", "config"])
    with pytest.raises(InputError, match="JSON object"):
        train(tiny(), tmp_path)
