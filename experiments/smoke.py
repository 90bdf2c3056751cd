"""The smallest configuration that still does everything, for smoke tests of the scripts here.

A script that takes `--config` takes `--config=experiments/smoke.py`. A study that takes `--scale`
takes `--scale=smoke`: its arms at `pocket` with the same changes, which fit the arms whose task is
`composition`. Each script says in its docstring, after "Smoke test:", the command of its smallest
case; tests/experiments runs it. A smoke test shows that a script runs. Its numbers mean nothing.
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
    """Composition, as small as it gets."""
    return at_scale("configs/composition.py", SMOKE)


def at_scale(file: str, scale: str) -> ConfigDict:
    """A file of `configs/` at a scale, `smoke` among them."""
    name, changes = of_scale(scale)
    return apply_overrides(load_config(f"{file}:{name}"), changes)


def of_scale(scale: str) -> tuple[str, dict[str, Any]]:
    """The scale that the files of `configs/` know, and what is changed besides."""
    return ("pocket", CHANGES) if scale == SMOKE else (scale, {})


def words(changes: dict[str, Any]) -> list[str]:
    """Changes of a configuration as words of a command line."""
    return [f"--config.{key}={value}" for key, value in changes.items()]


def sweep_seeds() -> Iterator[dict[str, Any]]:
    """Two initialisations in one world."""
    yield from grid({"seed": range(2)})
