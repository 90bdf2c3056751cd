"""The engines themselves: Slurm by submitit's local executor, Ray on three nodes, and Optuna.

`make test-slurm` uses a real Slurm.
"""

import json
import os
import signal
import sys
import time

import numpy as np
import pytest

from implicit_reasoning.__main__ import main
from implicit_reasoning.errors import InputError
from implicit_reasoning.runs import Run
from implicit_reasoning.runtime.writers import read_metrics
from implicit_reasoning.sweeps import SweepLayout, define, run_sweep
from implicit_reasoning.sweeps.directory import read_journal
from implicit_reasoning.sweeps.search import Search, find_space
from implicit_reasoning.sweeps.search import search as search_through
from tests import shared
from tests.training.tiny import LONG

FILE = shared.SWEEP
SEEDS = [f"seed={seed}" for seed in range(3)]


def assert_all_done(workdir, names=SEEDS, attempts=1):
    files = SweepLayout(workdir)
    statuses = read_journal(files)
    assert {name: status[:2] for name, status in statuses.items()} == dict.fromkeys(
        names, ("done", 60)
    )
    assert all(status.attempts <= attempts for status in statuses.values())
    for name in names:
        alone = shared.seed(SEEDS.index(name))
        found = shared.losses(files.trial(name).workdir)
        np.testing.assert_allclose(found, shared.losses(alone), rtol=1e-5)


# Slurm ------------------------------------------------------------------------------------------


def slurm(workdir, only=None, **options):
    options = {"cluster": "local", **options}
    return run_sweep(define(FILE, "seeds"), workdir, launcher="slurm", only=only, options=options)


@pytest.mark.slow
@pytest.mark.parametrize("names", [SEEDS[:1], SEEDS])
def test_submitit_trains_the_same_trials(names, tmp_path):
    slurm(tmp_path, only=names, slurm="timeout_min=5")
    assert_all_done(tmp_path, names)
    assert set(json.loads((tmp_path / "slurm" / "jobs.json").read_text())) == set(names)


@pytest.mark.slow
def test_before_its_time_is_up_a_job_saves_and_is_started_again(tmp_path):
    """At SIGUSR2 submitit calls the handler: the worker saves, and the same work is submitted
    again.
    """
    from implicit_reasoning.sweeps.directory import begin, describe
    from implicit_reasoning.sweeps.launchers.base import last_saved_step
    from implicit_reasoning.sweeps.launchers.on_slurm import Task

    sweep = define(FILE, "seeds", LONG)
    files = SweepLayout(tmp_path)
    begin(files, sweep)
    describe(files, sweep, "seed=1")
    task, again = Task(str(tmp_path)), []
    import threading

    def interrupt():
        rows = files.trial("seed=1").metrics
        while not (rows.exists() and '"step": 100' in rows.read_text()):
            time.sleep(0.1)
        again.append(task.checkpoint("seed=1", 400_000))

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(SystemExit):  # without a result, so Slurm restarts the job
        task("seed=1", 400_000)
    thread.join()
    step = last_saved_step(files.trial("seed=1"))
    assert step >= 100
    assert again[0].args == ("seed=1", 400_000) and isinstance(again[0].function, Task)
    code, said = again[0].function("seed=1", step + 2)
    assert (code, said.strip()) == (0, "") and last_saved_step(files.trial("seed=1")) == step + 2


class Worker:
    """A process that ends on a signal; `returncode` is that of a worker."""

    def __init__(self, returncode):
        self.returncode, self.told = returncode, 0

    def terminate(self):
        self.told += 1

    def communicate(self):
        return "", ""


@pytest.mark.parametrize("code", [75, -15], ids=["saved", "had not begun"])
def test_of_two_signals_a_worker_gets_one_and_slurm_starts_the_job_again(code, monkeypatch):
    """At preemption SIGTERM and SIGUSR2 arrive; a second SIGTERM would kill the worker while it
    saves.
    """
    from implicit_reasoning.sweeps.launchers import on_slurm

    worker, task = Worker(code), on_slurm.Task("nowhere")

    def started(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)  # the handler is that of the task now
        return worker

    monkeypatch.setattr(on_slurm.subprocess, "Popen", started)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit):
            task("seed=1", 10)
        task._leave()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert worker.told == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"slurm": "timeout_min"}, "not of the form name=value"),
        ({"slurm": "time_min=3"}, "submitit cannot use 'local' here.*time_min"),
        ({"cluster": "lsf"}, "submitit cannot use 'lsf' here"),
    ],
)
def test_what_submitit_does_not_take_is_said_before_anything_begins(options, said, tmp_path):
    with pytest.raises(InputError, match=said):
        slurm(tmp_path, **options)
    assert not list(tmp_path.glob("trials/*"))


@pytest.mark.parametrize(
    ("launcher", "module", "extra"), [("slurm", "submitit", "slurm"), ("ray", "ray", "ray")]
)
def test_an_engine_that_is_not_installed_is_named(launcher, module, extra, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"the package {module} is needed.*\[{extra}\]"):
        run_sweep(define(FILE, "seeds"), tmp_path, launcher=launcher)


# Ray --------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(monkeypatch):
    """Start three nodes of one core each on this machine."""
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    monkeypatch.setenv("RAY_DISABLE_IMPORT_WARNING", "1")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    try:
        yield cluster, nodes
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.slow
def test_ray_trains_the_same_trials(cluster, tmp_path):
    options = {"address": cluster[0].address}
    run_sweep(define(FILE, "seeds"), tmp_path, launcher="ray", options=options)
    assert_all_done(tmp_path)


