"""Shutdown requests at a chosen moment, without signals."""

import contextlib
import signal

import pytest

from implicit_reasoning.runtime.shutdown import Interrupted, ShutdownRequest


class RequestAfter(ShutdownRequest):
    """Reports SIGTERM after the loop has asked a number of times; it asks before every chunk of
    steps.
    """

    def __init__(self, chunks):
        self._left = chunks

    @property
    def number(self):
        self._left -= 1
        return 0 if self._left >= 0 else int(signal.SIGTERM)


@contextlib.contextmanager
def stopped_after(monkeypatch, module, chunks):
    """Stop the training that starts in this block; `module` listens for signals."""
    with monkeypatch.context() as patched:
        request = RequestAfter(chunks)
        patched.setattr(module, "shutdown_requests", lambda: contextlib.nullcontext(request))
        with pytest.raises(Interrupted, match="SIGTERM: saved at step"):
            yield
