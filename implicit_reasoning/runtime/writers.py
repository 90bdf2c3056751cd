"""Writers of metrics to `metrics.jsonl` and to event files for TensorBoard.

Rows are written in order and flushed one by one, so a crash can truncate only the last line. When a
run resumes at an earlier step, the rows after this step are removed, and TensorBoard's events are
rewritten from the remaining rows. The files then equal the files of an uninterrupted run.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from implicit_reasoning.errors import InputError
from implicit_reasoning.files import atomic_write
from implicit_reasoning.runtime import events

Row = dict[str, Any]

ACCURACY = "accuracy"
LOW, HIGH, CLUSTERS = "accuracy_low", "accuracy_high", "accuracy_clusters"
"""Names of columns: each name is followed by `/<split>`. Low and high bound a 95% interval."""

# Columns with times, which differ between two runs that are otherwise equal.
TIMINGS = ("time", "seconds", "steps_per_second", "compiles", "compile_seconds")


def read_metrics(path: Path) -> list[Row]:
    """Read the complete rows of a `metrics.jsonl`, and ignore a truncated last line.

    Raises:
      InputError: a complete line is not a metrics row. The message contains the line.
    """
    if not path.exists():
        return []
    # With `replace`, an invalid byte makes only its own line invalid.
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [_row(path, number, line) for number, line in enumerate(lines[:-1], start=1)]


def _row(path: Path, number: int, line: str) -> Row:
    advice = "remove this line and all later lines to continue training"
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        raise InputError(f"{path}, line {number}, is not JSON: {line[:60]!r}; {advice}") from None
    numbers = isinstance(row, dict) and (row.get("step"), row.get("time", 0.0))
    if not numbers or not isinstance(numbers[0], int) or not isinstance(numbers[1], int | float):
        raise InputError(
            f"{path}, line {number}, is not a metrics row with a numeric step and time: "
            f"{line[:60]!r}; {advice}"
        )
    return row


class MetricsFile:
    """A writer that appends rows to a `metrics.jsonl`.

    Attributes:
      rows: all rows of the file.
    """

    def __init__(self, path: Path, resumed_at: int):
        """Open the file. Remove a truncated last line and all rows after the step `resumed_at`."""
        self.rows = [row for row in read_metrics(path) if row["step"] <= resumed_at]
        with atomic_write(path) as file:
            file.writelines(json.dumps(row) + "\n" for row in self.rows)
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: Row) -> None:
        """Append one row. The row is flushed to the file when this method returns."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows.append(row)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """A writer of TensorBoard events for one run.

    It writes all metrics as scalars, charts that show all splits together, the hyperparameters, and
    the configuration as text. For each curve `accuracy/<split>`, it also writes a curve
    `best_accuracy/<split>` with the best value so far. TensorBoard's table of hyperparameters shows
    the last point of each curve, so the table contains the final and the best accuracy.
    """

    def __init__(
        self,
        folder: Path,
        *,
        config: Mapping[str, Any],
        hyperparameters: Mapping[str, Any],
        splits: Sequence[str],
        rows: Sequence[Row],
    ):
        """Remove old event files, and create a new event file with all rows so far.

        Args:
          folder: the folder of the event file.
          config: the configuration as JSON values, which is shown as text.
          hyperparameters: the columns of the table of hyperparameters. TensorBoard sorts the
            columns by name and shows the first five.
          splits: names of the splits to show in the charts.
          rows: the metrics rows so far, as in `MetricsFile.rows`.
        """
        for old in folder.glob("events.*"):
            old.unlink()
        begun = rows[0]["time"] if rows else time.time()
        name = f"events.out.tfevents.{int(begun):010d}.{time.time_ns()}"
        self._file = events.EventFile(folder / name, begun)
        quantities = {
            quantity: [f"{quantity}/{split}" for split in splits]
            for quantity in ("accuracy", "loss", "reciprocal_rank")
        }
        self._best: dict[str, float] = {}
        outcomes = [*quantities["accuracy"], *(f"best_{tag}" for tag in quantities["accuracy"])]
        for summary in (
            events.charts("all splits", quantities),
            events.text("config", f"```json\n{json.dumps(config, indent=2)}\n```"),
            events.hyperparameters(dict(hyperparameters), outcomes, begun),
        ):
            self._file.write(summary, when=begun)
        for row in rows:
            self.write(row)

    def write(self, row: Row) -> None:
        """Write the scalars of one row."""
        values = {tag: value for tag, value in row.items() if tag not in ("step", "time")}
        for tag in [tag for tag in values if tag.startswith("accuracy/")]:
            self._best[tag] = values[f"best_{tag}"] = max(self._best.get(tag, 0.0), values[tag])
        self._file.write(events.scalars(values), step=row["step"], when=row["time"])

    def close(self) -> None:
        """Close the file."""
        self._file.close()
