"""A process that trains trials on command, started by populations.py.

Commands on standard input: `set CONFIG HOW TRIALS [CORES]` builds a program for trials with seeds 0
to TRIALS - 1. HOW is `population` (one program for all trials) or `alone` (one program, called for
one trial after another). CORES are the numbers of the cores to use. `steps K` trains every trial
for K steps and returns the seconds. `limit` returns the FLOPs and memory traffic
of a training step of one trial, and the peak throughput of a device.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax

from implicit_reasoning.config import apply_overrides, load_config, split_list
from implicit_reasoning.runs import Layout
from implicit_reasoning.runtime import sharding
from implicit_reasoning.runtime.machine import available_cores, matmul_peak, pin_to_cores
from implicit_reasoning.training import setup
from implicit_reasoning.training.cost import row_shape, step_cost
from implicit_reasoning.training.population import make_population
from implicit_reasoning.training.settings import Trial
from implicit_reasoning.worlds import build


class Trials:
    """Several trials, and their programs and states."""

    def __init__(self, config: str, how: str, count: int):
        """Build the programs, and compile them with a first step."""
        base = load_config(config)
        configs = [apply_overrides(base, {"seed": seed}) for seed in range(count)]
        dataset = build(base.task)
        trials = [Trial(config, dataset, Layout(Path("."))) for config in configs]
        spec = setup.make_model(trials[0].settings.model, dataset).spec
        self.cost = step_cost(spec, batch_size=base.batch_size, **row_shape(dataset))
        if how == "population":
            self._programs = [make_population(trials)]
        else:
            first = setup.make_program(trials[0].settings, dataset)
            keys = [jax.device_put(setup.keys(config.seed), first.whole) for config in configs]
            self._programs = [first._replace(init_key=one, stream_key=two) for one, two in keys]
        self._states = [program.init(program.init_key) for program in self._programs]
        self.steps(1)

    def steps(self, count: int) -> float:
        """Train every trial for `count` steps, and return the seconds."""
        began = time.perf_counter()
        for number, program in enumerate(self._programs):
            steps = sharding.put_scalar(count, program.whole)
            state, rows = self._states[number], program.rows
            arguments: Any = (state, rows, program.hyper, program.stream_key, steps)
            self._states[number] = jax.block_until_ready(program.advance(*arguments))
        return time.perf_counter() - began


def main() -> None:
    """Answer commands until the input ends."""
    print(json.dumps({"cores": len(available_cores())}), flush=True)
    trials: Trials | None = None
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "set":
            if len(rest) > 3:
                pin_to_cores([int(core) for core in split_list(rest[3])])
            trials = Trials(rest[0], rest[1], int(rest[2]))
            answer: dict[str, Any] = {"devices": jax.device_count()}
        elif word == "limit":
            assert trials is not None
            answer = {
                "devices": jax.device_count(),
                "flop_a_step_and_trial": trials.cost.step,
                "traffic_bytes_a_step_and_trial": trials.cost.traffic_bytes,
                "peak_flops": matmul_peak(),
            }
        else:
            assert trials is not None
            answer = {"seconds": trials.steps(int(rest[0]))}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
