"""Trials in bulk, for the `sweep_<name>()` of a configuration: grids, zips, random points.

Light to import, as configurations are.
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
"""Dotted key of a field to its value."""


def grid(values: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination of some values of each field; the last field varies fastest."""
    for chosen in itertools.product(*values.values()):
        yield dict(zip(values, chosen, strict=True))


def zipped(values: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """The first value of each field together, then the second of each, ...; equally many of all."""
    if len({len(each) for each in values.values()}) > 1:
        counts = ", ".join(f"{key}: {len(each)}" for key, each in values.items())
        raise InputError(f"zipped() needs equally many values of every field, not {counts}")
    for chosen in zip(*values.values(), strict=True):
        yield dict(zip(values, chosen, strict=True))


def times(*parts: Iterable[Overrides]) -> Iterator[dict[str, Any]]:
    """Every combination of trials of several sweeps, such as of a `zipped` one and of seeds."""
    for chosen in itertools.product(*map(list, parts)):
        merged: dict[str, Any] = {}
        for overrides in chosen:
            if twice := merged.keys() & overrides.keys():
                raise InputError(f"times() sets {', '.join(sorted(twice))} twice in one trial")
            merged |= overrides
        yield merged


def random_search(space: Space, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """`count` points of a space, the same for the same seed; a longer search begins with them."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield {key: distribution.sample(rng) for key, distribution in space.items()}


__getattr__ = renames.old_names(__name__, {"at_random": "random_search"})
