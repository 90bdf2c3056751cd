"""One run on two processes over loopback: the same run, one writer, and no process left waiting.

Each process runs the command with one CPU device; `jax.distributed` and Gloo join them.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import jax
import numpy as np
import pytest

from implicit_reasoning.config import apply_overrides
from implicit_reasoning.errors import InputError
from implicit_reasoning.runs import Run
from implicit_reasoning.runtime import distributed
from implicit_reasoning.runtime.writers import read_metrics
from implicit_reasoning.training import PeerLost, train
from tests import shared
from tests.training.tiny import GROKS, TINY, assert_same_run, tiny

# A row for every step. Weights are split over both processes, so that a checkpoint needs both.
CHANGES = {"log_every": 1, "resume_every": 5, "checkpoints.every": 10, "mesh.fsdp": True}
STOP = 10  # the last step of the run that most tests here read


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def pair(workdir, own=((), ()), changes=CHANGES, timeout=120):
    """Start the command twice with different flags; both processes are terminated afterwards.

    On a busy machine a process may send no heartbeat for many seconds, so `timeout` is long.
    """
    stated = {
        "distributed.mode": "explicit",
        "distributed.coordinator_address": f"127.0.0.1:{free_port()}",
        "distributed.num_processes": 2,
        "distributed.timeout": timeout,
    }
    overrides = [f"--config.{key}={value}" for key, value in {**TINY, **changes, **stated}.items()]
    command = [sys.executable, "-m", "implicit_reasoning", "train", f"--workdir={workdir}"]
    command += ["--config=configs/composition.py:pocket", *overrides]
    processes = [
        subprocess.Popen(
            [*command, f"--config.distributed.process_id={number}", *own[number]],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def ends(processes, within=240):
    """Return `(exit code, standard output, standard error)` of each, within `within` seconds."""
    deadline = time.monotonic() + within
    said = [p.communicate(timeout=max(deadline - time.monotonic(), 1)) for p in processes]
    return [(p.returncode, *words) for p, words in zip(processes, said, strict=True)]


def wait_for_row(processes, workdir, step):
    deadline = time.monotonic() + 240  # on a busy machine, imports and compilation take minutes
    while not any(row["step"] >= step for row in read_metrics(workdir / "metrics.jsonl")):
        assert all(p.poll() is None for p in processes) and time.monotonic() < deadline
        time.sleep(0.01)


def trained_together(workdir, stop):
    """Train until a step in two processes. A step of two processes on busy cores is slow."""
    with pair(workdir, own=((f"--stop_at={stop}",),) * 2) as processes:
        for number, (code, out, err) in enumerate(ends(processes)):
            assert code == 0, err
            assert ("memorised" in out) == (number == 0)  # the other process prints nothing
    return workdir


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    return trained_together(tmp_path_factory.mktemp("pair") / "run", STOP)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Kill one of two processes after step 12, when the state of step 5 is saved; restart both."""
    workdir = tmp_path_factory.mktemp("killed") / "run"
    kill_one(workdir, victim=1, step=12)
    return trained_together(workdir, 20)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    with pair(workdir) as processes:
        assert [code for code, _, _ in ends(processes)] == [0, 0]
    return workdir


def kill_one(workdir, victim, step):
    """Kill one process at a row of at least this step; the other one reports it and exits."""
    with pair(workdir, timeout=30) as processes:
        wait_for_row(processes, workdir, step)
        processes[victim].kill()
        code, _, err = ends(processes, within=90)[1 - victim]
        assert code == 69, err
        assert "a peer process was lost" in err and "rerun the same command in every process" in err


