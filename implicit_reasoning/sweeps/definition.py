"""Definition of a sweep: one base configuration, and the overrides of each trial.

A configuration file may define functions `sweep_<name>()` in addition to `get_config`. Such a
function yields the overrides of each trial, for example `{"optimizer.weight_decay": 0.3, "seed":
1}`. `grids.py` has helpers for these functions.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ml_collections import ConfigDict

from implicit_reasoning.config import (
    apply_overrides,
    choose,
    config_module,
    load_config,
    parse_overrides,
)
from implicit_reasoning.errors import InputError
from implicit_reasoning.runs import completed
from implicit_reasoning.sweeps.grids import Overrides
from implicit_reasoning.training import setup
from implicit_reasoning.training.population import VARIED

_LONGEST = 80  # maximum number of characters in a trial's name, which is also its folder's name
_FAULTS = 20  # maximum number of faults in one message


@dataclass(frozen=True)
class Sweep:
    """A base configuration and the overrides of all trials.

    Attributes:
      base: the configuration that all trials share; locked.
      trials: the overrides of each trial, by trial name. Each value has the type of the
        configuration field that it replaces.
    """

    base: ConfigDict
    trials: Mapping[str, Overrides]

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Fields that at least one trial sets, in order of appearance."""
        return tuple(dict.fromkeys(key for overrides in self.trials.values() for key in overrides))

    @cached_property
    def shapes(self) -> list[list[str]]:
        """Names of the trials, grouped by shape.

        Trials have the same shape if they differ only in the fields of `population.VARIED`. Trials
        of the same shape can be trained as one population.
        """
        found: dict[str, list[str]] = {}
        for trial, overrides in self.trials.items():
            found.setdefault(_shape(overrides), []).append(trial)
        return list(found.values())

    def config(self, trial: str) -> ConfigDict:
        """Return the configuration of a trial."""
        return apply_overrides(self.base, self.trials[trial])


def define(spec: str, name: str, overrides: Overrides | None = None) -> Sweep:
    """Load and validate a sweep that a configuration file defines as `sweep_<name>()`.

    Args:
      spec: the configuration, as for `load_config`.
      name: name of the sweep.
      overrides: overrides of the base configuration. They are applied before the overrides of the
        trials.

    Raises:
      InputError: there is no such sweep, or its trials have faults. The message lists up to 20
        faults.
    """
    base = apply_overrides(load_config(spec), overrides or {})
    function = choose(name, functions_with_prefix(spec, "sweep_"))
    found = function()
    if not isinstance(found, Iterable) or isinstance(found, Mapping | str):
        raise InputError(
            f"sweep_{name}() of {spec} returned a {type(found).__name__}; it must yield a dict of "
            "overrides for each trial"
        )
    return make_sweep(base, list(found))


def functions_with_prefix(spec: str, prefix: str) -> dict[str, Any]:
    """Return the functions of a configuration file whose names start with a prefix.

    Args:
      spec: the configuration, as for `load_config`.
      prefix: the prefix, such as "sweep_".

    Returns:
      The functions by name, without the prefix.

    Raises:
      InputError: no function name of the file starts with the prefix.
    """
    where = spec.partition(":")[0]
    found = inspect.getmembers(config_module(where), inspect.isfunction)
    names = {key.removeprefix(prefix): value for key, value in found if key.startswith(prefix)}
    if not names:
        raise InputError(
            f"{where} does not define a function {prefix}<name>(); define at least one"
        )
    return names


def make_sweep(base: ConfigDict, trials: Sequence[Any]) -> Sweep:
    """Create a sweep and validate its trials without building datasets or models.

    Args:
      base: the configuration that all trials share.
      trials: the overrides of each trial. An element that is not a dict is reported as a fault.

    Raises:
      InputError: there are no trials, or trials have faults: unknown fields, wrong types, values
        out of bounds, or duplicate trials. The message lists up to 20 faults.
    """
    if not trials:
        raise InputError("the sweep has no trials; yield the overrides of at least one trial")
    base = completed(base)
    faults: dict[str, list[int]] = {}
    parsed: dict[int, dict[str, Any]] = {}
    for number, overrides in enumerate(trials):
        values, found = _parse(base, overrides)
        if not found:
            parsed[number] = values
        for fault in found:
            faults.setdefault(fault, []).append(number)
    for number, found in _out_of_bounds(base, parsed).items():
        for fault in found:
            faults.setdefault(fault, []).append(number)
    named: dict[str, int] = {}
    for number, name in zip(parsed, names(list(parsed.values())), strict=True):
        if named.setdefault(name, number) != number:
            faults.setdefault(f"it is a duplicate of trial {named[name]}", []).append(number)
    if faults:
        listed = [f"trial {_numbers(where)}: {fault}" for fault, where in faults.items()]
        more = f"; and {len(listed) - _FAULTS} more" if len(listed) > _FAULTS else ""
        raise InputError(f"the sweep cannot be run: {'; '.join(listed[:_FAULTS])}{more}")
    return Sweep(base, {name: parsed[number] for name, number in named.items()})


def _parse(base: ConfigDict, overrides: Any) -> tuple[dict[str, Any], list[str]]:
    if not isinstance(overrides, Mapping):
        return {}, [f"it is a {type(overrides).__name__}, not a dict of overrides"]
    return parse_overrides(base, overrides)


def _out_of_bounds(base: ConfigDict, trials: Mapping[int, Overrides]) -> dict[int, list[str]]:
    """Return the faults of each trial, by trial number.

    The overrides of every trial are checked, and one full configuration of each shape.
    """
    faults: dict[int, list[str]] = {}
    by_shape: dict[str, list[int]] = {}
    for number, overrides in trials.items():
        if found := setup.field_faults(overrides):
            faults[number] = found
            continue
        by_shape.setdefault(_shape(overrides), []).append(number)
    for numbers in by_shape.values():
        try:
            setup.check_config(apply_overrides(base, trials[numbers[0]]))
        except InputError as error:
            faults |= {number: [str(error)] for number in numbers}
    return faults


def _shape(overrides: Overrides) -> str:
    fixed = {key: value for key, value in overrides.items() if key not in VARIED}
    return json.dumps(fixed, sort_keys=True)


def _numbers(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:5]))
    return shown if len(numbers) <= 5 else f"{shown} and {len(numbers) - 5} more"


def names(trials: Sequence[Overrides]) -> list[str]:
    """Name each trial after its overrides, such as `weight_decay=0.5,seed=1`."""
    short = short_keys(tuple(dict.fromkeys(key for overrides in trials for key in overrides)))
    return [_name({short[key]: value for key, value in trial.items()}) for trial in trials]


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Return a short name for each field: the last part of its dotted name.

    If several fields have the same last part, their short names are the full names.
    """
    last = [key.rpartition(".")[2] for key in keys]
    return {
        key: tail if last.count(tail) == 1 else key for key, tail in zip(keys, last, strict=True)
    }


def _name(overrides: Overrides) -> str:
    """Return a name that is a valid folder name on any file system."""
    if not overrides:
        return "base"
    text = ",".join(f"{key}={_plain(value)}" for key, value in overrides.items())
    safe = re.sub(r"[^A-Za-z0-9.,=_+-]", "_", text)
    if safe == text and len(text) <= _LONGEST:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{safe[: _LONGEST - 9]}-{digest}"


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(map(_plain, value))
    return str(value)
