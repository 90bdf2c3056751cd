"""The smallest configuration that uses all features, for smoke tests of the experiments.

Scripts with a flag `--config` accept `--config=experiments/smoke.py`. Studies with a flag `--scale`
accept `--scale=smoke`. This scale is `pocket` with the changes below, which suit arms with the task
`composition`. The docstring of each script has a command after "Smoke test:", which is the smallest
case of the script. The tests in tests/experiments run these commands. A smoke test shows that a
script runs. Its numbers have no meaning.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from implicit_reasoning.config import apply_overrides, load_config
from implicit_reasoning.sweeps import grid

SMOKE = "smoke"
CHANGES = {
    "steps": 60,
    "batch_size": 16,
    "log_every": 7,
    "resume_every": 20,
    "task.n_entities": 12,
    "task.n_relations": 4,
    "task.out_degree": 3,
    "task.ood_fraction": 0.2,
    "task.phi": 1.5,
    "task.holdout": 0.2,
    "model.d_model": 8,
    "model.n_heads": 2,
    "model.d_mlp": 16,
    "model.n_layers": 2,
    "optimizer.warmup_steps": 5,
    "evaluation.every": 10,
    "checkpoints.every": 25,
}


def get_config() -> ConfigDict:
    """Return the smallest configuration of composition."""
    return at_scale("configs/composition.py", SMOKE)


def at_scale(file: str, scale: str) -> ConfigDict:
    """Load a file of `configs/` at a scale, including `smoke`."""
    name, changes = of_scale(scale)
    return apply_overrides(load_config(f"{file}:{name}"), changes)


def of_scale(scale: str) -> tuple[str, dict[str, Any]]:
    """Return a scale that the files of `configs/` have, and changes to apply to it."""
    return ("pocket", CHANGES) if scale == SMOKE else (scale, {})


def words(changes: dict[str, Any]) -> list[str]:
    """Return changes of a configuration as command-line arguments."""
    return [f"--config.{key}={value}" for key, value in changes.items()]


def sweep_seeds() -> Iterator[dict[str, Any]]:
    """Yield two initializations in one world."""
    yield from grid({"seed": range(2)})
