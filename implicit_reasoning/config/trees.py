"""Configurations as trees: flattening, comparison, and storage as JSON."""

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
    """Placeholder for the value of a key that one of two configurations does not have."""

    def __repr__(self) -> str:
        return "(absent)"


ABSENT = Absent()
"""The instance of `Absent` that comparisons use."""

_FILE_IMPORT = re.compile(r"[^/\\]+\.py:[^/\\:]+$")


class Change(NamedTuple):
    """A field that differs between two configurations; `ABSENT` marks a side without the field."""

    key: str
    old: Any
    new: Any


def flatten(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """Return leaves by dotted key, with references resolved; empty groups are omitted.

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
    """Return nested dicts for `files.write_json`, with references resolved and tuples as lists."""
    return {
        name: to_json(value) if isinstance(value, ConfigDict) else _to_lists(value)
        for name, value in with_tuples(config).items()
    }


def from_json(value: Any) -> ConfigDict:
    """Return the locked configuration that `to_json` wrote; references are replaced by values.

    Raises:
      InputError: `value` is not the JSON form of a configuration.
    """
    if not isinstance(value, dict):
        raise InputError(
            f"a stored configuration must be a JSON object, got a {type(value).__name__}"
        )
    try:
        config = ConfigDict(value)
    except ValueError as error:  # a name contains a dot
        raise InputError(f"not a stored configuration: {error}") from None
    return with_tuples(config).lock()


def changed_keys(
    old: ConfigDict,
    new: ConfigDict,
    ignore: Sequence[str] = ("writers", "profile", "mesh", "distributed"),
) -> list[Change]:
    """Return the leaves that differ, sorted by key, without the fields or groups in `ignore`.

    The default of `ignore` has the fields that may change when a run is restarted. Values that name
    the same object in a file of the same name count as equal, see `same_import`.
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
    """Return whether two values name the same object of the same file, `path/to/file.py:name`.

    Folders are not compared, so that a project can be moved. The path may be absolute, relative, or
    contain a link.
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
    """Return a deep copy with lists converted to tuples and references kept.

    Raises:
      InputError: some leaves are invalid; the message lists all of them.
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
