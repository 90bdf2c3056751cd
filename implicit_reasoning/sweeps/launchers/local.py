"""Launcher `local`: runs each trial in a process on this machine.

Each process has its own device or CPU cores.
"""

from __future__ import annotations

import collections
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from implicit_reasoning.errors import Exit
from implicit_reasoning.runtime.shutdown import ShutdownRequest
from implicit_reasoning.sweeps.directory import RUNNING, STOPPED, describe
from implicit_reasoning.sweeps.launchers.base import (
    LaunchRequest,
    ProgressReporter,
    last_saved_step,
    state_of_exit,
)
from implicit_reasoning.sweeps.launchers.devices import DeviceShare, device_shares

_SECONDS = 0.1  # seconds between checks of the processes
_PATIENCE = 120.0  # seconds that a process has for saving its state and exiting


@dataclass
class _Running:
    """Process of a trial."""

    trial: str
    share: DeviceShare
    process: subprocess.Popen[bytes]
    said: Path


def local(work: LaunchRequest, board: ProgressReporter, shutdown: ShutdownRequest) -> None:
    """Train trials in parallel processes, one process for each share of the machine.

    Raises:
      OSError: a trial could not write its files. No further trial was started.
    """
    free = device_shares(work.options.get("workers"))
    waiting = collections.deque(work.stops)
    running: list[_Running] = []
    unwritable = ""
    try:
        while running or (waiting and not shutdown and not unwritable):
            while waiting and free and not shutdown and not unwritable:
                running.append(_start(work, board, waiting.popleft(), free.pop()))
            if shutdown:
                _ask_to_leave(running)
            time.sleep(_SECONDS)
            board.look()
            for each in [each for each in running if each.process.poll() is not None]:
                running.remove(each)
                free.append(each.share)
                unwritable = _end(work, board, each, shutdown) or unwritable
    finally:  # after any error, never leave orphaned workers
        _ask_to_leave(running)
    if unwritable:
        raise OSError(unwritable)


def _start(
    work: LaunchRequest, board: ProgressReporter, trial: str, share: DeviceShare
) -> _Running:
    describe(work.files, work.sweep, trial)
    said = work.files.trial(trial).workdir / "stderr.txt"
    command = [sys.executable, "-m", "implicit_reasoning.sweeps.worker"]
    command += [
        str(work.files.workdir),
        trial,
        str(work.stops[trial]),
        ",".join(map(str, share.cores)),
    ]
    board.note(trial, RUNNING)
    with said.open("wb") as file:
        # A new session keeps Ctrl-C from reaching the worker; this process terminates it instead.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env={**os.environ, **share.environment},
            start_new_session=True,
        )
    return _Running(trial, share, process, said)


def _end(
    work: LaunchRequest, board: ProgressReporter, ended: _Running, shutdown: ShutdownRequest
) -> str:
    """Record the final state of a trial.

    Returns:
      The error message if the trial could not write its files, else an empty string.
    """
    code, said = ended.process.returncode, ended.said.read_text(errors="replace")
    state, why = state_of_exit(code, said)
    if shutdown and code == -signal.SIGTERM:  # the trial had not begun, so it had nothing to save
        state, why = STOPPED, "stopped by a signal before it began"
    board.note(ended.trial, state, step=last_saved_step(work.files.trial(ended.trial)), why=why)
    return f"trial {ended.trial}: {why}" if code == Exit.NO_FILE else ""


def _ask_to_leave(running: list[_Running]) -> None:
    """Send SIGTERM to the workers, which then save their states and exit.

    A worker that takes longer than the time limit is killed, and loses the steps after its last
    save.
    """
    for each in running:
        each.process.terminate()
    deadline = time.monotonic() + _PATIENCE
    for each in running:
        try:
            each.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            each.process.kill()
            each.process.wait()
