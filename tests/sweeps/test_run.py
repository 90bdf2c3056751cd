"""A sweep with each launcher: trials are equal, finished ones are kept, failed ones are named."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from implicit_reasoning.__main__ import main
from implicit_reasoning.errors import InputError
from implicit_reasoning.runs import Run
from implicit_reasoning.sweeps import SweepLayout, define, grid, make_sweep, run_sweep
from implicit_reasoning.sweeps.directory import read_journal
from implicit_reasoning.sweeps.launchers.base import last_saved_step
from implicit_reasoning.sweeps.run import default_launcher
from implicit_reasoning.training import directory
from implicit_reasoning.training.loop import ResumableLoop
from tests import shared
from tests.disks import grow, read_only, small_disk
from tests.training.tiny import LONG, tiny

FILE = shared.SWEEP
SEEDS = [f"seed={seed}" for seed in range(3)]


def losses(workdir, names=SEEDS):
    files = SweepLayout(workdir)
    return [[row["loss"] for row in Run(files.trial(n).workdir).metrics[1:]] for n in names]


@pytest.fixture(scope="module")
def alone():
    return [shared.losses(shared.seed(seed)) for seed in range(3)]


@pytest.fixture(scope="module")
def by_vmap():
    return shared.swept()


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Run two trials by processes, of which one is killed before it saves.

    The other one ends at once without training. Return the directory and the statuses.
    """
    workdir, original = tmp_path_factory.mktemp("local"), subprocess.Popen

    def killing(words, **options):
        process = original(words if "seed=1" in words else ["true"], **options)
        if "seed=1" in words:
            process.kill()
        return process

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("implicit_reasoning.sweeps.launchers.local.subprocess.Popen", killing)
        return workdir, by_processes(workdir)


def by_processes(workdir):
    """Train two trials with the launcher `local` and return their statuses."""
    options = {"options": {"workers": 2}, "only": SEEDS[:2]}
    return run_sweep(define(FILE, "seeds"), workdir, launcher="local", **options)


def test_a_population_trains_the_runs_that_the_trials_are(by_vmap, alone):
    np.testing.assert_allclose(losses(by_vmap), alone, rtol=1e-5)
    statuses = read_journal(SweepLayout(by_vmap))
    assert {name: status[:3] for name, status in statuses.items()} == {
        name: ("done", 60, 1) for name in SEEDS
    }


@pytest.mark.slow
def test_a_process_trains_the_run_that_its_trial_is(killed, alone):
    """It was killed at the first start, so this is its second attempt."""
    workdir, _ = killed
    by_processes(workdir)
    np.testing.assert_allclose(losses(workdir, ["seed=1"]), alone[1:2], rtol=1e-5)
    assert read_journal(SweepLayout(workdir))["seed=1"][:3] == ("done", 60, 2)


def test_a_killed_worker_fails_its_trial_alone(killed):
    statuses = killed[1]
    assert [statuses[name].state for name in SEEDS[:2]] == ["done", "failed"]
    assert "killed by signal 9" in statuses["seed=1"].why


def test_a_trial_opens_as_a_run_with_what_was_chosen(by_vmap):
    run = Run(by_vmap / "trials" / "seed=2")
    assert run.config.seed == 2 and run.steps[-1] == 60 and len(run.starts) == 1
    assert json.loads(run.files.trial.read_text()) == {
        "name": "seed=2",
        "overrides": {"seed": 2},
        "keys": ["seed"],
    }


def test_started_again_it_does_nothing(tmp_path, monkeypatch):
    by_vmap = shared.swept_copy(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in by_vmap.rglob("*") if p.name != ".lock"}

    def nothing(work, board, shutdown):
        raise AssertionError("a trial was started")

    monkeypatch.setattr("implicit_reasoning.sweeps.launchers.vmap.vmap", nothing)
    statuses = run_sweep(define(FILE, "seeds"), by_vmap, launcher="vmap")
    assert all(status.attempts == 1 for status in statuses.values())
    assert before == {p: p.stat().st_mtime_ns for p in by_vmap.rglob("*") if p.name != ".lock"}


