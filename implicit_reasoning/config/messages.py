"""Parts of error messages: lists of all faults, and suggestions of similar valid names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from implicit_reasoning.errors import InputError


def did_you_mean(word: str, options: Iterable[str], mark: str = "") -> str:
    """Return "; did you mean NAME?" for the most similar valid name.

    The result is empty if no valid name is similar.

    Args:
      word: the unknown name.
      options: the valid names.
      mark: text to put before the suggested name, such as `--`.
    """
    return meant([f"{mark}{near}" for near in difflib.get_close_matches(word, list(options), n=1)])


def meant(near: Sequence[str]) -> str:
    """Return "; did you mean A or B?" for the first three of some names.

    The result is empty if there are no names.
    """
    return f"; did you mean {' or '.join(near[:3])}?" if near else ""


def raise_all(faults: Sequence[str], what: str) -> None:
    """Raise one `InputError` that lists all faults, if there are any.

    Args:
      faults: one message per fault.
      what: text at the beginning of the message, such as "configuration".
    """
    if len(faults) == 1:
        raise InputError(f"{what}: {faults[0]}")
    if faults:
        raise InputError(
            f"{what}: {len(faults)} faults" + "".join(f"\n  - {fault}" for fault in faults)
        )
