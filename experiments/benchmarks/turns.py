"""Sides of a benchmark take turns in one run, so that a noisy minute meets all of them."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from measure import spread

Seconds = dict[str, list[float]]
"""Of every round, by side."""


def take_turns(sides: Mapping[str, Callable[[], float]], rounds: int, *, calls: int = 1) -> Seconds:
    """Let every side say how many seconds it took, round by round; a first round warms all up.

    Of several calls in a turn the median counts. A call of milliseconds needs them: the first one
    finds the caches full of what the side before it used.
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
    """Of a call that returns arrays, one that returns the seconds until they are there."""

    def took() -> float:
        began = time.perf_counter()
        jax.block_until_ready(run())
        return time.perf_counter() - began

    return took


def compared(seconds: Seconds, flops: Mapping[str, float], ours: str) -> dict[str, Any]:
    """Seconds, GFLOP and their quotient by side; and how many times as fast ours is.

    A ratio is of the same round, and its spread is over rounds. Beside the ratio of times stands
    that of FLOPs: what is left between the two is how well the machine is used.
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
    """Of two sides, round by round."""
    return spread([a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)])
