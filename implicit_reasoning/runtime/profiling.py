"""What a run spends on compiling, and a trace of a few of its early steps."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"
_LOCK = threading.Lock()
_FIRST, _LAST = 2, 5  # chunks of steps that are traced; the first one compiles


@dataclass
class Compiles:
    """Programs that this process has compiled, or found in the cache, and the seconds it took."""

    count: int = 0
    seconds: float = 0.0

    def since(self, before: Compiles) -> dict[str, int | float]:
        """As columns of a row."""
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


# JAX has no way to take a listener back that is public: one for the process.
jax.monitoring.register_event_duration_secs_listener(_listen)


def compiles() -> Compiles:
    """So far."""
    with _LOCK:
        return Compiles(_total.count, _total.seconds)


class Profile:
    """Traces the second to the fifth chunk of steps, for TensorBoard (xprof) or Perfetto."""

    def __init__(self, folder: Path | None):
        """Nothing is traced where `folder` is None."""
        self._folder, self._chunk, self._tracing = folder, 0, False

    def next_chunk(self, state: Any) -> None:
        """Call before each chunk; `state` is what the chunk before computes."""
        self._chunk += 1
        if self._folder and self._chunk == _FIRST:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder)
            self._tracing = True
        elif self._tracing and self._chunk > _LAST:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Write the trace, if one is being made."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
