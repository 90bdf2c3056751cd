"""Output files of a run during training: metrics, TensorBoard events and first correct answers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from implicit_reasoning.config import flatten, to_json
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import atomic_write, read_json, write_npz
from implicit_reasoning.runs import Layout, Run, end_segment
from implicit_reasoning.runtime import distributed
from implicit_reasoning.runtime.writers import MetricsFile, Row, TensorBoard
from implicit_reasoning.training import directory, setup
from implicit_reasoning.training.evaluation import NEVER, Evaluation, Outcome, ProbeMetrics
from implicit_reasoning.training.intervals import is_evaluated, row_with_intervals
from implicit_reasoning.training.phases import Splits
from implicit_reasoning.training.settings import Trial
from implicit_reasoning.worlds import Dataset

# Groups and fields that do not define the experiment. The hyperparameter table of TensorBoard
# omits them, because TensorBoard sorts columns by name and shows only the first five.
_ROUTINE = (
    *("checkpoints", "distributed", "evaluation", "log_every", "mesh", "profile", "resume_every"),
    "writers",
)


def open_tensorboard(
    files: Layout, config: ConfigDict, dataset: Dataset, rows: Sequence[Row]
) -> TensorBoard:
    """Create the TensorBoard event file of a run from the existing metrics rows."""
    return TensorBoard(
        files.tensorboard,
        config=to_json(config),
        hyperparameters=_hyperparameters(files, config),
        splits=[name for name in dataset.splits if len(dataset.probes(name))],
        rows=rows,
    )


def _hyperparameters(files: Layout, config: ConfigDict) -> dict[str, Any]:
    """Return the columns of the hyperparameter table.

    For a trial of a sweep, these are the fields that vary in the sweep.
    """
    fields = flatten(config)
    if files.trial.exists():
        return {key: fields[key] for key in read_json(files.trial)["keys"]}
    return {key: value for key, value in fields.items() if key.split(".")[0] not in _ROUTINE}


class Record:
    """The output files of one run during training. Only process 0 writes files.

    Attributes:
      settings: the training settings of the run.
      files: the run directory.
      scoring: the object that computes metrics on the probe rows (rows that training evaluates).
      first_correct: the step at which each probe row was first answered correctly, or `NEVER`.
      diverged: the step at which the run diverged, or None.
    """

    def __init__(
        self,
        trial: Trial,
        scoring: ProbeMetrics | None = None,
        lost: Callable[[int], None] | None = None,
    ):
        """Create the record. No file is opened yet.

        Args:
          trial: the run.
          scoring: the `ProbeMetrics` of the dataset, to share one object between several runs. By
            default a new object is created.
          lost: called with the step as soon as the run diverges.
        """
        self.settings, self.files, self.trial = trial.settings, trial.files, trial
        self.scoring = scoring or ProbeMetrics(trial.dataset)
        self.first_correct = np.full(len(self.scoring.rows), NEVER, np.int32)
        self.diverged: int | None = None
        self._lost = lost
        self._schedule = trial.settings.schedule
        self._splits = Splits.of(trial.dataset)
        self._metrics: MetricsFile | None = None
        self._tensorboard: TensorBoard | None = None

    def open(self, step: int) -> None:
        """Record this start, open the files, and remove metrics rows after `step`.

        Args:
          step: the step at which training resumes; -1 if the run is new.
        """
        if not distributed.is_primary():
            return
        initial = self.trial.initial if step < 0 else None
        source = {"init_from": initial.source} if initial else {}
        directory.record_start(self.files.provenance, max(step, 0), source)
        self._metrics = MetricsFile(self.files.metrics, resumed_at=step)
        if self.settings.tensorboard:
            config, dataset, rows = self.trial.config, self.trial.dataset, self._metrics.rows
            self._tensorboard = open_tensorboard(self.files, config, dataset, rows)

    def close(self) -> None:
        """Close the files."""
        for part in (self._tensorboard, self._metrics):
            if part is not None:
                part.close()

    def write(
        self, step: int, snapshot: dict[str, Any], outcome: Outcome | None, timings: Row
    ) -> dict[str, float]:
        """Write the metrics row of a step.

        Args:
          step: the step.
          snapshot: the result of `StepRecipe.snapshot`, on the host.
          outcome: losses and ranks from the evaluation, or None if the step has no evaluation.
          timings: additional columns about the speed of training.

        Returns:
          Values for the progress bar: the loss, and the accuracies on trained and held-out chains.
        """
        row: Row = {"step": step, **self._training_metrics(step, snapshot)}
        if outcome is not None:
            row |= self.scoring.summary(outcome)
            if step in self._schedule.checkpoints:
                row |= self.scoring.intervals.columns(self.scoring.correct(outcome))
            self.first_correct = self.scoring.first_correct(self.first_correct, step, outcome)
        if self._metrics:
            self._metrics.write(row | {"time": time.time()} | timings)
        if self._metrics and self._tensorboard:
            self._tensorboard.write(self._metrics.rows[-1])
        keys = {
            "loss": "loss",
            "memorise": f"accuracy/{self._splits.trained}",
            "generalise": f"accuracy/{self._splits.held_out}",
        }
        return {name: row[key] for name, key in keys.items() if key in row}

    def diverge(self, step: int) -> None:
        """Record that the run diverged at `step`. The caller writes no further rows."""
        self.diverged = step
        if distributed.is_primary():
            end_segment(self.files, step)
        if self._lost:
            self._lost(step)

    def keep(self) -> None:
        """Write `first_correct.npz`. The loop calls this method before it saves the full state."""
        if distributed.is_primary():
            rows = self.scoring.rows
            write_npz(self.files.first_correct, {"row": rows, "step": self.first_correct})

    def _training_metrics(self, step: int, snapshot: dict[str, Any]) -> Row:
        """Return metrics of training.

        Loss and gradient norm are means over the steps since the previous row. The parameter norm
        and the learning rate are values at this step.
        """
        since = np.arange(self._schedule.previous_row(step), step) % self._schedule.log_every
        means = {
            name: float(values[since].mean(dtype=np.float64))
            for name, values in snapshot["window"].items()
            if len(since)
        }
        return means | {name: float(snapshot[name]) for name in ("param_norm", "learning_rate")}


def add_intervals(run: Run) -> None:
    """Add confidence intervals to the last metrics row that has a checkpoint and an evaluation.

    Versions before 2026-11-29 did not write intervals. The checkpoint is evaluated again in the
    precision of training. All other values of the row remain unchanged. If any row already contains
    intervals, do nothing.

    Raises:
      InputError: no step has both a checkpoint and an evaluation, or another process is training in
        the folder.
    """
    files, rows = run.files, run.metrics
    if row_with_intervals(rows) is not None:
        return
    kept = [row for row in rows if row["step"] in run.steps and is_evaluated(row)]
    if not kept:
        raise InputError(
            f"{files.workdir} has no step with both an evaluation and a checkpoint, so intervals "
            "of its accuracies cannot be computed"
        )
    evaluation = Evaluation(setup.make_model(run.config.model.to_dict(), run.dataset), run.dataset)
    params = jax.tree.map(lambda leaf: leaf[0], run.params([kept[-1]["step"]]))
    correct = evaluation.correct(evaluation.launch(params))
    kept[-1].update(evaluation.intervals.columns(correct))
    with directory.exclusive(files.workdir), atomic_write(files.metrics) as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
