"""The headline promise: stopped or killed anywhere and started again, a run is the same run."""

import os
import signal
import subprocess
import sys
import time

import pytest

from implicit_reasoning.errors import InputError
from implicit_reasoning.files import write_json
from implicit_reasoning.runs import Run, read_metrics
from implicit_reasoning.training import train
from tests.training.tiny import TINY, assert_same_run, saved_state, tiny

COMMAND = [
    *(sys.executable, "-m", "implicit_reasoning", "train"),
    "--config=configs/composition.py:pocket",
]
LONG = {"steps": 100_000, "resume_every": 100_000}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(tiny(), workdir)
    return workdir


def start(workdir, **changes):
    """The command in a process of its own."""
    overrides = [f"--config.{key}={value}" for key, value in {**TINY, **changes}.items()]
    command = [*COMMAND, f"--workdir={workdir}", *overrides]
    return subprocess.Popen(command, env=dict(os.environ), stderr=subprocess.PIPE, text=True)


def test_stopped_at_odd_steps_and_resumed_it_is_the_same_run(uninterrupted, tmp_path):
    # Between rows, on a checkpoint, on an evaluation; 0 is before the first update.
    for stop in (0, 3, 25, 30, 47, 60):
        run = train(tiny(), tmp_path / "run", stop_at=stop)
        assert saved_state(run.files.workdir)["at"] == stop
    assert_same_run(uninterrupted, tmp_path / "run")


def test_a_finished_run_is_left_as_it_is(uninterrupted):
    before = read_metrics(uninterrupted / "metrics.jsonl")
    train(tiny(), uninterrupted)
    assert read_metrics(uninterrupted / "metrics.jsonl") == before


def _a_row(workdir, step):
    return any(row["step"] >= step for row in read_metrics(workdir / "metrics.jsonl"))


# When to kill: on the first row, in the middle of a save (Orbax writes under a temporary name that
# says so), right after a resume point, late.
MOMENTS = {
    "first row": lambda w: (w / "metrics.jsonl").exists() and _a_row(w, 0),
    "mid-save": lambda w: any(w.glob("*/*orbax-checkpoint-tmp*")) and _a_row(w, 1),
    "after a resume point": lambda w: (w / "resume" / "20").is_dir(),
    "late": lambda w: (w / "metrics.jsonl").exists() and _a_row(w, 49),
}


def test_killed_at_several_moments_it_is_the_same_run_and_loses_nothing(uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    killed = []
    for name, moment in MOMENTS.items():
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
            Run(workdir).params([int(step)])  # every checkpoint that has its name is whole
    assert len(killed) >= 3  # or the test did not test much
    last = start(workdir)
    assert last.wait() == 0, last.stderr.read()
    last.stderr.close()
    assert_same_run(uninterrupted, workdir)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_with_its_own_exit_code(number, tmp_path):
    workdir = tmp_path / "run"
    process = start(workdir, **LONG)
    while not ((workdir / "metrics.jsonl").exists() and _a_row(workdir, 10)):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75
    step = int(saved_state(workdir)["at"])
    assert f"{number.name}: saved at step {step}" in said
    # What it saved is the state of a run that was told to stop there.
    train(tiny(**LONG), tmp_path / "told", stop_at=step)
    assert_same_run(workdir, tmp_path / "told")


def test_another_configuration_is_refused_by_key(uninterrupted):
    before = (uninterrupted / "config.json").read_text()
    with pytest.raises(
        InputError, match=r"optimizer.weight_decay was 0.5, is 0.7; seed was 0, is 1"
    ):
        train(tiny(seed=1, optimizer__weight_decay=0.7), uninterrupted)
    assert (uninterrupted / "config.json").read_text() == before


def test_what_may_change_may_change(uninterrupted):
    train(tiny(writers__tensorboard=False, mesh__data=1), uninterrupted)
    train(tiny(), uninterrupted)


def test_two_processes_do_not_train_in_one_directory(tmp_path):
    workdir = tmp_path / "run"
    process = start(workdir, **LONG)
    try:
        while not (workdir / "metrics.jsonl").exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        with pytest.raises(InputError, match="another process is training in"):
            train(tiny(**LONG), workdir)
    finally:
        process.kill()
        process.communicate()


def test_a_directory_of_something_else_is_refused(tmp_path):
    write_json(tmp_path / "config.json", ["not", "a", "config"])
    with pytest.raises(InputError, match="JSON object"):
        train(tiny(), tmp_path)
