"""Tasks on a Ray cluster, an existing one (`--address=`) or one on this machine.

Every trial has a process of its own (`max_calls=1`), so that its device is free when it has ended.
What is lost to a killed process or a lost node Ray starts again elsewhere, and it goes on from its
last saved state: the sweep's directory has to be one that all nodes share.

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

_RETRIES = 8  # of a trial whose process or node was lost
_SECONDS = 0.5  # between looks


def on_ray(work: LaunchRequest, board: ProgressReporter, shutdown: ShutdownRequest) -> None:
    """Hand all trials to Ray, and wait for them.

    Raises:
      InputError: Ray is not installed.
      OSError: a trial could not write its files; those that had not begun were taken back.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise missing_package("ray", "ray", error) from None
    with contextlib.ExitStack() as stack:
        if not ray.is_initialized():
            address = work.options.get("address") or "local"  # else it would join one that it finds
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
                signal.signal(signal.SIGTERM, ours)  # Ray's own would end this process unsaved
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
                ray.cancel(task, force=False)  # SIGINT, at which a trial saves and leaves
        for task in ray.wait(list(tasks), timeout=_SECONDS)[0]:
            trial = tasks.pop(task)
            step = last_saved_step(work.files.trial(trial))
            try:
                code, said = ray.get(task)
            except ray.exceptions.TaskCancelledError:
                board.note(trial, STOPPED, step=step, why="taken back before it began")
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
    """On a node of the cluster, in a process that was made for it."""
    from implicit_reasoning.sweeps.worker import run_trial

    return run_trial(directory, trial, stop)
