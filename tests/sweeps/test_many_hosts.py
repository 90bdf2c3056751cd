"""A population on two processes, like the hosts of a pod, has the same trials and one writer."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from implicit_reasoning.errors import InputError
from implicit_reasoning.runs import Run
from implicit_reasoning.runtime import distributed
from implicit_reasoning.sweeps import SweepLayout, define, run_sweep
from implicit_reasoning.sweeps.directory import read_journal
from tests import shared
from tests.runtime.test_distributed import ends, free_port
from tests.sweeps.test_run import wait_for
from tests.training.tiny import LONG

FILE = shared.SWEEP


def pair(workdir, *more, sweep="seeds", meanwhile=None):
    stated = {
        "distributed.mode": "explicit",
        "distributed.coordinator_address": f"127.0.0.1:{free_port()}",
        "distributed.num_processes": 2,
        # If no fault is tested, the timeout is long, because compiling takes long on a busy
        # machine.
        "distributed.timeout": 20 if meanwhile else 120,
    }
    words = [sys.executable, "-m", "implicit_reasoning", "sweep", f"--config={FILE}"]
    words += [f"--sweep={sweep}", f"--workdir={workdir}", *more]
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
        if meanwhile:
            meanwhile(processes)
        return ends(processes)
    finally:
        for process in processes:
            process.kill()


# This is slow because Gloo sometimes loses a peer while both processes compile on two busy cores.
@pytest.mark.slow
@pytest.mark.parametrize("stops", [(None,), (30, None)])
def test_a_population_on_two_hosts_has_the_trials_of_one(stops, tmp_path):
    """Three trials are padded with a copy of one. In one case they are stopped and resumed."""
    for stop in stops:
        said = pair(tmp_path / "sweep", *([f"--stop_at={stop}"] if stop else []))
        assert [code for code, _, _ in said] == [0, 0], said
    assert "3 done" in said[0][1] and "done" not in said[1][1]
    files = SweepLayout(tmp_path / "sweep")
    assert {status[:3] for status in read_journal(files).values()} == {("done", 60, len(stops))}
    for seed in range(3):
        alone, run = shared.seed(seed), files.trial(f"seed={seed}").workdir
        assert Run(run).steps == Run(alone).steps
        np.testing.assert_allclose(shared.losses(run), shared.losses(alone), rtol=1e-5)


@pytest.mark.slow
def test_a_signal_to_one_host_stops_all_of_them_between_populations_too(tmp_path):
    """With two populations, a host without a signal must not begin the second one alone."""
    files = SweepLayout(tmp_path / "sweep")

    def signal_the_second(processes):
        rows = files.trial("d_model=8,seed=0").metrics
        wait_for(lambda: rows.exists() and '"step": 400,' in rows.read_text())
        processes[1].send_signal(signal.SIGTERM)

    more = [f"--config.{key}={value}" for key, value in LONG.items()]
    said = pair(files.workdir, *more, sweep="shapes", meanwhile=signal_the_second)
    assert [code for code, _, _ in said] == [75, 75], said
    statuses = read_journal(files)
    assert {status.state for status in statuses.values()} == {"stopped"} and len(statuses) == 2
    assert all(status.step >= 400 for status in statuses.values())


@pytest.mark.slow
def test_a_host_that_is_lost_is_not_the_trials_fault(tmp_path):
    files = SweepLayout(tmp_path / "sweep")

    def kill_the_second(processes):
        rows = files.trial("d_model=8,seed=0").metrics
        wait_for(lambda: rows.exists() and '"step": 400,' in rows.read_text())
        processes[1].kill()

    more = [f"--config.{key}={value}" for key, value in LONG.items()]
    code, _, error = pair(files.workdir, *more, sweep="shapes", meanwhile=kill_the_second)[0]
    assert code == 69 and "a peer process was lost" in error, error
    assert "failed" not in {status.state for status in read_journal(files).values()}


@pytest.mark.slow
def test_other_launchers_are_refused_there(tmp_path):
    said = pair(tmp_path / "sweep", "--launcher=local")
    # The slower process may find that the other one has gone before it checks the launcher.
    reasons = {2: "use --launcher=vmap", 69: "a peer process was lost"}
    assert 2 in {code for code, _, _ in said}
    assert all(reasons[code] in error for code, _, error in said)


@pytest.mark.parametrize("launcher", ["local", "ray", "slurm"])
def test_other_launchers_are_refused_on_many_hosts(launcher, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    with pytest.raises(InputError, match=f"launcher={launcher} .* use --launcher=vmap"):
        run_sweep(define(FILE, "seeds"), tmp_path / "sweep", launcher=launcher)
    assert not (tmp_path / "sweep").exists()
