"""Where numbers go: `metrics.jsonl`, which is the record, and TensorBoard, which is a view of it.

Rows are written in order and flushed one by one, so a crash can cut only the last line. When a run
resumes at an earlier step the rows after it are dropped, and TensorBoard's events are written anew
from the rows that stay: both are then what an uninterrupted run would have written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from tensorboardX import SummaryWriter
from tensorboardX.summary import hparams

from implicit_reasoning.config import flatten, to_json
from implicit_reasoning.files import atomic_write
from implicit_reasoning.runs import Layout, read_metrics

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
    """Scalars, one chart with all splits, hyperparameters, the configuration as text."""

    def __init__(self, files: Layout, config: ConfigDict, splits: list[str], rows: list[Row]):
        """Begin a fresh event file with everything there is so far."""
        for old in files.tensorboard.glob("events.*"):
            old.unlink()
        self._writer = SummaryWriter(str(files.tensorboard), flush_secs=10)
        self._config = config
        self._writer.add_custom_scalars(
            {
                "all splits": {
                    quantity: ["Multiline", [f"^{quantity}/{split}$" for split in splits]]
                    for quantity in ("accuracy", "loss", "reciprocal_rank")
                }
            }
        )
        text = json.dumps(to_json(config), indent=2)
        self._writer.add_text("config", "```json\n" + text + "\n```")
        self._begin_session(splits)
        for row in rows:
            self.write(row)

    def write(self, row: Row) -> None:
        """Add the scalars of one row."""
        for tag, value in row.items():
            if tag not in ("step", "time"):
                self._writer.add_scalar(tag, value, row["step"], walltime=row["time"])

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()

    def _begin_session(self, splits: list[str]) -> None:
        # Not `add_hparams`: it opens a second writer, which within the same second takes the same
        # file name. The session has no end record, so that a resumed run need not take one back.
        plain = {
            key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in flatten(self._config).items()
            if key.split(".")[0] not in _ROUTINE
        }
        metrics: Mapping[str, float] = {f"accuracy/{split}": 0.0 for split in splits}
        experiment, start, _ = hparams(plain, metrics)
        self._writer.file_writer.add_summary(experiment)
        self._writer.file_writer.add_summary(start)
