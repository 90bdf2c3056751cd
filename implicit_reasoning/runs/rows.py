"""The record of a run: its rows of metrics, and its starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from implicit_reasoning.errors import InputError
from implicit_reasoning.files import read_json


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a `metrics.jsonl`; a last line that a crash cut short is left out.

    Raises:
      InputError: another line is no row; it is named.
    """
    if not path.exists():
        return []
    # A bad byte spoils its own line only.
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [_row(path, number, line) for number, line in enumerate(lines[:-1], start=1)]


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    advice = "training goes on when this line and those after it are removed"
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        raise InputError(f"{path}, line {number}, is not JSON: {line[:60]!r}; {advice}") from None
    numbers = isinstance(row, dict) and (row.get("step"), row.get("time", 0.0))
    if not numbers or not isinstance(numbers[0], int) or not isinstance(numbers[1], int | float):
        raise InputError(f"{path}, line {number}, is no row: {line[:60]!r}; {advice}")
    return row


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
