"""Overrides: replacement of values of a configuration, with checks of their types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from implicit_reasoning.config.fields import nearest_fields
from implicit_reasoning.config.messages import meant, raise_all
from implicit_reasoning.config.renamed import current_field
from implicit_reasoning.config.trees import flatten, with_tuples
from implicit_reasoning.config.values import parse_field
from implicit_reasoning.errors import InputError


def apply_overrides(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    """Return a locked copy of a configuration in which some values are replaced.

    A new value is text from a command line or a Python value from a sweep. It is converted to the
    type of the value that it replaces (the default):

    - int: an integer; `1e5`, `100_000` and `1000.0` are accepted, but not `0.5`.
    - float: a finite number; an int is accepted.
    - bool: a bool, or the text true, false, yes, no, 1 or 0. Python numbers are rejected.
    - str: a string.
    - tuple: `1,2,3` or `(1, 2)`. The elements must have the type of the elements of the default.
    - None: `none`, a Python literal, or any text.

    Args:
      config: the configuration, which is not modified.
      overrides: new values by the dotted name of a field. Old names of renamed fields are accepted.

    Returns:
      The copy. Fields that derive from other fields by `get_ref` are updated.

    Raises:
      InputError: one message lists all faults: unknown names (with the most similar field), names
        of groups, and values of the wrong type.
    """
    changed = with_tuples(config).lock()
    values, faults = parse_overrides(changed, overrides)
    raise_all(faults, "configuration override")
    with changed.ignore_type():  # `parse_overrides` has checked the types.
        for key, value in values.items():
            group, name = _owner(changed, key)
            group[name] = value
    return changed


def parse_overrides(
    config: ConfigDict, overrides: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Convert overrides to the values that `apply_overrides` sets.

    Args:
      config: the configuration, which is not modified.
      overrides: as for `apply_overrides`.

    Returns:
      The converted values by the dotted name of a field, and a message for each fault.
    """
    leaves = flatten(config)
    faults: list[str] = []
    values: dict[str, Any] = {}
    for name, given in overrides.items():
        key = current_field(name, leaves)
        if key in leaves:
            try:
                values[key] = parse_field(given, *_owner(config, key))
            except InputError as error:
                faults.append(f"{key} {error}")
        else:
            faults.append(_unknown(key, leaves))
    return values, faults


def _owner(config: ConfigDict, key: str) -> tuple[ConfigDict, str]:
    *groups, name = key.split(".")
    for group in groups:
        config = config[group]
    return config, name


def _unknown(key: str, leaves: Mapping[str, Any]) -> str:
    """Return a message that says why `key` is not a field: it is a group or does not exist."""
    inside = [leaf for leaf in leaves if leaf.startswith(f"{key}.")]
    if inside:
        return f"{key} is a group, not a field: set one of {', '.join(inside)}"
    return f"{key} is not a field{meant(nearest_fields(key, leaves))}"
