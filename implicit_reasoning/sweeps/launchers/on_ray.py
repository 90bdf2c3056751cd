"""Launcher `ray`: runs trials as tasks on an existing Ray cluster (`--address=`) or this machine.

Every trial has its own process (`max_calls=1`), which releases the device at its end. If a process
is killed or a node is lost, Ray restarts the trial, and the trial resumes from its last saved
state. All nodes must therefore share the directory of the sweep.

Source: Ray 2.60, "Tasks", "Fault tolerance".
"""

from __future__ import annotations

import contextlib
import importlib
import signal
import threading
from typing import Any

from implicit_reasoning.errors import Exit
from implicit_reasoning.runtime.shutdown import ShutdownRequest
from implicit_reasoning.sweeps.directory import FAILED, STOPPED, describe
from implicit_reasoning.sweeps.launchers.base import (
    LaunchRequest,
    ProgressReporter,
    last_saved_step,
    missing_package,
    state_of_exit,
)

_RETRIES = 8  # times that Ray restarts a trial whose process or node is lost
_SECONDS = 0.5  # seconds between checks of the tasks


def on_ray(work: LaunchRequest, board: ProgressReporter, shutdown: ShutdownRequest) -> None:
    """Submit all trials to Ray, and wait until all trials have ended.

    Raises:
      InputError: Ray is not installed.
      OSError: a trial could not write its files. The remaining trials were canceled.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise missing_package("ray", "ray", error) from None
    with contextlib.ExitStack() as stack:
        if not ray.is_initialized():
            # Without an address, Ray would join any cluster that it finds.
            address = work.options.get("address") or "local"
            ours = signal.getsignal(signal.SIGTERM)
            ray.init(
                address=address,
                num_cpus=work.options.get("workers") if address == "local" else None,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
            )
            stack.callback(ray.shutdown)
            if threading.current_thread() is threading.main_thread():
                # Ray's handler would end this process without saving.
                signal.signal(signal.SIGTERM, ours)
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        remote = ray.remote(max_calls=1, max_retries=_RETRIES, num_cpus=1, num_gpus=gpus)(_trial)
        tasks: dict[Any, str] = {}
        for trial, stop in work.stops.items():
            describe(work.files, work.sweep, trial)
            tasks[remote.remote(str(work.files.workdir.absolute()), trial, stop)] = trial
            board.submitted(trial)
        _wait(ray, tasks, work, board, shutdown)


def _wait(
    ray: Any,
    tasks: dict[Any, str],
    work: LaunchRequest,
    board: ProgressReporter,
    shutdown: ShutdownRequest,
) -> None:
    cancelled, unwritable = False, ""
    while tasks:
        if (shutdown or unwritable) and not cancelled:
            cancelled = True
            for task in tasks:
                # This sends SIGINT to the trial, which then saves its state and exits.
                ray.cancel(task, force=False)
        for task in ray.wait(list(tasks), timeout=_SECONDS)[0]:
            trial = tasks.pop(task)
            step = last_saved_step(work.files.trial(trial))
            try:
                code, said = ray.get(task)
            except ray.exceptions.TaskCancelledError:
                board.note(trial, STOPPED, step=step, why="canceled before it began")
                continue
            except ray.exceptions.RayError as error:
                board.note(trial, FAILED, step=step, why=str(error).strip().splitlines()[-1])
                continue
            state, why = state_of_exit(code, said)
            board.note(trial, state, step=step, why=why)
            if code == Exit.NO_FILE:
                unwritable = f"trial {trial}: {why}"
        board.look()
    if unwritable:
        raise OSError(unwritable)


def _trial(directory: str, trial: str, stop: int) -> tuple[int, str]:
    """Train a trial in a process on a node of the cluster."""
    from implicit_reasoning.sweeps.worker import run_trial

    return run_trial(directory, trial, stop)
