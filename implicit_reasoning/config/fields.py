"""A configuration against a table of fields: checked, filled with defaults, documented.

The tables are kept by the packages that read the fields, see `implicit_reasoning.field`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from implicit_reasoning.config.messages import meant
from implicit_reasoning.config.trees import flatten
from implicit_reasoning.field import Field


def schema_faults(
    values: Mapping[str, Any], schema: Mapping[str, Field], others: Sequence[str] = ()
) -> list[str]:
    """All that is wrong with the fields of a configuration, in words.

    Args:
      values: dotted name to value, as `flatten` makes them.
      schema: the fields that there are.
      others: groups (`task`) that may have further fields, whatever they are.
    """
    needed = [key for key, field in schema.items() if field.required]
    faults = [f"{key} is missing" for key in needed if key not in values]
    for key in values:
        if key not in schema and key.partition(".")[0] not in others:
            faults.append(f"{key} is not a field{meant(nearest_fields(key, schema))}")
    return faults + value_faults(values, schema)


def value_faults(values: Mapping[str, Any], schema: Mapping[str, Field]) -> list[str]:
    """The values that have the wrong type or are out of bounds, in words."""
    found = {key: schema[key].fault(value) for key, value in values.items() if key in schema}
    return [f"{key} is {values[key]!r}; {fault}" for key, fault in found.items() if fault]


def nearest_fields(key: str, names: Mapping[str, Any]) -> list[str]:
    """Fields that may have been meant by a name that is none: namesakes, or the most similar."""
    # A leaf's own name without its group is the commonest slip: it goes before overall likeness.
    tail = key.rpartition(".")[2]
    tails = {name.rpartition(".")[2] for name in names}
    namesakes = [name for name in names if name.rpartition(".")[2] == tail]
    whole = difflib.get_close_matches(key, names, n=1)
    part = difflib.get_close_matches(tail, tails, n=1)
    return namesakes or whole or [name for name in names if name.rpartition(".")[2] in part]


def make_config(schema: Mapping[str, Field]) -> ConfigDict:
    """A new configuration: every field of a table with its default. It is not locked."""
    config = ConfigDict()
    for key, field in schema.items():
        _set(config, key, field.default)
    return config


def complete(config: ConfigDict, schema: Mapping[str, Field]) -> ConfigDict:
    """A locked copy in which fields added after the file was written have their value of before.

    Fields that no file lacks are not filled in: `schema_faults` names them.
    """
    config = config.copy_and_resolve_references()
    there = flatten(config)
    with config.unlocked():
        for key, field in schema.items():
            if key not in there and not field.required:
                _set(config, key, field.before)
    return config.lock()


def _set(config: ConfigDict, key: str, value: Any) -> None:
    """Set a field by its dotted name; groups are made when missing."""
    *groups, name = key.split(".")
    group = config
    for each in groups:
        if each not in group:
            group[each] = ConfigDict()
        group = group[each]
        if not isinstance(group, ConfigDict):
            return  # a value in place of a group: `schema_faults` names it
    group[name] = value


def documentation(config: ConfigDict, schema: Mapping[str, Field]) -> dict[str, str]:
    """What the fields of a configuration mean, by dotted name, as far as the table has them."""
    return {key: schema[key].doc for key in flatten(config) if key in schema}
