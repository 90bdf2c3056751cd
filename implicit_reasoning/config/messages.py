"""All faults in one error, with the nearest right word."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from implicit_reasoning.errors import InputError


def did_you_mean(word: str, options: Iterable[str], mark: str = "") -> str:
    """A question about the nearest option, if one is near; `mark` goes before it."""
    return meant([f"{mark}{near}" for near in difflib.get_close_matches(word, list(options), n=1)])


def meant(near: Sequence[str]) -> str:
    """A question about some words that may have been meant; nothing if there are none."""
    return f"; did you mean {' or '.join(near[:3])}?" if near else ""


def raise_all(faults: Sequence[str], what: str) -> None:
    """One `InputError` about all faults, if there are any."""
    if len(faults) == 1:
        raise InputError(f"{what}: {faults[0]}")
    if faults:
        raise InputError(
            f"{what}: {len(faults)} faults" + "".join(f"\n  - {fault}" for fault in faults)
        )
