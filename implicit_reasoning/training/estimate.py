"""Estimates of the cost of a run before it is trained.

Sizes are computed from shapes. Times are extrapolated from a short measurement.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from ml_collections import ConfigDict

from implicit_reasoning.runtime import sharding
from implicit_reasoning.runtime.machine import matmul_peak
from implicit_reasoning.training import setup
from implicit_reasoning.training.cost import StepCost, row_shape, step_cost
from implicit_reasoning.training.settings import TrainingSettings
from implicit_reasoning.worlds import Dataset, build

_SECONDS = 2.0  # duration of the timed steps


@dataclass(frozen=True)
class Speed:
    """Training speed measured on this machine.

    Attributes:
      compile_seconds: time to compile the training step. Reading the step from the compilation
        cache takes less time.
      step_seconds: time of one training step.
      evaluation_seconds: time of one evaluation of all splits.
      device_bytes: memory on one device for arguments, results and temporaries of the compiled
        training loop. None if the backend does not report its memory.
      peak: FLOP/s of large matrix products on one device, measured.
    """

    compile_seconds: float
    step_seconds: float
    evaluation_seconds: float
    device_bytes: int | None
    peak: float


@dataclass(frozen=True)
class CostEstimate:
    """Cost of training a configuration.

    Attributes:
      steps: number of training steps.
      evaluations: number of evaluations.
      checkpoints: number of checkpoints.
      rows: number of training rows.
      devices: number of devices.
      cost: FLOPs and memory of one step.
      rows_bytes: memory of the training rows on every device.
      speed: measured speed; None if the speed was not measured.
    """

    steps: int
    evaluations: int
    checkpoints: int
    rows: int
    devices: int
    cost: StepCost
    rows_bytes: int
    speed: Speed | None

    @property
    def checkpoint_bytes(self) -> int:
        """Upper bound of the disk space in bytes after training.

        The bound includes all checkpoints and the last two full states. Compression by Orbax is not
        taken into account, because trained parameters compress little.
        """
        return self.checkpoints * 4 * self.cost.parameters + 2 * self.cost.state_bytes

    @property
    def seconds(self) -> float | None:
        """Estimated duration of the run in seconds; None if the speed was not measured.

        The estimate excludes saving, because checkpoints are saved in the background.
        """
        if self.speed is None:
            return None
        steps = self.steps * self.speed.step_seconds
        return self.speed.compile_seconds + steps + self.evaluations * self.speed.evaluation_seconds

    def describe(self) -> str:
        """Return the estimate as a text table."""
        cost, speed = self.cost, self.speed
        lines = {
            "parameters": f"{cost.parameters:,}",
            "training rows": f"{self.rows:,}, {_bytes(self.rows_bytes)} on every device",
            "matrix products": f"{cost.step / 1e9:.3g} GFLOP per step",
            "update": f"at least {_bytes(cost.traffic_bytes)} moved per step",
            "state": f"{_bytes(cost.state_bytes)}: parameters and two moments, float32",
            "checkpoints": f"{self.checkpoints:,}; {_bytes(self.checkpoint_bytes)} on disk",
            "devices": f"{self.devices}",
        }
        if speed:
            rate = 1 / speed.step_seconds
            # The "devices" of a CPU are threads of one machine, so they share its peak.
            limit = speed.peak * (1 if jax.default_backend() == "cpu" else self.devices)
            memory = "unknown" if speed.device_bytes is None else _bytes(speed.device_bytes)
            lines |= {
                "device memory": f"{memory} in the compiled loop",
                "compiling": f"{speed.compile_seconds:.1f} s",
                "speed": f"{rate:,.3g} steps/s, measured; {cost.step * rate / limit:.0%} of "
                f"the measured peak of matrix products, {limit / 1e9:,.0f} GFLOP/s",
                "evaluations": f"{self.evaluations:,}, {speed.evaluation_seconds:.2g} s each",
                "time": f"about {duration(self.seconds or 0)} for {self.steps:,} steps",
            }
        width = max(map(len, lines))
        return "\n".join(f"{name:>{width}}: {value}" for name, value in lines.items())


def plan(config: ConfigDict, *, measure: bool = True) -> CostEstimate:
    """Estimate the cost of training a configuration on this machine. Nothing is written.

    Args:
      config: the configuration that would be passed to `train`.
      measure: also compile and time some steps and one evaluation. The measurement takes a few
        seconds, mainly for compilation.

    Raises:
      InputError: the configuration is not valid for training.
    """
    setup.check_config(config)
    dataset, settings = build(config.task), TrainingSettings.from_config(config)
    mesh, schedule = sharding.make_mesh(settings.mesh), settings.schedule
    model = setup.make_model(settings.model, dataset)
    rows = setup.training_rows(dataset, settings.early).table
    early = settings.early.resolve(model)
    n_early = rows.early.answers.shape[1] * len(early.layers) if rows.early and early else 0
    return CostEstimate(
        steps=schedule.horizon,
        evaluations=len(schedule.evaluations),
        checkpoints=len(schedule.checkpoints),
        rows=dataset.n_train,
        devices=mesh.size,
        cost=step_cost(
            model.spec, batch_size=settings.batch_size, **row_shape(dataset), n_early=n_early
        ),
        rows_bytes=sum(column.nbytes for column in jax.tree.leaves(rows)),
        speed=_measure(settings, dataset) if measure else None,
    )


def _measure(settings: TrainingSettings, dataset: Dataset) -> Speed:
    program = setup.make_program(settings, dataset)
    state = program.init(program.init_key)

    def arguments(count: int) -> tuple[Any, ...]:
        steps = sharding.put_scalar(count, program.whole)
        return state, program.rows, program.hyper, program.stream_key, steps

    began = time.perf_counter()
    compiled = program.advance.lower(*arguments(1)).compile()
    compile_seconds = time.perf_counter() - began

    def steps(count: int) -> float:
        nonlocal state
        began = time.perf_counter()
        state = jax.block_until_ready(compiled(*arguments(count)))
        return time.perf_counter() - began

    steps(1)
    count = max(1, round(_SECONDS / max(steps(2) / 2, 1e-6)))
    step_seconds = steps(count) / count
    jax.block_until_ready(program.evaluate(state.params))
    return Speed(
        compile_seconds=compile_seconds,
        step_seconds=step_seconds,
        evaluation_seconds=_seconds(lambda: program.evaluate(state.params)),
        device_bytes=_device_bytes(compiled),
        peak=matmul_peak(program.recipe.model.spec.dtype),
    )


def _seconds(launch: Callable[[], Any]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(launch())
    return time.perf_counter() - began


def _device_bytes(compiled: Any) -> int | None:
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return int(held + memory.temp_size_in_bytes - memory.alias_size_in_bytes)


def _bytes(count: int | float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


def duration(seconds: int | float) -> str:
    """Format a duration as seconds, minutes, or hours and minutes."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
