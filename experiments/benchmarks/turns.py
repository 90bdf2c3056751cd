"""Timing of benchmark variants in turns, so that noise affects all of them equally."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from measure import spread

Seconds = dict[str, list[float]]
"""Seconds of every round, by variant."""


def take_turns(sides: Mapping[str, Callable[[], float]], rounds: int, *, calls: int = 1) -> Seconds:
    """Time the variants round by round, after a warm-up round.

    If a variant is called several times per turn, the median counts. Several calls are necessary if
    a call takes milliseconds, because the preceding variant has filled the CPU caches before the
    first call.

    Args:
      sides: functions that return a number of seconds, by variant.
      rounds: number of rounds.
      calls: number of calls per turn.
    """
    seconds: Seconds = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, run in sides.items():
            took = statistics.median(run() for _ in range(calls))
            if turn:
                seconds[name].append(took)
        print(f"{turn}/{rounds}", file=sys.stderr, flush=True)
    return seconds


def timed(run: Callable[[], Any]) -> Callable[[], float]:
    """Run a function that returns arrays, and return the seconds until the arrays are ready."""

    def took() -> float:
        began = time.perf_counter()
        jax.block_until_ready(run())
        return time.perf_counter() - began

    return took


def compared(seconds: Seconds, flops: Mapping[str, float], ours: str) -> dict[str, Any]:
    """Return seconds, GFLOP and GFLOP/s by variant, and the speedups of `ours`.

    Ratios are computed within each round, and their spread is over rounds. The ratio of FLOPs is
    reported next to the ratio of times. If these ratios differ, the hardware utilization of the
    variants differs.
    """
    return {
        "seconds": {name: spread(s_) for name, s_ in seconds.items()},
        "gflop": {name: flops[name] / 1e9 for name in seconds},
        "gflop_per_second": {
            name: spread([flops[name] / s / 1e9 for s in s_]) for name, s_ in seconds.items()
        },
        "times_as_fast": {
            name: {"time": ratio(seconds, name, ours), "flop": flops[name] / flops[ours]}
            for name in seconds
            if name != ours
        },
    }


def ratio(seconds: Seconds, slow: str, fast: str) -> dict[str, float]:
    """Return the spread of the ratio of two variants over rounds."""
    return spread([a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)])