@pytest.mark.slow
def test_each_goes_on_by_whichever_launcher_beside_trials_that_are_new(tmp_path, alone):
    """Train all to step 20, then two alone to 40, then all together with a new one."""
    sweep, files = define(FILE, "seeds"), SweepLayout(shared.swept_copy(tmp_path, 20))

    def with_states():
        return sorted(path.parent.name for path in files.populations.glob("*/resume"))

    assert {status[:3] for status in read_journal(files).values()} == {("done", 20, 1)}
    run_sweep(sweep, tmp_path, launcher="local", stop_at=40, only=["seed=0"])
    statuses = run_sweep(sweep, tmp_path, launcher="vmap", stop_at=40, only=["seed=1"])
    assert [status.step for status in statuses.values()] == [40, 40, 20]
    assert [status.attempts for status in statuses.values()] == [2, 2, 1]
    assert with_states() == ["000", "001"]  # one trial is still at step 20
    # States that a trial saved itself and states that a population saved are combined.
    grown = make_sweep(sweep.base, list(grid({"seed": range(4)})))
    statuses = run_sweep(grown, tmp_path)
    assert [status[:3] for status in statuses.values()] == [
        ("done", 60, attempts) for attempts in (3, 3, 2, 1)
    ]
    # Each start makes new populations, and deletes states that are no longer needed.
    assert with_states() == ["002", "003", "004"]
    np.testing.assert_allclose(losses(tmp_path), alone, rtol=1e-5)


def test_only_trials_that_there_are(tmp_path):
    with pytest.raises(InputError, match="this sweep has no trial named seed=7"):
        run_sweep(define(FILE, "seeds"), tmp_path / "sweep", only=["seed=0", "seed=7"])
    assert not (tmp_path / "sweep").exists()


def damage(state):
    for path in (state / "default").rglob("*"):
        if path.is_file():
            path.write_bytes(b"not a state")


@pytest.mark.slow
def test_a_state_that_cannot_be_read_is_passed_over_for_the_one_before(tmp_path, alone, capfd):
    files = SweepLayout(shared.swept_copy(tmp_path, 20))
    newest = files.populations / "000" / "resume" / "20"
    damage(newest)
    statuses = run_sweep(define(FILE, "seeds"), tmp_path)
    assert "trying the previous state" in capfd.readouterr().err
    assert {status[:2] for status in statuses.values()} == {("done", 60)}
    assert Run(files.trial("seed=1").workdir).starts[-1]["step"] == 10
    assert (files.populations / "000" / "resume.damaged" / newest.name).exists()
    np.testing.assert_allclose(losses(tmp_path), alone, rtol=1e-5)


def test_where_no_state_can_be_read_nothing_is_trained_from_the_start_unasked(tmp_path):
    workdir = Path(os.path.relpath(tmp_path / "sweep"))  # a relative path, as users write it
    shared.swept_copy(workdir, 20)
    sweep, files = define(FILE, "seeds"), SweepLayout(workdir)
    states = sorted((files.populations / "000" / "resume").iterdir())
    shutil.rmtree(states[0])
    damage(states[1])
    statuses = run_sweep(sweep, workdir)
    assert {status.state for status in statuses.values()} == {"failed"}
    assert "seed=0 can be read; remove this folder" in statuses["seed=0"].why
    assert states[1].exists() and Run(files.trial("seed=0").workdir).metrics[-1]["step"] == 20


