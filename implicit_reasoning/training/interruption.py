"""SIGTERM and SIGINT as a wish, not a death: the loop saves at its next step and leaves."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
    """Training was asked to stop, and saved its state; the same call goes on where it stopped."""

    def __init__(self, step: int, signal_name: str):
        super().__init__(
            f"{signal_name}: saved at step {step}; the same command goes on from there"
        )
        self.step = step


class Wish:
    """Whether a signal has asked the process to stop: its number, or 0."""

    def __init__(self) -> None:
        self.number = 0

    def __bool__(self) -> bool:
        return self.number != 0


def signal_name(number: int) -> str | None:
    """What a signal is called; None for 0."""
    return signal.Signals(number).name if number else None


@contextlib.contextmanager
def wishes() -> Iterator[Wish]:
    """Turn the first signal into a wish; a second one acts as it always does.

    Signals can be handled in the main thread only; elsewhere the wish is never set.
    """
    wish = Wish()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def note(number: int, frame: FrameType | None) -> None:
        wish.number = number
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in _SIGNALS:
        signal.signal(number, note)
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
