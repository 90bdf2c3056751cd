"""Locks on folders, so that two processes do not write into one at a time.

The lock is `flock` on `<folder>/.lock`, which the system releases when a process ends, however it
ends. Some network file systems have no `flock`. There a marker file that is created exclusively,
`<folder>/.lock.owner`, stands for it (`filelock.SoftFileLock`): it names the process, and a marker
that a dead process of this host left behind is taken over. A marker of another host has to be
removed by hand, because this host cannot tell whether that process is alive.
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

# What the system says where a file system has no `flock`.
_NO_FLOCK = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP})
_SECONDS = 0.05  # between two attempts
_PATIENCE = 600.0  # seconds to wait for a lock that is held for the time of a write


@contextlib.contextmanager
def exclusive_lock(folder: Path, refusal: str) -> Iterator[None]:
    """Hold a folder, made if missing, for as long as the block runs.

    Args:
      folder: to hold.
      refusal: what to say where another process holds it.

    Raises:
      InputError: another process holds it.
    """
    with _locked(folder, refusal, patience=0.0):
        yield


@contextlib.contextmanager
def wait_for_lock(folder: Path) -> Iterator[None]:
    """Hold a folder, made if missing, after waiting for the process that does; for short writes.

    Raises:
      InputError: it was held for ten minutes.
    """
    refusal = f"another process holds {folder} for more than {_PATIENCE:.0f} s; end it, or wait"
    with _locked(folder, refusal, patience=_PATIENCE):
        yield


def describe_lock(folder: Path) -> str:
    """Which kind of lock works in a folder that exists; for the `doctor`.

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
                f"{refusal}. The file system of {folder} has no flock ({missing}), so the holder "
                f"is named in {folder / '.lock.owner'}; if that process is gone and was on another "
                "host, remove that file"
            ) from None
        try:
            yield
        finally:
            marker.release()


def _wait(attempt: Callable[[], str | None], refusal: str, patience: float) -> str | None:
    """What an attempt returns, made again while another process holds the lock."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return attempt()
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise InputError(refusal) from None
        time.sleep(_SECONDS)


def _flock(descriptor: int) -> str | None:
    """Lock an open file; None, or what the system says where there is no `flock`.

    Raises:
      BlockingIOError: another process holds it.
    """
    try:
        if lock_descriptor(descriptor, blocking=False):
            return None
    except OSError as error:
        if error.errno in _NO_FLOCK:
            return str(error.strerror)
        raise
    raise BlockingIOError
