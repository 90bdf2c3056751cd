"""SIGTERM and SIGINT, handled gracefully: the loop saves at its next step and exits."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
    """Training saved its state because a signal asked it to stop; the same call resumes it."""

    def __init__(self, step: int, signal_name: str):
        super().__init__(
            f"{signal_name}: saved at step {step}; the same command goes on from there"
        )
        self.step = step


class ShutdownRequest:
    """Whether a signal has asked the process to stop: its number, or 0."""

    def __init__(self) -> None:
        self.number = 0

    def __bool__(self) -> bool:
        return self.number != 0


def signal_name(number: int) -> str | None:
    """What a signal is called; None for 0."""
    return signal.Signals(number).name if number else None


@contextlib.contextmanager
def shutdown_requests() -> Iterator[ShutdownRequest]:
    """Record the first signal as a shutdown request; a second one has its default effect.

    Signals can be handled in the main thread only; elsewhere no request is ever recorded.
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
