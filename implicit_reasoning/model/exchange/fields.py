"""Checks of a config file of another package: what is read, what is harmless, what is refused.

A reader translates a field, or knows that it cannot change what is computed, or refuses it by name.
A field that is none of these is accepted only where its value says that what it names is switched
off: null, false, or empty.
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
    """Raise an `InputError` where a config cannot be read as what it says.

    Args:
      config: what was in the file.
      where: the file.
      what: it describes.
      numbers: fields that must be there, and be whole numbers.
      optional: other fields that the caller reads, with the types they have where they are there.
      harmless: fields that cannot change what is computed, whatever their value.
      only: fields with the values that the caller computes. An absent field is accepted.
    """
    if not isinstance(config, dict):
        raise InputError(f"{where} is not a {what} config, but a JSON {type(config).__name__}")
    faults = [name for name in numbers if not _is(config.get(name), int)]
    if faults:
        raise InputError(
            f"{where} is not a {what} config: it needs the numbers {', '.join(faults)}"
        )
    faults = [
        f"{name} = {config[name]!r}"
        for name, kind in optional.items()
        if name in config and not _is(config[name], kind)
    ]
    if faults:
        raise InputError(f"{where} has fields of a wrong type: {', '.join(faults)}")
    other = [
        f"{name} = {config[name]!r} (only {' or '.join(map(repr, allowed))} is)"
        for name, allowed in only.items()
        if name in config and config[name] not in tuple(allowed)
    ]
    known = {*numbers, *optional, *harmless, *only}
    other += [
        f"{name} = {value!r} (this field is not known)"
        for name, value in config.items()
        if name not in known and not _off(value)
    ]
    if other:
        raise InputError(f"{where} describes a {what} that is not supported: {'; '.join(other)}")


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of a type, such as `int` or `float | None`; true is no number."""
    if isinstance(value, bool):
        return bool in (get_args(kind) or (kind,))
    return isinstance(value, kind)


def _off(value: Any) -> bool:
    return value is None or value is False or value in ({}, [], "")
