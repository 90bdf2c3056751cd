r"""Benchmark of measuring all checkpoints in one program, against one checkpoint after another.

    python experiments/benchmarks/checkpoints.py

An instrument measures 20 models of the `pocket` shape with random weights, including the transfer
of the outcomes to the host. Four variants run in turns, each on every core:

- `at once`: the runner, one call for all models. On a CPU, its program loops over the models.
- `vmap`: the runner with all models computed together, its default on accelerators.
- `one after another`: `measure` is compiled once and called for each model.
- `a fresh jit each`: `jax.jit` of a new function for each model, as in a loop over checkpoints that
  defines the function inside. The function is compiled every time. Only `--afresh` models are
  measured, and the time is extrapolated to all models.

All variants do the same work (the ratio of FLOPs is 1), and their outcomes are compared before any
timing. The compilation cache is disabled. The first call of each variant, which includes
compilation, is reported separately.

Smoke test:
    python experiments/benchmarks/checkpoints.py --config=experiments/smoke.py --checkpoints=2 \
        --instruments=behaviour --rounds=1 --afresh=1 --out=runs/smoke/checkpoints.json
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from machines import keep
from measure import spread
from outfile import OUT
from turns import ratio, take_turns, timed

from implicit_reasoning.analysis import Examples, Instrument, Runner, find_instrument
from implicit_reasoning.config import Flag, load_config, parse_flags
from implicit_reasoning.model import Params, Spec, Transformer
from implicit_reasoning.worlds import build

FLAGS = {
    "config": "configs/composition.py:pocket",
    "checkpoints": 20,
    "instruments": Flag(many=True, default=("lens", "cross_query_patching")),
    "rounds": 5,
    "afresh": 2,
    "out": OUT,
}
AT_ONCE, AFRESH = "at once", "a fresh jit each"
UNLIKE = 1e-3  # share of outcomes that may differ, because ranks and ties depend on rounding
Outcomes = dict[str, np.ndarray]


def main(argv: list[str]) -> None:
    """Measure and write the results."""
    flags, _ = parse_flags(argv, FLAGS)
    jax.config.update("jax_enable_compilation_cache", False)
    config = load_config(flags["config"])
    dataset = build(config.task)
    # These are the settings of runs.
    sizes = {**config.model.to_dict(), "dtype": "float32", "precision": "highest"}
    model = Transformer(Spec.from_config(sizes, d_vocab=dataset.n_vocab, n_ctx=dataset.n_ctx))
    keys = jax.random.split(jax.random.key(0), flags["checkpoints"])
    params = jax.jit(jax.vmap(model.init))(keys)
    result = {
        "sizes": {name: value for name, value in flags.items() if name != "out"},
        "load_average": os.getloadavg()[0],
        "instruments": {
            name: compare(
                Sides(instrument, model, params, instrument.examples(model, dataset)),
                flags["rounds"],
                flags["afresh"],
            )
            for name, instrument in zip(
                flags["instruments"], map(find_instrument, flags["instruments"]), strict=True
            )
        },
    }
    keep(result, flags["out"], "checkpoints")


class Sides:
    """One instrument on all models, in four variants."""

    def __init__(
        self, instrument: Instrument, model: Transformer, params: Params, examples: Examples
    ):
        self._instrument, self._model, self._examples = instrument, model, examples
        self._all = params
        self.count = jax.tree.leaves(params)[0].shape[0]
        self._each = [jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in range(self.count)]
        self._runner = Runner(instrument, model)
        self._together = Runner(instrument, model, together=self.count)
        self._compiled = self._fresh()

    def at_once(self) -> Outcomes:
        """Measure all models in one call."""
        return self._measured(self._runner)

    def vmap(self) -> Outcomes:
        """Measure all models in one call, in which all models are computed together."""
        return self._measured(self._together)

    def _measured(self, runner: Runner) -> Outcomes:
        found = runner(self._all, runner.place(self._examples))
        return {name: np.asarray(value) for name, value in found.items()}

    def one_after_another(self) -> Outcomes:
        """Measure each model with the same compiled program."""
        return stacked([self._call(self._compiled, params) for params in self._each])

    def afresh(self, count: int) -> Outcomes:
        """Measure `count` models, each with a newly compiled program."""
        return stacked([self._call(self._fresh(), params) for params in self._each[:count]])

    def _fresh(self) -> Callable[..., Any]:
        def measure(params: Params, inputs: Any, key: Any) -> Any:
            return self._instrument.measure(self._model, params, inputs, key)

        return jax.jit(measure)

    def _call(self, program: Callable[..., Any], params: Params) -> Outcomes:
        found = program(params, self._examples.inputs, jax.random.key(0))
        return {name: np.asarray(value) for name, value in found.items()}


def stacked(outcomes: list[Outcomes]) -> Outcomes:
    """Stack outcomes along a new leading axis for models."""
    return {name: np.stack([one[name] for one in outcomes]) for name in outcomes[0]}


def compare(sides: Sides, rounds: int, afresh: int) -> dict[str, Any]:
    """Check that the outcomes are equal, then time the variants in turns.

    Returns:
      Seconds for all models, and the speedup of `at once` over the remaining variants.
    """
    ways: dict[str, Callable[[], Outcomes]] = {
        AT_ONCE: sides.at_once,
        "vmap": sides.vmap,
        "one after another": sides.one_after_another,
        AFRESH: lambda: sides.afresh(afresh),
    }
    first, outcomes = {}, {}
    for name, run in ways.items():
        began = time.perf_counter()
        outcomes[name] = run()
        first[name] = time.perf_counter() - began
    for name, found in outcomes.items():
        check_equal(outcomes[AT_ONCE], found, name)
    seconds = take_turns({name: timed(run) for name, run in ways.items()}, rounds)
    seconds[AFRESH] = [s / afresh * sides.count for s in seconds[AFRESH]]
    return {
        "first_call_seconds": first,
        "seconds": {name: spread(s_) for name, s_ in seconds.items()},
        "times_as_fast": {
            name: {"time": ratio(seconds, name, AT_ONCE), "flop": 1.0}
            for name in ways
            if name != AT_ONCE
        },
    }


def check_equal(ours: Outcomes, found: Outcomes, side: str) -> None:
    """Check that the outcomes agree, except for a few outcomes that depend on rounding."""
    for name, value in found.items():
        same = np.isclose(ours[name][: len(value)], value, atol=1e-4, equal_nan=True)
        if 1 - same.mean() > UNLIKE:
            raise SystemExit(f"{side}: {1 - same.mean():.2%} of {name} differ from {AT_ONCE!r}")


if __name__ == "__main__":
    main(sys.argv[1:])
