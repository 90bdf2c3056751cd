"""Helpers for the functions `sweep_<name>()` of configurations: grids, zips and random points.

Configurations import this module and must load quickly, so it imports few packages.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from implicit_reasoning import renames
from implicit_reasoning.errors import InputError
from implicit_reasoning.sweeps.space import Space

Overrides = Mapping[str, Any]
"""Values of fields, by the dotted key of the field."""


def grid(values: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Yield every combination of the values of all fields. The last field varies fastest.

    Args:
      values: the values of each field, by dotted name.
    """
    for chosen in itertools.product(*values.values()):
        yield dict(zip(values, chosen, strict=True))


def zipped(values: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Yield the first values of all fields together, then the second values, and so on.

    Args:
      values: the values of each field, by dotted name.

    Raises:
      InputError: the fields have different numbers of values.
    """
    if len({len(each) for each in values.values()}) > 1:
        counts = ", ".join(f"{key}: {len(each)}" for key, each in values.items())
        raise InputError(f"zipped() needs the same number of values for every field, got {counts}")
    for chosen in zip(*values.values(), strict=True):
        yield dict(zip(values, chosen, strict=True))


def times(*parts: Iterable[Overrides]) -> Iterator[dict[str, Any]]:
    """Yield every combination of one trial from each part, merged into one trial.

    Args:
      *parts: sets of trials, such as the result of `zipped` and a `grid` of seeds.

    Raises:
      InputError: two parts set the same field.
    """
    for chosen in itertools.product(*map(list, parts)):
        merged: dict[str, Any] = {}
        for overrides in chosen:
            if twice := merged.keys() & overrides.keys():
                raise InputError(
                    f"two parts of times() set {', '.join(sorted(twice))}; set every "
                    "field in only one part"
                )
            merged |= overrides
        yield merged


def random_search(space: Space, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield `count` random points of a search space.

    The points depend on the space and the seed only. A larger `count` adds points at the end and
    does not change the earlier points.

    Args:
      space: the distribution of each field, by dotted name.
      count: number of points.
      seed: random seed.
    """
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield {key: distribution.sample(rng) for key, distribution in space.items()}


__getattr__ = renames.old_names(__name__, {"at_random": "random_search"})
