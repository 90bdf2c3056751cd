"""Locks on folders, so that two processes do not write to one folder at the same time.

The lock is `flock` on `<folder>/.lock`. The system releases the lock when the process ends, for
whatever reason. Some network file systems have no `flock`. The lock is then a marker file that is
created exclusively, `<folder>/.lock.owner` (`filelock.SoftFileLock`). The marker names the locking
process and its host. If this process ran on the same host and has ended, the next process takes
over the lock. Remove a marker from a different host by hand, because a process cannot check whether
a process on a different host is alive.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import SoftFileLock, Timeout, lock_descriptor

from implicit_reasoning.errors import InputError

# Error codes of the system if the file system has no `flock`.
_NO_FLOCK = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP})
_SECONDS = 0.05  # seconds between two attempts
_PATIENCE = 600.0  # seconds to wait for a lock that is held during a short write


@contextlib.contextmanager
def exclusive_lock(folder: Path, refusal: str) -> Iterator[None]:
    """Hold the lock on a folder in a `with` statement. A missing folder is created.

    Args:
      folder: the folder to lock.
      refusal: the error message for the case that another process holds the lock.

    Raises:
      InputError: another process holds the lock.
    """
    with _locked(folder, refusal, patience=0.0):
        yield


@contextlib.contextmanager
def wait_for_lock(folder: Path) -> Iterator[None]:
    """Wait for the lock on a folder, and hold the lock in a `with` statement.

    Use this lock for short writes. A missing folder is created.

    Raises:
      InputError: another process held the lock for ten minutes.
    """
    refusal = (
        f"another process has held the lock on {folder} for {_PATIENCE:.0f} s; stop that process, "
        "or try again later"
    )
    with _locked(folder, refusal, patience=_PATIENCE):
        yield


def describe_lock(folder: Path) -> str:
    """Describe the kind of lock that works in an existing folder.

    Raises:
      OSError: the folder cannot be written.
    """
    path = folder / f".lock_test.{os.getpid()}"
    try:
        with path.open("a") as file:
            missing = _flock(file.fileno())
        if missing is None:
            return f"flock works at {folder.absolute()}"
        marker = SoftFileLock(path.with_name(f"{path.name}.owner"))
        with marker.acquire(timeout=0):
            return f"no flock at {folder.absolute()} ({missing}); marker files are used instead"
    finally:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(folder: Path, refusal: str, patience: float) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        missing = _wait(lambda: _flock(file.fileno()), refusal, patience)
        if missing is None:
            yield
            return
        marker = SoftFileLock(folder / ".lock.owner")
        try:
            marker.acquire(timeout=patience, poll_interval=_SECONDS)
        except Timeout:
            raise InputError(
                f"{refusal}. The file system of {folder} has no flock ({missing}), so the lock is "
                f"the file {folder / '.lock.owner'}. This file names the locking process and its "
                "host; if the process has ended on a different host, remove the file"
            ) from None
        try:
            yield
        finally:
            marker.release()


def _wait(attempt: Callable[[], str | None], refusal: str, patience: float) -> str | None:
    """Call `attempt` until no other process holds the lock, and return its result.

    Raises:
      InputError: another process still holds the lock after `patience` seconds.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            return attempt()
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise InputError(refusal) from None
        time.sleep(_SECONDS)


def _flock(descriptor: int) -> str | None:
    """Lock an open file. Return None, or the system's message if the file system has no `flock`.

    Raises:
      BlockingIOError: another process holds the lock.
    """
    try:
        if lock_descriptor(descriptor, blocking=False):
            return None
    except OSError as error:
        if error.errno in _NO_FLOCK:
            return str(error.strerror)
        raise
    raise BlockingIOError