def assert_run_of_one(workdir, stop):
    alone = Run(shared.finished(log_every=1))
    run = Run(workdir)
    assert [row["step"] for row in run.metrics] == list(range(stop + 1))
    losses = [shared.losses(each)[:stop] for each in (workdir, alone.files.workdir)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert run.steps == tuple(range(0, stop + 1, 10))
    # The random draws are equal; jax 0.12 rounds some differently where a shard has another shape.
    first = run.params([0]), alone.params([0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-7), *first)


@pytest.mark.slow
def test_two_processes_train_the_run_of_one(together):
    assert_run_of_one(together, STOP)


@pytest.mark.slow
def test_two_processes_train_the_run_of_one_though_one_was_killed(killed):
    assert_run_of_one(killed, 20)
    first, second = Run(killed).starts
    assert first["step"] == 0 and second["step"] > 0  # the second start resumed


@pytest.mark.slow
def test_process_0_writes_and_the_directory_is_as_always(together):
    run = Run(together)
    assert {p.name for p in together.iterdir()} == {
        *(".lock", "config.json", "world.npz", "provenance.json", "metrics.jsonl"),
        *("tensorboard", "checkpoints", "resume", "first_correct.npz"),
    }
    [start] = run.starts
    assert (start["processes"], start["device_count"]) == (2, 2)
    assert run.config.distributed.process_id == 0


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (((), ("--config.seed=7",)), "the configuration, stop_at, dataset or JAX settings differ"),
        pytest.param(
            (("--stop_at=50",), ()),
            "the configuration, stop_at, dataset or JAX settings differ",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            (("--config.mesh.data=1",),) * 2, "set one size to -1", marks=pytest.mark.slow
        ),
    ],
)
def test_processes_that_cannot_train_one_run_are_refused(tmp_path, own, said):
    """Otherwise each process would train its own run and write it into the same folder."""
    with pair(tmp_path / "run", own) as processes:
        for code, _, err in ends(processes, within=60):
            assert code == 2 and said in err, err
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_signalled_or_killed_they_end_together_and_go_on_exactly(uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    with pair(workdir) as processes:
        wait_for_row(processes, workdir, 10)
        processes[1].send_signal(signal.SIGTERM)
        steps = set()
        for code, _, err in ends(processes):
            assert code == 75, err
            steps |= set(map(int, re.findall(r"SIGTERM: saved at step (\d+);", err)))
        assert len(steps) == 1
    kill_one(workdir, victim=1, step=steps.pop() + 6)
    kill_one(workdir, victim=0, step=45)
    with pair(workdir) as processes:
        assert [code for code, _, _ in ends(processes)] == [0, 0]
    assert_same_run(uninterrupted, workdir)


@pytest.mark.slow
def test_over_three_seeds_two_processes_learn_what_one_does(tmp_path):
    """Single curves diverge, because rounding is amplified, but their mean does not."""
    accuracies = {"alone": [], "together": []}
    for seed in range(3):
        changes = {**GROKS, "seed": seed}
        alone = train(apply_overrides(tiny(), changes), tmp_path / f"alone_{seed}")
        accuracies["alone"].append(alone.metrics[-1]["accuracy/test_ii"])
        workdir = tmp_path / f"together_{seed}"
        with pair(workdir, changes=changes) as processes:
            assert [code for code, _, _ in ends(processes, within=1800)] == [0, 0]
        accuracies["together"].append(Run(workdir).metrics[-1]["accuracy/test_ii"])
    print(accuracies)
    means = {name: np.mean(found) for name, found in accuracies.items()}
    assert means["alone"] > 0.9  # the model generalized, so the comparison is meaningful
    assert abs(means["alone"] - means["together"]) <= 0.02


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_with_one(together, tmp_path):
    """The last state but one, resumed here and saved again, has the same numbers."""
    workdir = shutil.copytree(together, tmp_path / "run")
    shutil.rmtree(workdir / "resume" / f"{STOP}")
    # One device has nothing to split, so this program is the one of `shared.finished`.
    train(apply_overrides(tiny(), CHANGES | {"mesh.fsdp": False}), workdir)
    assert Run(workdir).starts[-1]["step"] == STOP - 5
    jax.tree.map(np.testing.assert_array_equal, *(Run(w).params([0]) for w in (together, workdir)))
    losses = [shared.losses(path) for path in (together, workdir)]
    assert losses[0][: STOP - 5] == losses[1][: STOP - 5]
    np.testing.assert_allclose(losses[0], losses[1][:STOP], rtol=1e-5)
    alone = shared.losses(shared.finished(log_every=1))
    np.testing.assert_allclose(losses[1], alone, rtol=1e-5)


EXPLICIT = {"mode": "explicit", "coordinator_address": "h:1", "num_processes": 2, "process_id": 0}


@pytest.mark.parametrize("port", ["taken", 70_000])
def test_a_port_that_process_0_cannot_have_is_refused(port, tmp_path):
    """JAX would end the process with a segmentation fault."""
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1] if port == "taken" else port
        stated = {**EXPLICIT, "coordinator_address": f"127.0.0.1:{port}"}
        config = tiny(**{f"distributed__{name}": value for name, value in stated.items()})
        with pytest.raises(
            InputError, match=f"cannot listen on port {port} of this host: .*; choose a"
        ):
            train(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mode": "slurm"}, "must be one of 'none', 'auto', 'explicit'"),
        ({"num_processes": 2}, "distributed.mode is 'none'"),
        ({**EXPLICIT, "coordinator_address": "host"}, "it must be the address host:port"),
        ({**EXPLICIT, "num_processes": 0}, "num_processes is 0; it must be at least 1"),
        ({**EXPLICIT, "process_id": 2}, "process_id is 2; it must be between 0 and 1"),
        ({"mode": "auto", "num_processes": -2}, "it must be the number of processes, or 0"),
        ({"timeout": 1}, "distributed.timeout is 1"),
    ],
)
def test_what_cannot_be_joined_is_refused_before_anything_is_joined(change, said, tmp_path):
    config = tiny(**{f"distributed__{name}": value for name, value in change.items()})
    with pytest.raises(InputError, match=said):
        train(config, tmp_path / "run")
    assert not jax.distributed.is_initialized()


def test_no_cluster_and_another_number_of_processes_are_errors(monkeypatch):
    """These errors are raised; otherwise every host of a pod would train its own run."""

    def nobody(**_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", nobody)
    with pytest.raises(
        InputError, match="mode is 'auto', but JAX could not connect the processes: co"
    ):
        distributed.initialize(tiny(distributed__mode="auto").distributed)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: None)
    four = tiny(distributed__mode="auto", distributed__num_processes=4).distributed
    with pytest.raises(InputError, match="num_processes is 4, but 1 processes are connected"):
        distributed.initialize(four)


def test_only_what_sounds_like_a_lost_peer_is_one(monkeypatch):
    gloo = ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer")
    for error, many, seen in [
        (gloo, True, PeerLost),
        (gloo, False, ValueError),
        (ValueError("shapes differ"), True, ValueError),
        (InputError("barrier"), True, InputError),
    ]:
        monkeypatch.setattr(distributed, "is_distributed", lambda many=many: many)
        with pytest.raises(seen) as caught, distributed.exit_if_peer_lost():
            raise error
        assert type(caught.value) is seen


def test_alone_a_process_agrees_with_itself_and_writes(monkeypatch):
    left = []
    monkeypatch.setattr(os, "_exit", left.append)
    values = np.array([3.0, 4.0], np.float32)
    assert distributed.allgather(values).tolist() == [[3.0, 4.0]]
    assert distributed.is_primary() and not distributed.is_distributed()
    distributed.exit_process(1)
    assert left == []
    # With other processes it exits at once, because they would wait for it.
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    distributed.exit_process(3)
    assert left == [3]
