"""A population on two processes, as on the hosts of a pod: the same trials, and one writer."""

import os
import subprocess
import sys

import numpy as np

from implicit_reasoning.runs import Run
from implicit_reasoning.sweeps import SweepLayout
from implicit_reasoning.sweeps.directory import read_journal
from implicit_reasoning.training import train
from tests.training.test_distributed import ends, free_port
from tests.training.tiny import tiny

FILE = "tests/sweeps/small.py"


def pair(workdir, *more):
    stated = {
        "distributed.mode": "explicit",
        "distributed.coordinator_address": f"127.0.0.1:{free_port()}",
        "distributed.num_processes": 2,
        "distributed.timeout": 20,
    }
    words = [sys.executable, "-m", "implicit_reasoning", "sweep", f"--config={FILE}"]
    words += ["--sweep=seeds", f"--workdir={workdir}", "--launcher=vmap", *more]
    words += [f"--config.{key}={value}" for key, value in stated.items()]
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "JAX_NUM_CPU_DEVICES": "1"}
    processes = [
        subprocess.Popen(
            [*words, f"--config.distributed.process_id={number}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for number in range(2)
    ]
    try:
        return ends(processes)
    finally:
        for process in processes:
            process.kill()


def test_a_population_on_two_hosts_has_the_trials_of_one(tmp_path):
    """Three trials, filled up with copies of one; stopped in the middle, and gone on with."""
    for more in (["--stop_at=30"], []):
        said = pair(tmp_path / "sweep", *more)
        assert [code for code, _, _ in said] == [0, 0], said
    assert "3 done" in said[0][1] and "done" not in said[1][1]
    files = SweepLayout(tmp_path / "sweep")
    assert {status[:3] for status in read_journal(files).values()} == {("done", 60, 2)}
    for seed in range(3):
        alone = train(tiny(seed=seed), tmp_path / str(seed))
        run = Run(files.trial(f"seed={seed}").workdir)
        assert run.steps == alone.steps
        losses = [[row["loss"] for row in each.metrics[1:]] for each in (alone, run)]
        np.testing.assert_allclose(*losses, rtol=1e-5)
