"""A job array on a Slurm cluster, through submitit.

Each trial is a job of the array. Before its time is up, or when it is preempted, Slurm sends
SIGUSR2, and the trial saves, is put into the queue again and goes on; the same after `scontrol
requeue`, which sends SIGTERM. `--slurm=timeout_min=240,slurm_partition=gpu,gpus_per_node=1` gives
submitit's parameters; `--workers=` is how many run at once. The sweep's directory has to be one
that all nodes share. A launcher that was killed finds its jobs again when it is started again.

Source: submitit 1.5, `docs/checkpointing.md`.
"""

from __future__ import annotations

import ast
import importlib
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from implicit_reasoning.errors import Exit, InputError
from implicit_reasoning.files import read_json, write_json
from implicit_reasoning.sweeps.directory import DONE, FAILED, STOPPED, describe
from implicit_reasoning.sweeps.launchers.base import (
    Board,
    Work,
    need,
    outcome,
    reached,
)
from implicit_reasoning.training.interruption import Wish

_SECONDS = 1.0  # between looks; submitit asks Slurm less often
_DEFAULTS: dict[str, Any] = {"timeout_min": 60, "cpus_per_task": 1, "slurm_array_parallelism": 256}


def on_slurm(work: Work, board: Board, wish: Wish) -> None:
    """Submit all trials, and wait for them; a signal cancels them, saved.

    Raises:
      InputError: submitit is not installed, there is no Slurm here, or a parameter is unknown.
    """
    try:
        submitit: Any = importlib.import_module("submitit")
    except ImportError as error:
        raise need("slurm", "submitit", error) from None
    folder = work.files.workdir.absolute() / "slurm"
    cluster = work.options.get("cluster") or "slurm"
    try:
        executor = submitit.AutoExecutor(folder=folder / "%j", cluster=cluster)
        executor.update_parameters(**_parameters(work))
    except (RuntimeError, NameError, TypeError, ValueError) as error:
        raise InputError(f"submitit cannot use {cluster!r} here: {error}") from None
    jobs = _jobs(submitit, executor, work, board, folder / "jobs.json", cluster)
    cancelled = False
    while jobs:
        if wish and not cancelled:
            cancelled = True
            for job in jobs.values():
                job.cancel()
        for trial in [trial for trial, job in jobs.items() if job.done()]:
            _end(work, board, trial, jobs.pop(trial))
        board.look()
        time.sleep(_SECONDS)


def _parameters(work: Work) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for pair in filter(None, (work.options.get("slurm") or "").split(",")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"--slurm has {pair!r}; it is name=value,name=value")
        try:
            given[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            given[key] = value
    if workers := work.options.get("workers"):
        given["slurm_array_parallelism"] = workers
    return {**_DEFAULTS, "name": work.files.workdir.resolve().name, **given}


def _jobs(
    submitit: Any, executor: Any, work: Work, board: Board, kept: Path, cluster: str
) -> dict[str, Any]:
    """A job for each trial: one that is still there from an earlier start, or a new one."""
    known = read_json(kept) if kept.exists() else {}
    jobs: dict[str, Any] = {}
    if cluster == "slurm":
        old = {
            trial: submitit.SlurmJob(folder=kept.parent / "%j", job_id=known[trial])
            for trial in work.stops
            if trial in known
        }
        jobs = {trial: job for trial, job in old.items() if not job.done(force_check=True)}
    fresh = [trial for trial in work.stops if trial not in jobs]
    for trial in fresh:
        describe(work.files, trial, work.sweep.trials[trial])
    task = Task(str(work.files.workdir.absolute()))
    stops = [work.stops[trial] for trial in fresh]
    submitted = executor.map_array(task, fresh, stops) if fresh else []
    jobs |= dict(zip(fresh, submitted, strict=True))
    write_json(kept, known | {trial: job.job_id for trial, job in jobs.items()}, indent=None)
    for trial in jobs:
        board.submitted(trial)
    return jobs


def _end(work: Work, board: Board, trial: str, job: Any) -> None:
    step = reached(work.files.trial(trial))
    if step >= work.stops[trial]:
        board.note(trial, DONE, step=step)
        return
    if (error := job.exception()) is not None:
        cancelled = "CANCELLED" in str(job.state) or str(job.state) == "INTERRUPTED"
        why = str(error).strip().splitlines()[-1] if str(error).strip() else str(job.state)
        board.note(trial, STOPPED if cancelled else FAILED, step=step, why=why)
        return
    state, why = outcome(*job.result())
    board.note(trial, state, step=step, why=why)


class Task:
    """What a job does: the worker, in a process that it can ask to save and leave."""

    def __init__(self, directory: str):
        """Of a sweep's directory; pickled by submitit."""
        self._directory = directory
        self._process: subprocess.Popen[str] | None = None
        self._asked = False

    def __getstate__(self) -> dict[str, Any]:
        return {"_directory": self._directory, "_process": None, "_asked": False}

    def __call__(self, trial: str, stop: int) -> tuple[int, str]:
        """Exit code and words of the worker; no result where Slurm will start the job again."""
        signal.signal(signal.SIGTERM, self._leave)  # submitit ignores it
        command = [sys.executable, "-m", "implicit_reasoning.sweeps.worker"]
        self._process = subprocess.Popen(
            [*command, self._directory, trial, str(stop)], stderr=subprocess.PIPE, text=True
        )
        said = self._process.communicate()[1]
        print(said, file=sys.stderr, end="")
        if self._asked and self._process.returncode == Exit.INTERRUPTED:
            sys.exit(Exit.INTERRUPTED)
        return self._process.returncode, said

    def checkpoint(self, trial: str, stop: int) -> Any:
        """The time is up, or others come first: save, and be started again (submitit's name)."""
        self._leave()
        if self._process is not None:
            self._process.wait()
        return importlib.import_module("submitit").helpers.DelayedSubmission(
            Task(self._directory), trial, stop
        )

    def _leave(self, *_: Any) -> None:
        self._asked = True
        if self._process is not None:
            self._process.terminate()