@pytest.mark.slow
def test_with_a_node_lost_and_a_worker_killed_all_trials_end_well(cluster, tmp_path):
    """Both happen while trials run: Ray restarts the trials elsewhere, and they resume."""
    import threading

    sweep = define(FILE, "seeds", {"steps": 3_000, "resume_every": 100, "log_every": 100})
    files, (ray_cluster, nodes) = SweepLayout(tmp_path), cluster

    def harm():
        def begun(name, step=200):
            rows = files.trial(name).metrics
            return rows.exists() and f'"step": {step}' in rows.read_text()

        while not all(begun(name) for name in SEEDS):
            time.sleep(0.2)
        ray_cluster.remove_node(nodes[1], allow_graceful=False)
        import psutil

        for process in psutil.process_iter(["cmdline"]):
            if "ray::_trial" in " ".join(process.info["cmdline"] or []):
                process.kill()
                break

    thread = threading.Thread(target=harm, daemon=True)
    thread.start()
    options = {"address": ray_cluster.address}
    statuses = run_sweep(sweep, tmp_path, launcher="ray", options=options)
    thread.join(timeout=60)
    assert {status[:2] for status in statuses.values()} == {("done", 3_000)}
    starts = [len(Run(files.trial(name).workdir).starts) for name in SEEDS]
    assert sum(starts) > 3  # some were restarted


# Optuna -----------------------------------------------------------------------------------------


def search(workdir, *more, metric="loss"):
    words = ["sweep", f"--config={FILE}", "--sweep=rates", f"--workdir={workdir}"]
    words += ["--search=optuna", "--trials=6", "--at_once=3", "--minimize"]
    return main([*words, f"--metric={metric}", *more])


PRETEND = "tests/sweeps/pretend.py:pretend"


def pretend(workdir, rungs, launcher=PRETEND):
    """Run the same search from Python, with a launcher that trains nothing."""
    base, space = find_space(FILE, "rates")
    what = Search(metric="loss", count=6, at_once=3, rungs=rungs, minimize=True)
    return search_through(base, space, workdir, what, launcher=launcher)


@pytest.mark.parametrize("launcher", [PRETEND, pytest.param("vmap", marks=pytest.mark.slow)])
def test_a_search_halves_batch_after_batch(launcher, tmp_path):
    statuses = pretend(tmp_path, (10, 30), launcher)
    assert len(statuses) == 6
    ended = {name: (status.state, status.step) for name, status in statuses.items()}
    # Of every three trials, the best two continue after the first rung and the best one after the
    # second.
    assert sorted(ended.values()) == sorted(2 * [("pruned", 10), ("pruned", 30), ("done", 60)])
    assert all("among the worst" in s.why for s in statuses.values() if s.state == "pruned")
    for batch in batches(tmp_path):
        at_10 = {name: loss_at(tmp_path, name, 10) for name in batch}
        assert ended[max(at_10, key=at_10.__getitem__)] == ("pruned", 10)
    # The search is finished, so another call asks for no trials.
    before = (tmp_path / "journal.jsonl").read_text()
    assert pretend(tmp_path, (10, 30), launcher) == statuses
    assert (tmp_path / "journal.jsonl").read_text() == before


def batches(workdir):
    names = list(json.loads(SweepLayout(workdir).sweep.read_text())["trials"])
    return [names[:3], names[3:]]


def loss_at(workdir, name, step):
    rows = read_metrics(SweepLayout(workdir).trial(name).metrics)
    return next(row["loss"] for row in rows if row["step"] == step)


@pytest.fixture(scope="module")
def searched_through(tmp_path_factory):
    """Return the statuses of a search that was not stopped."""
    return pretend(tmp_path_factory.mktemp("search"), (10, 30))


@pytest.mark.parametrize("stopped_at", range(6))
def test_a_search_that_was_stopped_trains_what_it_would_have(
    stopped_at, searched_through, tmp_path, monkeypatch
):
    """The search stops in the first or second batch, before or after a rung."""
    original, calls = run_sweep, []

    def stopping(*args, **options):
        calls.append(None)
        if len(calls) > stopped_at:
            raise KeyboardInterrupt
        return original(*args, **options)

    monkeypatch.setattr(search_through.__module__ + ".run_sweep", stopping)
    with pytest.raises(KeyboardInterrupt):
        pretend(tmp_path, (10, 30))
    monkeypatch.undo()
    stopped = pretend(tmp_path, (10, 30))
    assert {name: status[:2] for name, status in stopped.items()} == {
        name: status[:2] for name, status in searched_through.items()
    }


@pytest.mark.slow
def test_a_metric_that_no_trial_has_is_named_and_nothing_is_lost(tmp_path, capsys, blank_figures):
    assert search(tmp_path, metric="los") == 2
    assert "unknown choice 'los'; did you mean loss" in capsys.readouterr().err
    assert search(tmp_path) == 0
    statuses = read_journal(SweepLayout(tmp_path))
    assert {status[:3] for status in statuses.values()} == {("done", 60, 1)} and len(statuses) == 6


def test_what_is_no_search_is_told_so(tmp_path, capsys):
    assert search(tmp_path, "--rungs=30,10") == 2
    assert "must be ascending steps" in capsys.readouterr().err
    for more in ("--dry_run", "--stop_at=10"):
        assert search(tmp_path, more) == 2
        assert "--search cannot be combined with --dry_run" in capsys.readouterr().err
    words = ["sweep", f"--config={FILE}", "--sweep=seeds", f"--workdir={tmp_path}"]
    assert main([*words, "--search=optuna"]) == 2
    assert "available: rates" in capsys.readouterr().err
