r"""Launcher `slurm`: runs trials as a job array on a Slurm cluster, submitted with submitit.

Each trial is one job of the array. Slurm sends SIGUSR2 before the time limit and at preemption: the
trial then saves its state, is requeued, and resumes. `scontrol requeue`, which sends SIGTERM, has
the same effect. `--slurm=timeout_min=240,slurm_partition=gpu,gpus_per_node=1` sets parameters of
submitit (`\,` is a comma inside a value). `--workers=` limits the number of jobs that run at once.
All nodes must share the directory of the sweep. If the launcher is killed and started again, it
finds the jobs of its previous start.

Source: submitit 1.5, `docs/checkpointing.md`.
"""

from __future__ import annotations

import ast
import getpass
import importlib
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from implicit_reasoning.config import split_list
from implicit_reasoning.errors import Exit, InputError
from implicit_reasoning.files import read_json, write_json
from implicit_reasoning.runtime.shutdown import ShutdownRequest
from implicit_reasoning.sweeps.directory import DONE, FAILED, STOPPED, describe
from implicit_reasoning.sweeps.launchers.base import (
    LaunchRequest,
    ProgressReporter,
    last_saved_step,
    missing_package,
    state_of_exit,
)

_SECONDS = 1.0  # seconds between checks of the jobs' result files
_ASK = 30.0  # seconds between queries to Slurm that find jobs that ended without a result file
_ARRAY = 1_000  # jobs per array; Slurm's default MaxArraySize is 1001
# Times that a trial may resume after the time limit; the default of submitit is 3.
_TIMEOUTS = 1_000
_CANCELLED, _LOST = "cancelled", "its job ended without a result"
_DEFAULTS: dict[str, Any] = {"timeout_min": 60, "cpus_per_task": 1, "slurm_array_parallelism": 256}


def on_slurm(work: LaunchRequest, board: ProgressReporter, shutdown: ShutdownRequest) -> None:
    """Submit all trials as Slurm jobs, and wait until all jobs have ended.

    On a signal, the jobs save their states and are canceled.

    Raises:
      InputError: submitit is not installed, Slurm is not available, a parameter is unknown, or
        Slurm rejects the jobs.
    """
    try:
        submitit: Any = importlib.import_module("submitit")
    except ImportError as error:
        raise missing_package("slurm", "submitit", error) from None
    folder = work.files.workdir.absolute() / "slurm"
    cluster = work.options.get("cluster") or "slurm"
    try:
        executor = submitit.AutoExecutor(
            folder=folder / "%j", cluster=cluster, slurm_max_num_timeout=_TIMEOUTS
        )
        executor.update_parameters(**_parameters(work))
    except (RuntimeError, NameError, TypeError, ValueError) as error:
        raise InputError(f"submitit cannot use {cluster!r} here: {error}") from None
    jobs = _jobs(submitit, executor, work, board, folder / "jobs.json", cluster)
    cancelled, asked, missing = False, time.monotonic(), set[str]()
    while jobs:
        if shutdown and not cancelled:
            cancelled = True
            for job in jobs.values():
                job.cancel()
        gone = set[str]()
        if cluster == "slurm" and time.monotonic() - asked > _ASK * (not cancelled):
            # A job counts as gone only after two queries, because results can appear late on a
            # shared file system.
            before, missing = missing, _not_queued(jobs)
            asked, gone = time.monotonic(), before & missing
        for trial, job in list(jobs.items()):
            if job.paths.result_pickle.exists() or (cluster != "slurm" and job.done()):
                _end(work, board, trial, jobs.pop(trial))
            elif trial in gone:
                del jobs[trial]
                _gone(work, board, trial, _CANCELLED if cancelled else _LOST)
        board.look()
        time.sleep(_SECONDS)


