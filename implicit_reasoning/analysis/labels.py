"""What an instrument says about itself, checked before anything is measured: can it be kept?

Results are netCDF files with JSON attributes. A label or an option that these cannot hold would
only be found out when the measurement is over, or come back as something else.
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
    """Raise an `InputError` for labels that a result cannot have.

    The labels of a dimension must be all texts, all numbers or all truth values: a file has one
    type for all of them. A label may stand there twice.

    Args:
      instrument: its name.
      coords: labels by dimension: a sequence or an array of one dimension.
      dims: the dimensions that outputs have; labels of others are not kept.
      groups: names of the groups.
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
    """A value as JSON gives it back; numpy's numbers and arrays become numbers and lists.

    Args:
      value: such as an instrument's options.
      what: it is, for the message.

    Raises:
      InputError: JSON cannot hold it.
    """
    try:
        return json.loads(json.dumps(value, default=_of_numpy), parse_constant=_constant)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{what} are {value!r}, which JSON cannot hold ({error}); use texts, numbers, truth "
            "values, None, lists, and dicts with texts as keys"
        ) from None


def _fault(labels: Any) -> str:
    """What is wrong with the labels of one dimension, or nothing."""
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
        return f"have {bad[0]!r}, a text that files cannot hold"
    if any(label != label for label in listed):
        return "have nan, which is not equal to itself"
    array = np.asarray(listed)
    if array.dtype.kind not in "biufU" or array.tolist() != listed:
        return f"have numbers that no single type holds: {listed[:5]!r}"
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
