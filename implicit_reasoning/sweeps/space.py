"""Search spaces of hyperparameters: ranges and choices, for random search and for Optuna."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from implicit_reasoning.errors import InputError


@runtime_checkable
class Distribution(Protocol):
    """Distribution of the values of one field."""

    def sample(self, rng: np.random.Generator) -> Any:
        """Return a random value."""
        ...

    def suggest(self, trial: Any, key: str) -> Any:
        """Return the value that an Optuna trial suggests.

        Args:
          trial: an `optuna.trial.Trial`.
          key: dotted name of the field.
        """
        ...


@dataclass(frozen=True)
class _Range:
    """A range from `low` to `high`; with `log`, the logarithm is distributed uniformly."""

    low: int | float
    high: int | float
    log: bool = False

    def __post_init__(self) -> None:
        least = 0 if self.log else -math.inf
        if not least < self.low <= self.high or not math.isfinite(self.high):
            wanted = "0 < low <= high" if self.log else "low <= high, with finite bounds"
            raise InputError(f"{self} is not a valid range; it must satisfy {wanted}")


class Real(_Range):
    """A float from `low` to `high`: uniform, or log-uniform with `log=True`."""

    def sample(self, rng: np.random.Generator) -> float:
        """Return a uniform or log-uniform value."""
        if self.log:
            return math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        return float(rng.uniform(self.low, self.high))

    def suggest(self, trial: Any, key: str) -> Any:
        """Return the value that an Optuna trial suggests for the field `key`."""
        return trial.suggest_float(key, self.low, self.high, log=self.log)


class Integer(_Range):
    """An int from `low` to `high`, inclusive: uniform, or about log-uniform with `log=True`."""

    def sample(self, rng: np.random.Generator) -> int:
        """Return a uniform value, or a rounded log-uniform value."""
        low, high = int(self.low), int(self.high)
        if self.log:
            edges = math.log(low - 0.5), math.log(high + 0.5)
            return min(high, max(low, round(math.exp(rng.uniform(*edges)))))
        return int(rng.integers(low, high + 1))

    def suggest(self, trial: Any, key: str) -> Any:
        """Return the value that an Optuna trial suggests for the field `key`."""
        return trial.suggest_int(key, int(self.low), int(self.high), log=self.log)


@dataclass(frozen=True)
class Choice:
    """One of several values without an order."""

    options: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.options:
            raise InputError("a Choice has no options; give at least one option")

    def sample(self, rng: np.random.Generator) -> Any:
        """Return one of the options with equal probability."""
        return self.options[int(rng.integers(len(self.options)))]

    def suggest(self, trial: Any, key: str) -> Any:
        """Return the value that an Optuna trial suggests for the field `key`."""
        return trial.suggest_categorical(key, self.options)


def described(distribution: Distribution) -> dict[str, Any]:
    """Describe a distribution as JSON: its class name, and its bounds or options.

    Equal distributions have equal descriptions.
    """
    about: dict[str, Any] = {"kind": type(distribution).__qualname__}
    if dataclasses.is_dataclass(distribution):
        about |= {f.name: getattr(distribution, f.name) for f in dataclasses.fields(distribution)}
    plain: dict[str, Any] = json.loads(json.dumps(about, default=lambda value: str(type(value))))
    return plain


Space = Mapping[str, Distribution]
"""The distribution of each field, by the dotted key of the field."""
