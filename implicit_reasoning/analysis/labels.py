"""Check that the labels and options of an instrument can be saved.

Results are netCDF files with JSON attributes. The checks run before anything is measured. Without
the checks, a label or option that a file cannot hold would raise an error after the measurement, or
would have a different value when the file is loaded.
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
    """Check that the labels of the dimensions can be saved in a result.

    The labels of one dimension must be all strings, all numbers or all bools, because a file stores
    them as one array with one type. Duplicate labels are allowed.

    Args:
      instrument: name of the instrument.
      coords: for each dimension, a sequence or a one-dimensional array of labels.
      dims: dimensions of the outputs. Only the labels of these dimensions are saved and checked.
      groups: names of the groups.

    Raises:
      InputError: a dimension is called "step", or a label cannot be saved.
    """
    used = sorted(set(dims))
    if "step" in used:
        raise InputError(
            f"instrument {instrument!r} declares the dimension 'step', which every result has; "
            "choose another name"
        )
    for dim, labels in [(dim, coords[dim]) for dim in used if dim in coords] + [("group", groups)]:
        if fault := _fault(labels):
            raise InputError(
                f"instrument {instrument!r}: the labels of dimension {dim!r} {fault}; they must be "
                "all texts, all numbers or all truth values"
            )


def plain(value: Any, what: str) -> Any:
    """Convert a value to the form that it has after it is written to JSON and read again.

    Numpy numbers become Python numbers, and numpy arrays become lists.

    Args:
      value: the value, such as an instrument's options.
      what: name of the value for the error message.

    Raises:
      InputError: JSON cannot represent the value.
    """
    try:
        return json.loads(json.dumps(value, default=_of_numpy), parse_constant=_constant)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{what} are {value!r}, which JSON cannot represent ({error}); use texts, numbers, "
            "truth values, None, lists, and dicts with texts as keys"
        ) from None


def _fault(labels: Any) -> str:
    """Describe what is wrong with the labels of one dimension; return "" if nothing is wrong."""
    if isinstance(labels, str | bytes):
        return f"are the single text {labels!r}, not a sequence"
    listed = list(labels)
    kinds = {kind: label for label in reversed(listed) for kind in [_kind(label)]}
    for kind, label in kinds.items():
        if kind not in ("text", "number", "truth value"):
            return f"have {label!r}, {kind}"
    if len(kinds) > 1:
        shown = " and ".join(repr(label) for label in reversed(list(kinds.values())))
        return f"have different types, such as {shown}"
    if "text" in kinds and (bad := [label for label in listed if not _keepable(label)]):
        return f"have {bad[0]!r}, a text that files cannot store"
    if any(label != label for label in listed):
        return "have nan, which is not equal to itself"
    array = np.asarray(listed)
    if array.dtype.kind not in "biufU" or array.tolist() != listed:
        return f"have numbers that no single type can represent: {listed[:5]!r}"
    return ""


def _kind(label: Any) -> str:
    if isinstance(label, str):
        return "text"
    if isinstance(label, bool | np.bool_):
        return "truth value"
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
    raise TypeError(f"a {type(value).__name__}")


def _constant(text: str) -> float:
    if text == "NaN":
        raise ValueError("nan, which is not equal to itself")
    return float(text.replace("Infinity", "inf"))
