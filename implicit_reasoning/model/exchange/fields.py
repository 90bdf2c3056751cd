"""Checks of config files that were written by other packages.

A module that reads a format passes three lists of fields: translated fields, fields that do not
change the computation, and fields with a limited set of supported values. A field outside these
lists is accepted only if its value is null, false or empty, which means that a feature is off.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any, get_args

from implicit_reasoning.errors import InputError


def check_config(
    config: Any,
    where: str | os.PathLike[str],
    *,
    what: str = "model",
    numbers: Sequence[str] = (),
    optional: Mapping[str, Any] = {},
    harmless: Collection[str] = (),
    only: Mapping[str, Sequence[Any]] = {},
) -> None:
    """Check that this package supports all fields and values of a config.

    Args:
      config: the parsed content of the file.
      where: path of the file, for error messages.
      what: kind of the described object, for error messages.
      numbers: names of the required fields. The values must be integers.
      optional: dict from names of optional fields to their types.
      harmless: names of fields that do not change the computation.
      only: dict from names of optional fields to their supported values.

    Raises:
      InputError: the config is not a dict, a required field is missing, a value has the wrong type,
        or a field or value is not supported.
    """
    if not isinstance(config, dict):
        raise InputError(
            f"{where} is not a {what} config, because it contains a JSON {type(config).__name__}; "
            "it must contain a JSON object"
        )
    faults = [name for name in numbers if not _is(config.get(name), int)]
    if faults:
        raise InputError(
            f"{where} is not a {what} config, because these fields are missing or not integers: "
            f"{', '.join(faults)}"
        )
    faults = [
        f"{name} = {config[name]!r} (must be {getattr(kind, '__name__', kind)})"
        for name, kind in optional.items()
        if name in config and not _is(config[name], kind)
    ]
    if faults:
        raise InputError(f"{where} contains fields of the wrong type: {', '.join(faults)}")
    other = [
        f"{name} = {config[name]!r} (supported: {' or '.join(map(repr, allowed))})"
        for name, allowed in only.items()
        if name in config and config[name] not in tuple(allowed)
    ]
    known = {*numbers, *optional, *harmless, *only}
    other += [
        f"{name} = {value!r} (unknown field)"
        for name, value in config.items()
        if name not in known and not _off(value)
    ]
    if other:
        raise InputError(f"{where} describes a {what} that is not supported: {'; '.join(other)}")


def _is(value: Any, kind: Any) -> bool:
    """Return whether a value has the type `kind`, such as `int` or `float | None`.

    Unlike in Python, a bool does not count as an int.
    """
    if isinstance(value, bool):
        return bool in (get_args(kind) or (kind,))
    return isinstance(value, kind)


def _off(value: Any) -> bool:
    return value is None or value is False or value in ({}, [], "")
