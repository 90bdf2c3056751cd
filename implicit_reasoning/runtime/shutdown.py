"""Graceful handling of SIGTERM and SIGINT: the training loop saves its state soon and exits."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
    """Error that ends training after a signal. The state was saved; the same call resumes."""

    def __init__(self, step: int, signal_name: str):
        super().__init__(f"{signal_name}: saved at step {step}; rerun the same command to continue")
        self.step = step


class ShutdownRequest:
    """A request to stop the process. `number` is the number of the received signal; 0 if none."""

    def __init__(self) -> None:
        self.number = 0

    def __bool__(self) -> bool:
        return self.number != 0


def signal_name(number: int) -> str | None:
    """Return the name of a signal; None for 0."""
    return signal.Signals(number).name if number else None


@contextlib.contextmanager
def shutdown_requests() -> Iterator[ShutdownRequest]:
    """Record the first SIGTERM or SIGINT within a `with` statement as a shutdown request.

    A second signal has the effect that it would have outside the `with` statement. Python can
    handle signals in the main thread only, so no request is recorded in any other thread.
    """
    shutdown = ShutdownRequest()
    if threading.current_thread() is not threading.main_thread():
        yield shutdown
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def note(number: int, frame: FrameType | None) -> None:
        shutdown.number = number
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in _SIGNALS:
        signal.signal(number, note)
    try:
        yield shutdown
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
