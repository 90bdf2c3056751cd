"""Sweeps on a real Slurm: an array, a requeue during training, and a launcher that was killed.

make test-slurm
"""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from implicit_reasoning.errors import InputError
from implicit_reasoning.runs import Run
from implicit_reasoning.sweeps import SweepLayout, define, run_sweep
from implicit_reasoning.sweeps.directory import read_journal
from implicit_reasoning.training import train
from tests.slurm.cluster import cluster, missing
from tests.training.tiny import tiny

pytestmark = pytest.mark.slurm

FILE = "tests/sweeps/small.py"
SEEDS = [f"seed={seed}" for seed in range(3)]
LONG = {"steps": 12_000, "resume_every": 12_000, "log_every": 100, "evaluation.every": 12_000}


@pytest.fixture(scope="module", autouse=True)
def slurm(tmp_path_factory):
    if lacking := missing():
        pytest.fail(
            f"{', '.join(lacking)} not found: apt-get install slurmctld slurmd slurm-client"
        )
    with pytest.MonkeyPatch.context() as patch, cluster(tmp_path_factory.mktemp("slurm")):
        patch.setenv("PYTHONPATH", os.getcwd())
        yield


def wait_for(condition, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)


def begun(files, name, step):
    rows = files.trial(name).metrics
    return rows.exists() and f'"step": {step},' in rows.read_text()


def job_of(files, name):
    return json.loads((files.workdir / "slurm" / "jobs.json").read_text())[name]


def launcher(workdir):
    words = [sys.executable, "-m", "implicit_reasoning", "sweep", f"--config={FILE}"]
    words += ["--sweep=seeds", f"--workdir={workdir}", "--launcher=slurm"]
    words += [f"--config.{key}={value}" for key, value in LONG.items()]
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True)


def test_an_array_trains_the_same_trials(tmp_path):
    statuses = run_sweep(define(FILE, "seeds"), tmp_path, launcher="slurm")
    assert {status[:3] for status in statuses.values()} == {("done", 60, 1)}
    jobs = json.loads((tmp_path / "slurm" / "jobs.json").read_text())
    assert len({job.split("_")[0] for job in jobs.values()}) == 1  # one array
    for seed, name in enumerate(SEEDS):
        alone = train(tiny(seed=seed), tmp_path / "alone" / name)
        run = Run(SweepLayout(tmp_path).trial(name).workdir)
        losses = [[row["loss"] for row in each.metrics[1:]] for each in (alone, run)]
        np.testing.assert_allclose(*losses, rtol=1e-5)


def test_a_job_that_is_put_into_the_queue_again_goes_on_where_it_was(tmp_path):
    files, process = SweepLayout(tmp_path / "sweep"), launcher(tmp_path / "sweep")
    try:
        wait_for(lambda: begun(files, "seed=0", 500))
        subprocess.run(["scontrol", "requeue", job_of(files, "seed=0")], check=True)
        said = process.communicate(timeout=500)[1]
    finally:
        process.kill()
    assert process.returncode == 0, said
    run = Run(files.trial("seed=0").workdir)
    assert len(run.starts) == 2 and run.starts[1]["step"] >= 500
    assert {status.state for status in read_journal(files).values()} == {"done"}


def test_a_launcher_that_was_killed_finds_its_jobs_again(tmp_path):
    files, process = SweepLayout(tmp_path / "sweep"), launcher(tmp_path / "sweep")
    try:
        wait_for(lambda: begun(files, "seed=0", 300))
        process.send_signal(signal.SIGKILL)
        process.wait()
        before = job_of(files, "seed=0")
        statuses = run_sweep(define(FILE, "seeds", LONG), files.workdir, launcher="slurm")
    finally:
        process.kill()
    assert job_of(files, "seed=0") == before
    assert {status[:2] for status in statuses.values()} == {("done", LONG["steps"])}
    assert len(Run(files.trial("seed=0").workdir).starts) == 1


def test_on_a_signal_jobs_save_and_the_same_command_goes_on(tmp_path):
    """This Slurm has no accounting, so only `squeue` shows that a canceled job has ended."""
    files, process = SweepLayout(tmp_path / "sweep"), launcher(tmp_path / "sweep")
    try:
        wait_for(lambda: begun(files, "seed=0", 300))
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    assert process.returncode == 75, said
    statuses = read_journal(files)
    assert {status.state for status in statuses.values()} == {"stopped"}
    assert statuses["seed=0"].step >= 300
    stop = statuses["seed=0"].step + 3
    sweep = define(FILE, "seeds", LONG)
    again = run_sweep(sweep, files.workdir, launcher="slurm", stop_at=stop, only=["seed=0"])
    assert again["seed=0"][:2] == ("done", stop)


def test_what_sbatch_refuses_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"cannot be submitted: sbatch: error:.*partition"):
        run_sweep(
            define(FILE, "seeds"),
            tmp_path,
            launcher="slurm",
            options={"slurm": "slurm_partition=nowhere"},
        )
