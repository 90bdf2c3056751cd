"""Compilation times of this process, and a profiler trace of a few early steps of a run."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"
_LOCK = threading.Lock()
_FIRST, _LAST = 2, 5  # the chunks of steps to trace; chunk 1 is skipped, because it compiles


@dataclass
class Compiles:
    """The number and duration of compilations in this process.

    Both values include programs that were read from the compilation cache.

    Attributes:
      count: number of programs.
      seconds: total time of compiling or reading the programs.
    """

    count: int = 0
    seconds: float = 0.0

    def since(self, before: Compiles) -> dict[str, int | float]:
        """Return the difference from the earlier count `before`, as columns of a metrics row."""
        return {
            "compiles": self.count - before.count,
            "compile_seconds": self.seconds - before.seconds,
        }


_total = Compiles()


def _listen(event: str, duration_secs: float, **_: str | int) -> None:
    if event == _COMPILED:
        with _LOCK:
            _total.count += 1
            _total.seconds += duration_secs


# JAX has no public function to remove a listener, so this listener stays for the whole process.
jax.monitoring.register_event_duration_secs_listener(_listen)


def compiles() -> Compiles:
    """Return the number and duration of all compilations of this process so far."""
    with _LOCK:
        return Compiles(_total.count, _total.seconds)


class Profile:
    """A profiler trace of the chunks of steps 2 to 5, for TensorBoard (xprof) or Perfetto."""

    def __init__(self, folder: Path | None):
        """Create the profile; `folder` is the folder of the trace, or None for no trace."""
        self._folder, self._chunk, self._tracing = folder, 0, False

    def next_chunk(self, state: Any) -> None:
        """Start or stop the trace. Call this before each chunk of steps.

        Args:
          state: the result of the previous chunk, which may still be running on the device.
        """
        self._chunk += 1
        if self._folder and self._chunk == _FIRST:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder)
            self._tracing = True
        elif self._tracing and self._chunk > _LAST:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Write the trace, if one is active."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
