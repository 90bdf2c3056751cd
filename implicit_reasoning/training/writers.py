"""Where numbers go: `metrics.jsonl`, which is the record, and TensorBoard, which is a view of it.

Rows are written in order and flushed one by one, so a crash can cut only the last line. When a run
resumes at an earlier step the rows after it are dropped, and TensorBoard's events are written anew
from the rows that stay: both are then what an uninterrupted run would have written.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from implicit_reasoning.config import flatten, to_json
from implicit_reasoning.files import atomic_write, read_json
from implicit_reasoning.runs import Layout, read_metrics
from implicit_reasoning.runtime import events
from implicit_reasoning.training.intervals import CLUSTERS

Row = dict[str, Any]

# These differ between two equal runs.
TIMINGS = ("time", "seconds", "steps_per_second", "compiles", "compile_seconds")

# Not what an experiment is, and so no columns in TensorBoard's table of hyperparameters, which
# sorts by name and shows the first five.
_ROUTINE = (
    *("checkpoints", "distributed", "evaluation", "log_every", "mesh", "profile", "resume_every"),
    "writers",
)


class MetricsFile:
    """Appends rows to `metrics.jsonl`."""

    def __init__(self, path: Path, resumed_at: int):
        """Drop rows after step `resumed_at` (and a line cut short), keep the others."""
        self.rows = [row for row in read_metrics(path) if row["step"] <= resumed_at]
        with atomic_write(path) as file:
            file.writelines(json.dumps(row) + "\n" for row in self.rows)
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: Row) -> None:
        """Append one row; it is on disk when this returns."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows.append(row)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """Scalars, one chart with all splits, hyperparameters, the configuration as text.

    Beside each accuracy there is the best so far, `best_accuracy/<split>`: the table of
    hyperparameters shows the last point of a curve, so it has the final and the best one. In a
    sweep its columns are what the trials choose.
    """

    def __init__(self, files: Layout, config: ConfigDict, splits: list[str], rows: list[Row]):
        """Begin a fresh event file with everything there is so far."""
        for old in files.tensorboard.glob("events.*"):
            old.unlink()
        begun = rows[0]["time"] if rows else time.time()
        name = f"events.out.tfevents.{int(begun):010d}.{time.time_ns()}"
        self._file = events.EventFile(files.tensorboard / name, begun)
        quantities = {
            quantity: [f"{quantity}/{split}" for split in splits]
            for quantity in ("accuracy", "loss", "reciprocal_rank")
        }
        self._best: dict[str, float] = {}
        outcomes = [*quantities["accuracy"], *(f"best_{tag}" for tag in quantities["accuracy"])]
        for summary in (
            events.charts("all splits", quantities),
            events.text("config", f"```json\n{json.dumps(to_json(config), indent=2)}\n```"),
            events.hyperparameters(_chosen(files, config), outcomes, begun),
        ):
            self._file.write(summary, when=begun)
        for row in rows:
            self.write(row)

    def write(self, row: Row) -> None:
        """Add the scalars of one row."""
        values = {
            tag: value
            for tag, value in row.items()
            if tag not in ("step", "time") and not tag.startswith(f"{CLUSTERS}/")
        }
        for tag in [tag for tag in values if tag.startswith("accuracy/")]:
            self._best[tag] = values[f"best_{tag}"] = max(self._best.get(tag, 0.0), values[tag])
        self._file.write(events.scalars(values), step=row["step"], when=row["time"])

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _chosen(files: Layout, config: ConfigDict) -> dict[str, Any]:
    """What the table of hyperparameters shows of a run."""
    fields = flatten(config)
    if files.trial.exists():
        return {key: fields[key] for key in read_json(files.trial)["keys"]}
    return {key: value for key, value in fields.items() if key.split(".")[0] not in _ROUTINE}
