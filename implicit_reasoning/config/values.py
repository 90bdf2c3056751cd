"""Conversion of command-line text and of Python values to the type of a field's default value."""

from __future__ import annotations

import ast
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from implicit_reasoning.config.lists import split_list
from implicit_reasoning.errors import InputError

_BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_NONES = ("none", "null")
# A value of each type, for flags without a default and for empty placeholders of ml_collections.
_EXAMPLES: dict[type, Any] = {bool: False, int: 0, float: 0.0, str: "", tuple: (), list: ()}


def parse_field(given: Any, group: ConfigDict, name: str) -> Any:
    """Convert a value to the type of the default `group[name]`.

    If the default is an empty placeholder of ml_collections, such as `placeholder(int)`, the value
    may also be none.

    Args:
      given: text or a Python value.
      group: the group that contains the field.
      name: name of the field in the group.

    Raises:
      InputError: the conversion is not possible.
    """
    default, declared = group[name], group.get_type(name)
    if default is None and declared in _EXAMPLES:
        return None if _is_none(given) else parse(given, _EXAMPLES[declared])
    return parse(given, default)


def example(like: Any) -> Any:
    """Return a value with the type of a flag or a field.

    Args:
      like: a default value, which is returned, or a type such as `int`.
    """
    return _EXAMPLES[like] if isinstance(like, type) else as_leaf(like)


def parse(given: Any, like: Any) -> Any:
    """Convert text or a Python value to the type of `like`.

    Args:
      given: text or a Python value.
      like: a value of the wanted type; None for any type.

    Raises:
      InputError: the conversion is not possible.
    """
    if isinstance(given, np.generic):
        given = given.item()
    if like is None:
        return None if _is_none(given) else _literal(given)
    parser = _PARSERS[type(like)]
    return parser(given, like) if parser is _tuple else parser(given)


def _is_none(given: Any) -> bool:
    return given is None or (isinstance(given, str) and given.strip().lower() in _NONES)


def _bool(given: Any) -> bool:
    if isinstance(given, bool):
        return given
    if isinstance(given, str) and given.strip().lower() in _BOOLS:
        return _BOOLS[given.strip().lower()]
    raise _wants("true or false", given)


def _int(given: Any) -> int:
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    if isinstance(given, str):
        try:
            return int(given)
        except ValueError:
            pass
    try:
        number = _float(given)
    except InputError:
        raise _wants("an int", given) from None
    # Above 2**53, floats do not represent every int, so such numbers must be written as digits.
    if number.is_integer() and abs(number) <= 2**53:
        return int(number)
    raise _wants("an int", given)


def _float(given: Any) -> float:
    if isinstance(given, (int, float, str)) and not isinstance(given, bool):
        try:
            number = float(given)
        except (ValueError, OverflowError):
            raise _wants("a float", given) from None
        if math.isfinite(number):
            return number
    raise _wants("a finite float", given)


def _str(given: Any) -> str:
    if isinstance(given, str):
        return given
    raise _wants("a string", given)


def _tuple(given: Any, like: tuple[Any, ...]) -> tuple[Any, ...]:
    """Convert each element to the type of the elements of the default, `like`.

    If `like` has ints and floats, elements become floats. If `like` is empty or has other
    combinations of types, elements may be any literal.
    """
    kinds = {type(element) for element in like}
    element = like[0] if len(kinds) == 1 else 0.0 if kinds == {int, float} else None
    if isinstance(given, str):
        given = _split(given)
    if not isinstance(given, (tuple, list)):
        raise _wants("a tuple such as 1,2,3", given)
    try:
        return tuple(parse(item, element) for item in given)
    except InputError as error:
        raise InputError(f"must be a tuple in which each element {error}") from None


def _split(text: str) -> Sequence[Any]:
    """Split `(1, 2)`, `[1, 2]`, `("a", "b")` or the syntax of `split_list` into elements."""
    text = text.strip()
    if text[:1] + text[-1:] in ("()", "[]"):
        literal = _literal_or_text(text)
        if isinstance(literal, (tuple, list)):
            return literal
        text = text[1:-1].strip()
    return split_list(text)


def _literal(given: Any) -> Any:
    """Convert text to the value of a Python literal, true or false; return all other text as it is.

    Raises:
      InputError: a configuration cannot contain the value.
    """
    if isinstance(given, str):
        if given.strip().lower() in ("true", "false"):
            return _bool(given)
        given = _literal_or_text(given)
    try:
        return as_leaf(given)
    except InputError:
        raise _wants(
            "none, true, false, a finite number, a string or a tuple of these", given
        ) from None


def _literal_or_text(text: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # "\d" is ordinary text here, not code
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def as_leaf(value: Any) -> Any:
    """Return `value` with lists converted to tuples.

    Raises:
      InputError: the value is not allowed in a configuration, such as NaN or a dict.
    """
    if isinstance(value, (tuple, list)):
        return tuple(as_leaf(item) for item in value)
    finite = not isinstance(value, float) or math.isfinite(value)
    if value is None or (type(value) in (bool, int, float, str) and finite):
        return value
    raise InputError(
        f"{value!r} is not allowed; a value must be None, a bool, an int, a finite float, a "
        "str or a tuple of these"
    )


def _wants(wanted: str, given: Any) -> InputError:
    text = repr(given)
    return InputError(f"must be {wanted}, got {text if len(text) <= 80 else text[:77] + '...'}")


_PARSERS: dict[type, Callable[..., Any]] = {
    bool: _bool,
    int: _int,
    float: _float,
    str: _str,
    tuple: _tuple,
}
