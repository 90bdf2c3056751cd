"""Configurations as trees: flattened, compared, stored as JSON and read back equal."""

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
    """The value of a key that one of two configurations does not have."""

    def __repr__(self) -> str:
        return "(absent)"


ABSENT = Absent()
"""The value of a field that one of two configurations does not have."""

_FILE_IMPORT = re.compile(r"[^/\\]+\.py:[^/\\:]+$")


class Change(NamedTuple):
    """A field that differs between two configurations; a side without the key holds `ABSENT`."""

    key: str
    old: Any
    new: Any


def flatten(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted key to leaf, references resolved; a group with no fields leaves no trace.

    Also of what `to_json` returns, nested plain dicts.
    """
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict | dict):
            flat |= {f"{name}.{key}": leaf for key, leaf in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def to_json(config: ConfigDict) -> dict[str, Any]:
    """Return nested plain dicts for `files.write_json`: references resolved, tuples as lists."""
    return {
        name: to_json(value) if isinstance(value, ConfigDict) else _to_lists(value)
        for name, value in with_tuples(config).items()
    }


def from_json(value: Any) -> ConfigDict:
    """Return the locked configuration that `to_json` wrote, equal but for references."""
    if not isinstance(value, dict):
        raise InputError(
            f"a stored configuration is a JSON object, this is a {type(value).__name__}"
        )
    try:
        config = ConfigDict(value)
    except ValueError as error:  # a dot in a name
        raise InputError(f"not a stored configuration: {error}") from None
    return with_tuples(config).lock()


def changed_keys(
    old: ConfigDict,
    new: ConfigDict,
    ignore: Sequence[str] = ("writers", "profile", "mesh", "distributed"),
) -> list[Change]:
    """Return the leaves that differ, sorted by key, without the fields or groups in `ignore`.

    The default ignores what may change between two starts of a run without making it another run.
    Nor does it matter in which folder the file of an import path lies, see `same_import`.
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
    """Whether two values name the same object of the same file, `path/to/file.py:name`.

    The folder is not compared, so that a project may be moved: the file may have another absolute
    path, a relative one, or one through a link.
    """
    if not (isinstance(old, str) and isinstance(new, str)):
        return False
    one, other = _FILE_IMPORT.search(old), _FILE_IMPORT.search(new)
    return one is not None and other is not None and one[0] == other[0]


def listed(changes: Iterable[Change]) -> str:
    """Changes in words, for a message: `steps was 60, is 50; ...`."""
    return "; ".join(f"{key} was {old!r}, is {new!r}" for key, old, new in changes)


def _to_lists(value: Any) -> Any:
    return [_to_lists(item) for item in value] if isinstance(value, tuple) else value


def with_tuples(config: ConfigDict) -> ConfigDict:
    """Return a deep copy with tuples for lists, references kept; all bad leaves in one error."""
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
            # Assigning would cast the tuple back to the list's type, even under ignore_type().
            with config.unlocked():
                del config[name]
                config[name] = leaf