@pytest.mark.slow
def test_a_signal_saves_the_others_and_who_diverged_stays_so(tmp_path, capfd, blank_figures):
    """This process gets the signal once one of three trials has diverged."""
    words = ["sweep", f"--config={FILE}", "--sweep=lost", f"--workdir={tmp_path}"]
    signals, original = [], ResumableLoop._agree

    def stop_once_one_is_lost(self, shutdown):
        if any(record.diverged for record in self._training.records) and not signals:
            signals.append(os.kill(os.getpid(), signal.SIGTERM))
        return original(self, shutdown)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ResumableLoop, "_agree", stop_once_one_is_lost)
        assert main(words) == 75
    assert "SIGTERM: 0 of 3 trials are done" in capfd.readouterr().err
    states = {status.state for status in read_journal(SweepLayout(tmp_path)).values()}
    assert states == {"diverged", "stopped"}
    assert main(words) == 3
    statuses = list(read_journal(SweepLayout(tmp_path)).values())
    assert [status.state for status in statuses] == ["diverged", "done", "done"]
    assert [status.attempts for status in statuses] == [1, 2, 2]


def test_a_shape_that_no_model_can_have_fails_alone(tmp_path):
    sweep = make_sweep(tiny(), list(grid({"model.n_heads": [2, 3], "seed": range(2)})))
    statuses = run_sweep(sweep, tmp_path, launcher="vmap", stop_at=0)
    assert [status.state for status in statuses.values()] == ["done", "done", "failed", "failed"]
    assert "n_heads" in statuses["n_heads=3,seed=0"].why


@pytest.mark.slow
def test_a_population_opens_no_more_files_than_it_may(tmp_path, monkeypatch):
    module = "implicit_reasoning.sweeps.launchers.vmap"
    monkeypatch.setattr(f"{module}.max_open_files", lambda: 128 + 3 * 2)
    run_sweep(define(FILE, "seeds"), tmp_path, launcher="vmap", stop_at=0)
    kept = [json.loads(p.read_text()) for p in sorted(tmp_path.glob("populations/*/members.json"))]
    assert kept == [SEEDS[:2], SEEDS[2:]]


def test_another_trial_of_the_same_name_is_refused(tmp_path):
    run_sweep(make_sweep(tiny(), [{"evaluation.every": 20}]), tmp_path, stop_at=0)
    with pytest.raises(InputError, match=r"trial every=20 .*evaluation\.every.*checkpoints\.every"):
        run_sweep(make_sweep(tiny(), [{"checkpoints.every": 20}]), tmp_path)


def test_steps_before_the_first_are_refused(tmp_path):
    with pytest.raises(InputError, match="stop_at is -5"):
        run_sweep(define(FILE, "seeds"), tmp_path / "sweep", stop_at=-5)
    assert not (tmp_path / "sweep").exists()


NO_DEVICE = """
import subprocess, sys
from jax._src import xla_bridge
from implicit_reasoning.sweeps import define, run_sweep
from implicit_reasoning.sweeps.launchers import local
start, started = subprocess.Popen, []
local.subprocess.Popen = lambda words, **how: started.append(words) or start(["true"], **how)
run_sweep(define("tests/sweeps/small.py", "seeds"), sys.argv[1], launcher="local", stop_at=0)
assert len(started) == 3
assert not xla_bridge.backends_are_initialized()
assert "matplotlib" not in sys.modules  # every worker would need half a second to import it
"""


def test_a_launcher_of_processes_leaves_the_devices_to_them(tmp_path):
    """Only one process can hold a TPU chip."""
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    words = [sys.executable, "-c", NO_DEVICE, str(tmp_path)]
    ended = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
def test_what_diverges_or_cannot_be_made_is_named_and_the_others_go_on(
    tmp_path, capfd, blank_figures
):
    words = ["sweep", f"--config={FILE}", "--sweep=mixed", f"--workdir={tmp_path / 'sweep'}"]
    assert main(words) == 3
    out, err = capfd.readouterr()
    assert "4 done" in out and "1 diverged" in out and "1 failed" in out
    assert "phi can be at most" in err and "2 of 6 trials diverged or failed" in err
    statuses = read_journal(SweepLayout(tmp_path / "sweep"))
    assert statuses["phi=99.0"].state == "failed" and "phi" in statuses["phi=99.0"].why
    diverged = next(s for s in statuses.values() if s.state == "diverged")
    assert 0 < diverged.step < 60 and "not finite" in diverged.why
    page = (tmp_path / "sweep" / "report" / "index.html").read_text()
    assert "Trials that failed, and why" in page and "phi can be at most" in page
    # The diverged trial was in the population of similar trials, which ended normally.
    assert len(list((tmp_path / "sweep" / "populations").iterdir())) == 2
    # At another start, failed trials are tried again, but diverged trials are not.
    assert main(words) == 3
    again = read_journal(SweepLayout(tmp_path / "sweep"))
    assert again[next(n for n, s in again.items() if s.state == "diverged")].attempts == 1


