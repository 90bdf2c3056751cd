"""Training of models: `train(config, workdir) -> Run`, and the class that the loop trains.

A population is a group of models (trials) that are trained together in one program. The arrays of
this program have a leading trial axis. Each trial has its own `Record` of result files.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from implicit_reasoning.errors import InputError
from implicit_reasoning.paths import local_folder
from implicit_reasoning.runs import Checkpoints, Layout, Run, check_path, completed, end_segment
from implicit_reasoning.runtime import distributed, profiling, sharding
from implicit_reasoning.runtime.shutdown import shutdown_requests
from implicit_reasoning.training import directory, saved_states, setup
from implicit_reasoning.training.evaluation import NEVER
from implicit_reasoning.training.loop import NOT_BEGUN, Chunk, NonFiniteLoss, ResumableLoop
from implicit_reasoning.training.record import Record
from implicit_reasoning.training.saved_states import StartingPoint
from implicit_reasoning.training.settings import Trial
from implicit_reasoning.training.setup import Program
from implicit_reasoning.training.step import TrainState


def train(
    config: ConfigDict, workdir: str | os.PathLike[str], *, stop_at: int | None = None
) -> Run:
    """Train until `config.steps`, or resume a run that stopped before.

    Args:
      config: the configuration; `configs/composition.py` is an example.
      workdir: the run directory. A missing directory is created.
      stop_at: stop at this step instead of `config.steps`. A later call can resume the run.

    Returns:
      The run in `workdir`.

    Raises:
      InputError: the configuration is not valid for training, or `workdir` contains a run with a
        different configuration.
      Interrupted: the process received SIGTERM or SIGINT, and the state is saved.
      NonFiniteLoss: training diverged. Earlier checkpoints and metrics are intact.
      PeerLost: a process of a distributed run was lost. Earlier checkpoints and metrics are intact.
    """
    files = Layout(local_folder(workdir, "workdir"))
    config = completed(config)
    setup.check_config(config)
    check_path(files.workdir)
    stop = config.steps if stop_at is None else stop_at
    if not 0 <= stop <= config.steps:
        raise InputError(f"stop_at is {stop}; it must be between 0 and steps = {config.steps}")
    distributed.initialize(config.distributed)
    with distributed.exit_if_peer_lost():
        # Find errors in the input before anything is written.
        dataset = directory.open_dataset(files, config)
        if distributed.is_distributed():
            distributed.assert_same_across_processes(directory.identity(config, stop, dataset))
        trial = Trial(config, dataset, files)
        program, record = setup.make_program(trial.settings, dataset), Record(trial)
        check_initial([trial])
        with directory.exclusive(files.workdir), shutdown_requests() as shutdown:
            directory.begin(files, config, dataset)
            training = ModelTraining(program, [record], files, start=_as_a_row(files, program))
            training.loop().run(stop, shutdown)
    return Run(workdir)


def check_initial(trials: Sequence[Trial]) -> None:
    """Check the initial parameters of new trials. Call this before any file is written.

    Raises:
      InputError: the initial parameters of a trial cannot be read, or do not fit its model.
    """
    for trial in trials:
        if not saved_states.all_states(trial.files):
            trial.initial  # noqa: B018


def _as_a_row(files: Layout, program: Program) -> StartingPoint | None:
    """Load the newest state if it is a row of a population's state; return None otherwise.

    The newest state is such a row if this run was trained as a trial of a population before. The
    primary process then records that later checkpoints of the population do not belong to this run.
    """
    saved = saved_states.newest(files)
    if saved is None or saved.row is None:
        return None
    if distributed.is_primary():
        end_segment(files, saved.step)
    return saved_states.read([saved], program.like, stacked=False)


class ModelTraining:
    """Joint training of one or several models (trials), all at the same step.

    Attributes:
      records: the result files of each trial.
    """

    def __init__(
        self,
        program: Program,
        records: Sequence[Record],
        files: Layout,
        *,
        start: StartingPoint | None = None,
    ):
        """Create the training. Nothing is written yet.

        Args:
          program: the compiled functions and their arguments.
          records: one record per trial; all trials share a schedule.
          files: the directory for states and checkpoints: that of the run, or, for a population,
            the directory of the population.
          start: a state from another directory that is newer than all states in `files`.
        """
        self.records = records
        self._program, self._files, self._start = program, files, start
        self._settings = records[0].settings
        self._schedule = self._settings.schedule
        self._compiled = profiling.compiles()
        self._opened = contextlib.ExitStack()
        self._shown: dict[str, str] = {}

    def loop(self, title: str = "") -> ResumableLoop[TrainState]:
        """Return the loop for this training; `title` is the title of the progress bar."""
        shown = self._settings.progress
        return ResumableLoop(self, self._files.resume, title=title, progress=shown)

    @property
    def steps(self) -> int:
        """The step at which training and the learning rate schedule end."""
        return self._schedule.horizon

    @property
    def begins_at(self) -> int:
        """The step of the state from a previous directory; `NOT_BEGUN` without such a state."""
        return self._start.step if self._start else NOT_BEGUN

    def init(self) -> TrainState:
        """Return the state that a previous directory provides, or a newly initialized state."""
        if self._start:
            self._remember(self._start.first_correct)
        return self._first()

    def _first(self) -> TrainState:
        if self._start:
            state: TrainState = saved_states.placed(self._start.state, self._program.like)
        else:
            state = self._with_initial(self._program.init(self._program.init_key))
        return state

    def _with_initial(self, state: TrainState) -> TrainState:
        """Return the initial state, with the parameters that its trials take from other runs."""
        program, initial = self._program, [record.trial.initial for record in self.records]
        if not any(initial):
            return state
        # The random parameters are read from the device only if some trials keep them.
        rows = (
            [None] * len(initial) if all(initial) else program.split(jax.device_get(state.params))
        )
        params = [own.params if own else row for own, row in zip(initial, rows, strict=True)]
        stacked = jax.tree.map(lambda *leaves: program.stack(leaves), *params)
        return state._replace(params=saved_states.placed(stacked, program.like.params))

    def restore(self, step: int, read: Callable[[Any], Any]) -> TrainState:
        """Restore what `saved` returned, and return the training state.

        Also restore, for each probe row, the step at which the row was first answered correctly.

        Args:
          step: the step at which the state was saved.
          read: a function that reads a pytree with the structure of its argument.
        """
        tree = read(self._like())
        self._remember(self._program.split(np.array(tree["first_correct"])))
        state: TrainState = tree["state"]
        return state

    def saved(self, state: TrainState) -> Any:
        """Return the state, with the step of the first correct answer to each evaluated row."""
        return {"state": state, "first_correct": self._first_correct()}

    def _like(self) -> Any:
        return {"state": self._program.like, "first_correct": self._first_correct()}

    def _remember(self, first_correct: Sequence[np.ndarray]) -> None:
        for record, steps in zip(self.records, first_correct, strict=True):
            record.first_correct = steps[: len(record.first_correct)]

    def _first_correct(self) -> np.ndarray:
        """Return, for all trials, the step at which each probe row was first answered correctly.

        The array has one row per trial, padded with `NEVER`. A single model has no trial axis.
        """
        found = [record.first_correct for record in self.records]
        most = max(map(len, found))
        stacked = [np.pad(steps, (0, most - len(steps)), constant_values=NEVER) for steps in found]
        return self._program.stack(stacked)

    def open(self, step: int) -> None:
        """Open the checkpoints, the files of all records, and the profiler trace."""
        close = self._opened.callback
        self._checkpoints = Checkpoints(self._files.checkpoints)
        close(self._checkpoints.close)
        for record in self.records:
            close(record.close)
            record.open(step)
        self._checkpoints.drop_after(step)
        traced = distributed.is_primary() and self._settings.profile
        self._profile = profiling.Profile(self._files.profile if traced else None)
        close(self._profile.close)

    def close(self) -> None:
        """Close everything that `open` opened, in reverse order."""
        self._opened.close()

    def chunk_end(self, step: int, count: int) -> int:
        """Return the smaller of `step + count` and the step of the next scheduled event."""
        return min(self._schedule.next_event(step), step + count)

    def advance(self, state: TrainState, step: int, count: int) -> TrainState:
        """Dispatch `count` updates, and return the new state without blocking."""
        self._profile.next_chunk(state)
        return self._advance(state, count)

    def _advance(self, state: TrainState, count: int) -> TrainState:
        program = self._program
        steps = sharding.put_scalar(count, program.whole)
        after: TrainState = program.advance(
            state, program.rows, program.hyper, program.stream_key, steps
        )
        return after

    def arrive(self, before: int, step: int, state: TrainState) -> Any:
        """Dispatch a snapshot of the state, and the evaluation if the step has one."""
        program, evaluated = self._program, step in self._schedule.evaluations
        outcome = program.evaluate(state.params) if evaluated else None
        return program.snapshot(state, program.hyper), outcome

    def keeps_at(self, step: int) -> bool:
        """Return whether the schedule has a checkpoint at a step."""
        return step in self._schedule.checkpoints

    def resumes_at(self, step: int) -> bool:
        """Return whether the schedule saves the full state at a step."""
        return step in self._schedule.resumes

    def keep(self, step: int, state: TrainState, *, resumable: bool) -> None:
        """Save a checkpoint if the schedule has one at this step.

        If the full state is also saved, save `first_correct.npz`.
        """
        if self.keeps_at(step):
            self._checkpoints.save(step, state.params)
        if resumable:
            self._checkpoints.wait()
            for record in self.records:
                record.keep()

    def write(self, chunk: Chunk) -> Mapping[str, str]:
        """Write the metrics row of each trial that has not diverged.

        Raises:
          NonFiniteLoss: all trials have diverged.
        """
        split = self._program.split
        snapshots = split(chunk.results[0])
        self._note_divergence(chunk, snapshots)
        ends = [record.diverged for record in self.records]
        if None not in ends:
            raise NonFiniteLoss(max(end for end in ends if end is not None))
        if chunk.step not in self._schedule.rows:
            return {}
        outcomes = [None] * len(ends) if chunk.results[1] is None else split(chunk.results[1])
        timings = {"steps_per_second": chunk.steps_per_second}
        timings |= profiling.compiles().since(self._compiled)
        written = [
            record.write(chunk.step, snapshot, outcome, timings)
            for record, snapshot, outcome in zip(self.records, snapshots, outcomes, strict=True)
            if record.diverged is None
        ]
        return self._shown_of(written)

    def _shown_of(self, written: Sequence[dict[str, float]]) -> dict[str, str]:
        """Return the newest loss and accuracies as text; for a population, medians over trials."""
        for name in written[0]:
            self._shown[name] = f"{np.median([values[name] for values in written]):.3f}"
        if lost := len(self.records) - len(written):
            self._shown["diverged"] = str(lost)
        return self._shown

    def _note_divergence(self, chunk: Chunk, snapshots: Sequence[dict[str, Any]]) -> None:
        """Find the trials that diverged in a chunk, and write the step to their records.

        If the loss, its gradient or the rates were not finite, the state holds the step. The
        parameters are checked at the end of a chunk only. If the parameters overflowed, the chunk
        is trained again step by step to find the step.
        """
        lost = {
            number: int(snapshot["step"])
            for number, snapshot in enumerate(snapshots)
            if not snapshot["finite"] and self.records[number].diverged is None
        }
        # The norm of finite parameters can overflow too. The replay then finds the step that the
        # state holds.
        unsure = [n for n in lost if not np.isfinite(snapshots[n]["param_norm"])]
        if unsure:
            lost |= self._replay(chunk, unsure)
        for number, step in lost.items():
            self.records[number].diverge(step)

    def _replay(self, chunk: Chunk, numbers: Sequence[int]) -> dict[int, int]:
        """Train a chunk again step by step, to find the first update that was not finite.

        Args:
          chunk: the chunk to repeat; all values were finite at its start.
          numbers: the indices of the records to check.

        Returns:
          For the index of each record, the number of updates before its first update that was not
          finite.
        """
        program = self._program
        with jax.transfer_guard("allow"):
            newest = chunk.read_newest(self._like())
            if newest is None:
                state, step = self._first(), max(self.begins_at, 0)
            else:
                state, step = newest[0]["state"], newest[1]
        if step < chunk.before:
            state = self._advance(state, chunk.before - step)
        found: dict[int, int] = {}
        for step in range(chunk.before, chunk.step):
            state = self._advance(state, 1)
            snapshots = program.split(jax.device_get(program.snapshot(state, program.hyper)))
            for number in numbers:
                if not snapshots[number]["finite"]:
                    found.setdefault(number, step)
            if len(found) == len(numbers):
                break
        return found
