"""Reading the log of a run's starts and resumptions from `provenance.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from implicit_reasoning.errors import InputError
from implicit_reasoning.files import read_json


def read_starts(path: Path) -> list[dict[str, Any]]:
    """Return all entries of `provenance.json`, one per start; empty if the file is missing.

    Raises:
      InputError: the file is not a valid list of starts.
    """
    starts = read_json(path) if path.exists() else []
    if not isinstance(starts, list) or not all(
        isinstance(start, dict)
        and isinstance(start.get("step"), int)
        and isinstance(start.get("time"), int | float)
        for start in starts
    ):
        raise InputError(
            f"{path} is not a list of the starts of the run; remove this file to continue (only "
            "the history of the starts is lost)"
        )
    return starts
