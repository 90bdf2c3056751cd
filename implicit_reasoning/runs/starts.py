"""The starts of a run, from its `provenance.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from implicit_reasoning.errors import InputError
from implicit_reasoning.files import read_json


def read_starts(path: Path) -> list[dict[str, Any]]:
    """What `provenance.json` says of every start; nothing where there is no such file."""
    starts = read_json(path) if path.exists() else []
    if not isinstance(starts, list) or not all(
        isinstance(start, dict)
        and isinstance(start.get("step"), int)
        and isinstance(start.get("time"), int | float)
        for start in starts
    ):
        raise InputError(
            f"{path} is no list of starts; remove it to go on, only their history is lost"
        )
    return starts
