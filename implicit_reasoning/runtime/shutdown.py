"""Graceful handling of SIGTERM and SIGINT, which lets the training loop save its state and exit."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
    """Error that ends training after a signal. The state is saved, and the same call resumes it."""

    def __init__(self, step: int, signal_name: str):
        super().__init__(f"{signal_name}: saved at step {step}; rerun the same command to continue")
        self.step = step


class ShutdownRequest:
    """A request to stop the process. `number` is the received signal, or 0 before any signal."""

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

    A second signal has its usual effect, such as `KeyboardInterrupt`. Python handles signals only
    in the main thread, so a `with` statement in a different thread records no request.
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
