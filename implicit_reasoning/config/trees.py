"""Flattening of configurations, comparison of configurations, and storage as JSON."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from implicit_reasoning.config.messages import raise_all
from implicit_reasoning.config.values import as_leaf
from implicit_reasoning.errors import InputError


class Absent:
    """Placeholder for the value of a field that only one of two configurations has."""

    def __repr__(self) -> str:
        return "(absent)"


ABSENT = Absent()
"""The only instance of `Absent`."""

_FILE_IMPORT = re.compile(r"[^/\\]+\.py:[^/\\:]+$")


class Change(NamedTuple):
    """A field that differs between two configurations.

    Attributes:
      key: dotted name of the field.
      old: value in the first configuration, or `ABSENT` if the field is missing there.
      new: value in the second configuration, or `ABSENT` if the field is missing there.
    """

    key: str
    old: Any
    new: Any


def flatten(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of all fields by dotted name. References are resolved.

    Args:
      config: a configuration, or nested dicts as returned by `to_json`.
    """
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict | dict):
            flat |= {f"{name}.{key}": leaf for key, leaf in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def to_json(config: ConfigDict) -> dict[str, Any]:
    """Convert a configuration to nested dicts for `files.write_json`.

    References are resolved, and tuples become lists.
    """
    return {
        name: to_json(value) if isinstance(value, ConfigDict) else _to_lists(value)
        for name, value in with_tuples(config).items()
    }


def from_json(value: Any) -> ConfigDict:
    """Create a locked configuration from the result of `to_json`.

    References of the original configuration (`get_ref`) are values in the new configuration.

    Raises:
      InputError: `value` is not the JSON form of a configuration.
    """
    if not isinstance(value, dict):
        raise InputError(
            f"a stored configuration must be a JSON object, got a {type(value).__name__}"
        )
    try:
        config = ConfigDict(value)
    except ValueError as error:
        raise InputError(
            f"a stored configuration must not have names that contain a dot: {error}"
        ) from None
    return with_tuples(config).lock()


def changed_keys(
    old: ConfigDict,
    new: ConfigDict,
    ignore: Sequence[str] = ("writers", "profile", "mesh", "distributed"),
) -> list[Change]:
    """Return the fields that differ between two configurations, sorted by name.

    Two import paths that differ only in the folder count as equal (see `same_import`).

    Args:
      old: the first configuration.
      new: the second configuration.
      ignore: names of fields and groups that are not compared. The default is the groups that may
        change when a run is restarted.
    """
    before, after = flatten(with_tuples(old)), flatten(with_tuples(new))
    differ = (
        Change(key, before.get(key, ABSENT), after.get(key, ABSENT))
        for key in sorted({*before, *after})
    )
    return [
        change
        for change in differ
        if change.old != change.new
        and not same_import(change.old, change.new)
        and not any(change.key == name or change.key.startswith(f"{name}.") for name in ignore)
    ]


def same_import(old: Any, new: Any) -> bool:
    """Return whether two import paths `path/to/file.py:name` differ at most in their folders.

    Folders are not compared, because a project can be moved, and because a path can be written as
    absolute or relative.
    """
    if not (isinstance(old, str) and isinstance(new, str)):
        return False
    one, other = _FILE_IMPORT.search(old), _FILE_IMPORT.search(new)
    return one is not None and other is not None and one[0] == other[0]


def listed(changes: Iterable[Change]) -> str:
    """Describe changes for a message: `steps was 60, is 50; ...`."""
    return "; ".join(f"{key} was {old!r}, is {new!r}" for key, old, new in changes)


def _to_lists(value: Any) -> Any:
    return [_to_lists(item) for item in value] if isinstance(value, tuple) else value


def with_tuples(config: ConfigDict) -> ConfigDict:
    """Return a deep copy of a configuration in which lists are converted to tuples.

    Fields that follow other fields by `get_ref` also follow these fields in the copy.

    Raises:
      InputError: some values are not allowed in a configuration. The message lists all of them.
    """
    config = copy.deepcopy(config)
    faults: list[str] = []
    _freeze_lists(config, "", faults)
    raise_all(faults, "configuration")
    return config


def _freeze_lists(config: ConfigDict, prefix: str, faults: list[str]) -> None:
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            _freeze_lists(value, f"{prefix}{name}.", faults)
            continue
        try:
            leaf = as_leaf(value)
        except InputError as error:
            faults.append(f"{prefix}{name}: {error}")
            continue
        if isinstance(value, list):
            # Assignment would convert the tuple back to a list, even under ignore_type().
            with config.unlocked():
                del config[name]
                config[name] = leaf
