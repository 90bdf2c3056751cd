"""Check that the labels and options of an instrument can be saved.

Results are netCDF files with JSON attributes. The checks run before the measurement. Without the
checks, an unsuitable label would cause an error only after the measurement, or would have a
different value when the file is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np

from implicit_reasoning.errors import InputError


def check_labels(
    instrument: str, coords: Mapping[str, Any], dims: Iterable[str], groups: Any
) -> None:
    """Check that the labels of all dimensions can be saved in a result.

    A file stores the labels of a dimension as one array. The labels of one dimension must therefore
    be all strings, all numbers or all bools. Duplicate labels are allowed.

    Args:
      instrument: name of the instrument.
      coords: for each dimension, a sequence or a one-dimensional array of labels.
      dims: names of the dimensions of the outputs. Labels of all other dimensions are ignored.
      groups: names of the groups.

    Raises:
      InputError: a dimension is called "step", or a label cannot be saved.
    """
    used = sorted(set(dims))
    if "step" in used:
        raise InputError(
            f"instrument {instrument!r} declares the dimension 'step', but this name is reserved "
            "for training steps; rename the dimension"
        )
    for dim, labels in [(dim, coords[dim]) for dim in used if dim in coords] + [("group", groups)]:
        if fault := _fault(labels):
            raise InputError(
                f"instrument {instrument!r}: the labels of dimension {dim!r} {fault}; the labels "
                "of a dimension must be all strings, all numbers or all bools"
            )


def plain(value: Any, what: str) -> Any:
    """Convert a value to plain JSON types, such as float and list.

    Numpy numbers become Python numbers. Tuples and numpy arrays become lists.

    Args:
      value: the value, such as an instrument's options.
      what: name of the value in the error message, in the plural, such as "the options".

    Raises:
      InputError: JSON cannot represent a part of the value.
    """
    try:
        return json.loads(json.dumps(value, default=_of_numpy), parse_constant=_constant)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{what} are {value!r}, but a part of this value cannot be saved ({error}); use "
            "only strings, numbers, bools, None, lists, and dicts with strings as keys"
        ) from None


def _fault(labels: Any) -> str:
    """Describe what is wrong with the labels of one dimension; return "" if nothing is wrong."""
    if isinstance(labels, str | bytes):
        return f"are the string {labels!r}, not a sequence of labels"
    listed = list(labels)
    kinds = {kind: label for label in reversed(listed) for kind in [_kind(label)]}
    for kind, label in kinds.items():
        if kind not in ("string", "number", "bool"):
            return f"include {label!r}, which is {kind}"
    if len(kinds) > 1:
        shown = " and ".join(repr(label) for label in reversed(list(kinds.values())))
        return f"have different types, such as {shown}"
    if "string" in kinds and (bad := [label for label in listed if not _keepable(label)]):
        return f"include {bad[0]!r}, a string that files cannot store"
    if any(label != label for label in listed):
        return "include nan, which is not equal to itself"
    array = np.asarray(listed)
    if array.dtype.kind not in "biufU" or array.tolist() != listed:
        return f"include numbers that no single number type can represent: {listed[:5]!r}"
    return ""


def _kind(label: Any) -> str:
    if isinstance(label, str):
        return "string"
    if isinstance(label, bool | np.bool_):
        return "bool"
    if isinstance(label, Integral | Real):
        return "number"
    return f"a {type(label).__name__}"


def _keepable(label: str) -> bool:
    try:
        label.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return "\0" not in label


def _of_numpy(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"JSON cannot represent the type {type(value).__name__}")


def _constant(text: str) -> float:
    if text == "NaN":
        raise ValueError("nan is not allowed, because nan is not equal to itself")
    return float(text.replace("Infinity", "inf"))