def test_the_default_is_a_population_where_shapes_agree():
    assert default_launcher(define(FILE, "seeds")) == "vmap"
    assert default_launcher(define(FILE, "mixed")) == "vmap"
    widths = make_sweep(tiny(), list(grid({"model.d_model": [8, 16, 32]})))
    assert default_launcher(widths) == "local"


def test_a_trial_whose_directory_holds_another_run_is_refused_by_name(tmp_path):
    sweep = define(FILE, "seeds")
    shared.swept_copy(tmp_path, 20)
    path = SweepLayout(tmp_path).trial("seed=1").config
    changed = json.loads(path.read_text())
    changed["optimizer"]["weight_decay"] = 7.0
    path.write_text(json.dumps(changed))
    with pytest.raises(InputError, match=r"seed=1.*weight_decay was 7\.0, is 0\.5"):
        run_sweep(sweep, tmp_path)


def test_an_unknown_launcher_names_those_there_are():
    with pytest.raises(InputError, match=r"did you mean 'vmap'.*vmap, local, ray, slurm"):
        run_sweep(define(FILE, "seeds"), "nowhere", launcher="vmpa")


def test_a_launcher_of_ones_own_is_found(tmp_path):
    seen = []
    module: Any = sys.modules[__name__]
    module.own = lambda work, board, shutdown: [
        seen.append((trial, stop)) or board.note(trial, "done", step=stop)
        for trial, stop in work.stops.items()
    ]
    statuses = run_sweep(define(FILE, "seeds"), tmp_path, launcher=f"{__name__}:own", stop_at=7)
    assert seen == [(name, 7) for name in SEEDS]
    assert {status.state for status in statuses.values()} == {"done"}


def command(workdir, launcher):
    words = [sys.executable, "-m", "implicit_reasoning", "sweep", f"--config={FILE}"]
    words += ["--sweep=seeds", f"--workdir={workdir}", f"--launcher={launcher}"]
    words += ["--workers=1"] if launcher == "local" else []
    words += [f"--config.{key}={value}" for key, value in LONG.items()]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["vmap", "local", "ray"])
def test_a_signal_saves_every_trial_and_the_same_command_goes_on(launcher, tmp_path):
    files, process = SweepLayout(tmp_path / "sweep"), command(tmp_path / "sweep", launcher)
    try:
        rows = files.trial("seed=0").metrics
        wait_for(lambda: rows.exists() and '"step": 100' in rows.read_text())
        # A second launcher is refused while this one runs.
        with pytest.raises(InputError, match="another launcher"):
            run_sweep(define(FILE, "seeds", LONG), files.workdir)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    assert process.returncode == 75, said
    assert "SIGTERM: 0 of 3 trials are done" in said
    status = read_journal(files)["seed=0"]
    assert status.state == "stopped" and 100 <= status.step < LONG["steps"]
    # A population resumes as a whole, so that its compiled program can be reused.
    alike = SEEDS if launcher == "vmap" else ["seed=0"]
    sweep, stop = define(FILE, "seeds", LONG), status.step + 3
    statuses = run_sweep(sweep, files.workdir, launcher=launcher, stop_at=stop, only=alike)
    assert statuses["seed=0"].step == status.step + 3
    assert Run(files.trial("seed=0").workdir).starts[-1]["step"] == status.step


