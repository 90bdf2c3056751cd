"""Checks of a configuration against a table of fields; defaults and documentation of fields.

A table of fields is defined in the package that reads these fields. The module
`implicit_reasoning.field` lists the tables.
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
    """Return a message for each missing, unknown or invalid field of a configuration.

    Args:
      values: values by dotted name, as returned by `flatten`.
      schema: the known fields by dotted name.
      others: groups (such as `task`) whose unknown fields are accepted.
    """
    needed = [key for key, field in schema.items() if field.required]
    faults = [f"{key} is missing" for key in needed if key not in values]
    for key in values:
        if key not in schema and key.partition(".")[0] not in others:
            faults.append(f"{key} is not a field{meant(nearest_fields(key, schema))}")
    return faults + value_faults(values, schema)


def value_faults(values: Mapping[str, Any], schema: Mapping[str, Field]) -> list[str]:
    """Return a message for each value that has the wrong type or is out of bounds.

    Args:
      values: values by dotted name. Names that are not in `schema` are ignored.
      schema: the known fields by dotted name.
    """
    found = {key: schema[key].fault(value) for key, value in values.items() if key in schema}
    return [f"{key} is {values[key]!r}; {fault}" for key, fault in found.items() if fault]


def nearest_fields(key: str, names: Mapping[str, Any]) -> list[str]:
    """Return the known fields that a user may mean by an unknown dotted name.

    If known fields have the same last part as `key`, these fields are returned. Otherwise, the
    fields with the most similar names are returned.

    Args:
      key: the unknown dotted name.
      names: the known fields by dotted name.
    """
    # The most common mistake is a missing or wrong group, so an equal last part has priority over
    # the similarity of whole names.
    tail = key.rpartition(".")[2]
    tails = {name.rpartition(".")[2] for name in names}
    namesakes = [name for name in names if name.rpartition(".")[2] == tail]
    whole = difflib.get_close_matches(key, names, n=1)
    part = difflib.get_close_matches(tail, tails, n=1)
    return namesakes or whole or [name for name in names if name.rpartition(".")[2] in part]


def make_config(schema: Mapping[str, Field]) -> ConfigDict:
    """Create an unlocked configuration with the default values of all fields of a table."""
    config = ConfigDict()
    for key, field in schema.items():
        _set(config, key, field.default)
    return config


def complete(config: ConfigDict, schema: Mapping[str, Field]) -> ConfigDict:
    """Return a locked copy of a configuration in which missing fields are filled in.

    A missing field gets the value `Field.before`, which reproduces the behavior of versions
    without this field. Missing required fields are not filled in; `schema_faults` reports them.
    """
    config = config.copy_and_resolve_references()
    there = flatten(config)
    with config.unlocked():
        for key, field in schema.items():
            if key not in there and not field.required:
                _set(config, key, field.before)
    return config.lock()


def _set(config: ConfigDict, key: str, value: Any) -> None:
    """Set a field by its dotted name, and create missing groups."""
    *groups, name = key.split(".")
    group = config
    for each in groups:
        if each not in group:
            group[each] = ConfigDict()
        group = group[each]
        if not isinstance(group, ConfigDict):
            return  # `schema_faults` reports that a field has the name of a group.
    group[name] = value


def documentation(config: ConfigDict, schema: Mapping[str, Field]) -> dict[str, str]:
    """Return the descriptions of the fields of a configuration, by dotted name.

    Fields that are not in `schema` are left out.
    """
    return {key: schema[key].doc for key in flatten(config) if key in schema}
