"""Some leaves of a configuration replaced, each checked by the type of its default."""

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
    """Return a locked copy of `config` with some leaves replaced, checked by their default's type.

    Args:
      config: the configuration; it is not changed.
      overrides: dotted leaf key (or the name that it had) to value: text from a command line, or a
        Python value from a sweep.
        int: also `1e5`, `100_000` and `1000.0`, but not `0.5`. float: also ints; must be finite.
        bool: true/false/yes/no/1/0 (and no number is a bool). tuple: `1,2,3` or `(1, 2)`, with
        elements of its default's type. A field whose default is None: `none`, a Python literal,
        or else plain text.

    Returns:
      The copy. Fields derived by `get_ref` follow the fields they derive from.

    Raises:
      InputError: one message with all faults: unknown keys (with the nearest), groups, wrong types.
    """
    changed = with_tuples(config).lock()
    values, faults = parse_overrides(changed, overrides)
    raise_all(faults, "configuration override")
    with changed.ignore_type():  # the types were checked above, by our rules
        for key, value in values.items():
            group, name = _owner(changed, key)
            group[name] = value
    return changed


def parse_overrides(
    config: ConfigDict, overrides: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """What `apply_overrides` would set: key to value of the field's type, and all faults."""
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
    """Say why `key` is no leaf: it names a group, or nothing."""
    inside = [leaf for leaf in leaves if leaf.startswith(f"{key}.")]
    if inside:
        return f"{key} is a group, not a field: set one of {', '.join(inside)}"
    return f"{key} is not a field{meant(nearest_fields(key, leaves))}"