def _parameters(work: LaunchRequest) -> dict[str, Any]:
    given: dict[str, Any] = {}
    pairs = work.options.get("slurm") or ()
    for pair in split_list(pairs) if isinstance(pairs, str) else pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise InputError(
                f"--slurm contains {pair!r}, which is not of the form name=value; write "
                "\\, for a comma inside a value"
            )
        try:
            given[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            given[key] = value
    if workers := work.options.get("workers"):
        given["slurm_array_parallelism"] = workers
    return {**_DEFAULTS, "name": work.files.workdir.resolve().name, **given}


def _jobs(
    submitit: Any,
    executor: Any,
    work: LaunchRequest,
    board: ProgressReporter,
    kept: Path,
    cluster: str,
) -> dict[str, Any]:
    """Return a job for each trial: the queued or running job of an earlier start, or a new job."""
    known = read_json(kept) if kept.exists() else {}
    jobs: dict[str, Any] = {}
    if cluster == "slurm":
        old = {
            trial: submitit.SlurmJob(folder=kept.parent / "%j", job_id=known[trial])
            for trial in work.stops
            if trial in known
        }
        gone = _not_queued(old)
        jobs = {trial: job for trial, job in old.items() if trial not in gone}
        for trial in jobs:
            board.submitted(trial)
    fresh = [trial for trial in work.stops if trial not in jobs]
    for start in range(0, len(fresh), _ARRAY):
        trials = fresh[start : start + _ARRAY]
        for trial in trials:
            describe(work.files, work.sweep, trial)
        jobs |= _submit(executor, work, trials)
        # Save after every array, so that a later start finds these jobs if this start is killed.
        write_json(kept, known | {trial: job.job_id for trial, job in jobs.items()}, indent=None)
        for trial in trials:
            board.submitted(trial)
    return jobs


def _submit(executor: Any, work: LaunchRequest, trials: Sequence[str]) -> dict[str, Any]:
    task = Task(str(work.files.workdir.absolute()))
    try:
        submitted = executor.map_array(task, trials, [work.stops[trial] for trial in trials])
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        said = [line for line in str(error).splitlines() if line.strip()]
        why = next((line for line in said if "sbatch: error" in line), said[-1] if said else "")
        raise InputError(f"the jobs cannot be submitted: {why}; check --slurm") from None
    return dict(zip(trials, submitted, strict=True))


def _not_queued(jobs: Mapping[str, Any]) -> set[str]:
    """Return the trials whose jobs are no longer queued or running.

    Uses `squeue`, because clusters without accounting have no `sacct`. If `squeue` fails, the set
    is empty.
    """
    asked = subprocess.run(
        [
            *("squeue", "--noheader", "--array", "--format=%i", f"--user={getpass.getuser()}"),
            "--states=PENDING,RUNNING,SUSPENDED,COMPLETING,CONFIGURING",
        ],
        capture_output=True,
        text=True,
    )
    if asked.returncode:
        return set()
    known = set(asked.stdout.split())
    return {trial for trial, job in jobs.items() if job.job_id not in known}


def _gone(work: LaunchRequest, board: ProgressReporter, trial: str, why: str) -> None:
    """Record the final state of a trial whose job left no result."""
    step = last_saved_step(work.files.trial(trial))
    ended = DONE if step >= work.stops[trial] else STOPPED if why == _CANCELLED else FAILED
    board.note(trial, ended, step=step, why="" if ended == DONE else why)


def _end(work: LaunchRequest, board: ProgressReporter, trial: str, job: Any) -> None:
    step = last_saved_step(work.files.trial(trial))
    if step >= work.stops[trial]:
        board.note(trial, DONE, step=step)
        return
    if (error := job.exception()) is not None:
        if "CANCELLED" in str(job.state) or str(job.state) == "INTERRUPTED":
            _gone(work, board, trial, _CANCELLED)
            return
        # The error is the last line of the traceback, which is between two lines of dashes.
        trace = str(error).split("-" * 22)[1:2] or [str(error)]
        why = (trace[0].strip().splitlines() or [str(job.state)])[-1]
        board.note(trial, FAILED, step=step, why=why)
        return
    state, why = state_of_exit(*job.result())
    board.note(trial, state, step=step, why=why)


class Task:
    """Function of a Slurm job, which runs a worker in a subprocess and forwards signals to it."""

    def __init__(self, directory: str):
        """Store the sweep's directory; submitit pickles this object."""
        self._directory = directory
        self._process: subprocess.Popen[str] | None = None
        self._asked = False

    def __getstate__(self) -> dict[str, Any]:
        return {"_directory": self._directory, "_process": None, "_asked": False}

    def __call__(self, trial: str, stop: int) -> tuple[int, str]:
        """Run the worker and return its exit code and standard error.

        If a signal stopped the worker, this process exits without a result, and the job is
        requeued.
        """
        signal.signal(signal.SIGTERM, self._leave)  # submitit ignores SIGTERM by default
        command = [sys.executable, "-m", "implicit_reasoning.sweeps.worker"]
        self._process = subprocess.Popen(
            [*command, self._directory, trial, str(stop)], stderr=subprocess.PIPE, text=True
        )
        if self._asked:  # a signal came while the process was being started
            self._process.terminate()
        said = self._process.communicate()[1]
        print(said, file=sys.stderr, end="")
        # The exit code is negative if the signal killed a worker that had not begun to train.
        if self._asked and self._process.returncode:
            sys.exit(Exit.INTERRUPTED)
        return self._process.returncode, said

    def checkpoint(self, trial: str, stop: int) -> Any:
        """Save the state of the trial, and return a task that resumes the trial.

        submitit calls this method before a job is requeued.
        """
        self._leave()
        if self._process is not None:
            self._process.wait()
        return importlib.import_module("submitit").helpers.DelayedSubmission(
            Task(self._directory), trial, stop
        )

    def _leave(self, *_: Any) -> None:
        # Send SIGTERM only once: at preemption, Slurm sends both SIGTERM and SIGUSR2, and a second
        # signal would kill a worker that is saving.
        if not self._asked and self._process is not None:
            self._process.terminate()
        self._asked = True