@pytest.mark.slow
def test_when_the_launcher_is_killed_its_workers_save_and_leave(tmp_path):
    files, process = SweepLayout(tmp_path / "sweep"), command(tmp_path / "sweep", "local")
    rows = files.trial("seed=0").metrics
    try:
        wait_for(lambda: rows.exists() and '"step": 100' in rows.read_text())
    finally:
        process.kill()
        process.communicate()
    wait_for(lambda: last_saved_step(files.trial("seed=0")) >= 100)
    wait_for(lambda: is_free(files.trial("seed=0")))  # an orphaned worker would hold the lock
    assert not files.trial("seed=1").metrics.exists()  # no worker began another trial


# The child waits for SIGTERM; its parent starts it, and is then killed.
CHILD = """
import signal, sys
from pathlib import Path
from implicit_reasoning.sweeps.worker import _end_with_parent
signal.signal(signal.SIGTERM, lambda *_: (Path(sys.argv[1]).touch(), sys.exit()))
_end_with_parent()
print("waits", flush=True)
signal.pause()
"""
PARENT = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", *sys.argv[1:]]).wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a child")
def test_a_worker_gets_sigterm_when_its_launcher_is_killed(tmp_path):
    words = [sys.executable, "-c", PARENT, CHILD, str(tmp_path / "told")]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    parent = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout.readline() == "waits\n"
    parent.kill()
    parent.wait()
    wait_for((tmp_path / "told").exists, 30)
    parent.stdout.close()


def is_free(files):
    try:
        with directory.exclusive(files.workdir):
            return True
    except InputError:
        return False


def test_done_unheard_of_is_noticed(tmp_path):
    """The launcher was gone when the trial ended."""
    sweep, files = define(FILE, "seeds"), SweepLayout(shared.swept_copy(tmp_path))
    lines = files.journal.read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["state"] == "running"]
    files.journal.write_text("\n".join(kept) + "\n")
    assert {status.state for status in read_journal(files).values()} == {"running"}
    statuses = run_sweep(sweep, tmp_path, launcher="local")
    assert {status[:3] for status in statuses.values()} == {("done", 60, 1)}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["vmap", "local"])
def test_on_a_full_disk_it_says_so_and_no_finished_trial_is_lost(
    launcher, tmp_path, capfd, blank_figures
):
    with small_disk(tmp_path / "disk", "2800k") as disk:
        words = ["sweep", f"--config={FILE}", f"--workdir={disk / 'sweep'}", "--sweep=seeds"]
        # With one trial at a time, the first one fits.
        words += [f"--launcher={launcher}", "--workers=1", "--population=1"]
        assert main(words) == 74
        assert "No space left on device" in capfd.readouterr().err
        before = read_journal(SweepLayout(disk / "sweep"))
        grow(disk, "40m")
        assert main(words) == 0
        after = read_journal(SweepLayout(disk / "sweep"))
    done = [name for name, status in before.items() if status.state == "done"]
    assert done  # the first trial, for `local` and `vmap`
    assert all(after[name].attempts == before[name].attempts for name in done)
    assert {status.state for status in after.values()} == {"done"} and len(after) == 3


def test_in_an_unwritable_directory_it_says_so(tmp_path, capfd):
    (tmp_path / "original").mkdir()
    with read_only(tmp_path / "read_only", tmp_path / "original") as folder:
        assert main(["sweep", f"--config={FILE}", f"--workdir={folder}", "--sweep=seeds"]) == 74
    assert "Read-only file system" in capfd.readouterr().err


def test_a_dry_run_prints_trials_and_cost_and_writes_nothing(tmp_path, capsys):
    words = ["sweep", f"--config={FILE}", "--sweep=few", "--dry-run"]
    assert main([*words, f"--workdir={tmp_path / 'sweep'}"]) == 0
    said = capsys.readouterr().out
    assert "3 trials, launcher vmap" in said and "weight_decay=0.1,phi=1.2,seed=0" in said
    assert "matrix products" in said and "one after the other" in said
    assert not list(tmp_path.iterdir())


def test_jax_sees_one_device_here():
    """The tests above can compare trials with runs bit for bit only on one device."""
    assert jax.local_device_count() == 1
