"""Training models: `train(config, workdir) -> Run`, and what the loop does for models.

A population of models is trained like one model, with a leading axis of trials in everything that
the program computes, and one `Record` for each trial.
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
      config: as in `configs/composition.py`.
      workdir: of the run; made if missing.
      stop_at: stop, resumable, after so many steps in all.

    Returns:
      The run, opened.

    Raises:
      InputError: the configuration cannot be trained, or `workdir` holds another run.
      Interrupted: SIGTERM or SIGINT came; the state is saved.
      NonFiniteLoss: training diverged; what was kept before is whole.
      PeerLost: another process of the run is gone; what was saved before is whole.
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
        # Whatever can be wrong with a new run is found before anything is made.
        dataset = directory.open_dataset(files, config)
        if distributed.is_distributed():
            distributed.assert_same_across_processes(directory.identity(config, stop, dataset))
        trial = Trial(config, dataset, files)
        program, record = setup.make_program(trial.settings, dataset), Record(trial)
        with directory.exclusive(files.workdir), shutdown_requests() as shutdown:
            directory.begin(files, config, dataset)
            training = ModelTraining(program, [record], files, start=_as_a_row(files, program))
            training.loop().run(stop, shutdown)
    return Run(workdir)


def _as_a_row(files: Layout, program: Program) -> StartingPoint | None:
    """The state of a trial that was trained in a population and is now trained alone."""
    saved = saved_states.newest(files)
    if saved is None or saved.row is None:
        return None
    if distributed.is_primary():
        end_segment(files, saved.step)
    return saved_states.read([saved], program.like, stacked=False)


class ModelTraining:
    """A model in training, or a population of models in step with each other: a `Training`.

    Attributes:
      records: what is written of each.
    """

    def __init__(
        self,
        program: Program,
        records: Sequence[Record],
        files: Layout,
        *,
        start: StartingPoint | None = None,
    ):
        """Nothing is written yet.

        Args:
          program: what is computed.
          records: one per trial; all trials share a schedule.
          files: where states and checkpoints are saved; of a run, its own.
          start: a state from elsewhere, newer than those in `files`.
        """
        self.records = records
        self._program, self._files, self._start = program, files, start
        self._settings = records[0].settings
        self._schedule = self._settings.schedule
        self._compiled = profiling.compiles()
        self._opened = contextlib.ExitStack()
        self._shown: dict[str, str] = {}

    def loop(self, title: str = "") -> ResumableLoop[TrainState]:
        """The loop that trains it; `title` is of the progress bar."""
        shown = self._settings.progress
        return ResumableLoop(self, self._files.resume, title=title, progress=shown)

    @property
    def steps(self) -> int:
        """The horizon of the schedule."""
        return self._schedule.horizon

    @property
    def begins_at(self) -> int:
        """The step of the state from elsewhere, if there is one."""
        return self._start.step if self._start else NOT_BEGUN

    def init(self) -> TrainState:
        """The state from elsewhere, or fresh parameters."""
        if self._start:
            self._remember(self._start.first_correct)
        return self._first()

    def _first(self) -> TrainState:
        if self._start:
            state: TrainState = saved_states.placed(self._start.state, self._program.like)
        else:
            state = self._program.init(self._program.init_key)
        return state

    def restore(self, step: int, read: Callable[[Any], Any]) -> TrainState:
        """The state of a step; the records get their first correct answers."""
        tree = read(self._like())
        self._remember(self._program.split(np.array(tree["first_correct"])))
        state: TrainState = tree["state"]
        return state

    def saved(self, state: TrainState) -> Any:
        """The state, and by probe row the step of its first correct answer."""
        return {"state": state, "first_correct": self._first_correct()}

    def _like(self) -> Any:
        return {"state": self._program.like, "first_correct": self._first_correct()}

    def _remember(self, first_correct: Sequence[np.ndarray]) -> None:
        for record, steps in zip(self.records, first_correct, strict=True):
            record.first_correct = steps[: len(record.first_correct)]

    def _first_correct(self) -> np.ndarray:
        """Of the run, or of all trials, filled up to equal lengths."""
        found = [record.first_correct for record in self.records]
        most = max(map(len, found))
        stacked = [np.pad(steps, (0, most - len(steps)), constant_values=NEVER) for steps in found]
        return self._program.stack(stacked)

    def open(self, step: int) -> None:
        """Open checkpoints, the files of all records, and the trace."""
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
        """Close them, in reverse order."""
        self._opened.close()

    def chunk_end(self, step: int, count: int) -> int:
        """The next row, checkpoint or state; chunks can be cut anywhere before it."""
        return min(self._schedule.next_event(step), step + count)

    def advance(self, state: TrainState, step: int, count: int) -> TrainState:
        """Make `count` updates."""
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
        """A snapshot of the state, and an `Outcome` where this is a step of evaluation."""
        program, evaluated = self._program, step in self._schedule.evaluations
        outcome = program.evaluate(state.params) if evaluated else None
        return program.snapshot(state, program.hyper), outcome

    def keeps_at(self, step: int) -> bool:
        """Whether parameters are kept."""
        return step in self._schedule.checkpoints

    def resumes_at(self, step: int) -> bool:
        """Whether the schedule has a state."""
        return step in self._schedule.resumes

    def keep(self, step: int, state: TrainState, *, resumable: bool) -> None:
        """Keep parameters, and beside a state `first_correct.npz`."""
        if self.keeps_at(step):
            self._checkpoints.save(step, state.params)
        if resumable:
            self._checkpoints.wait()
            for record in self.records:
                record.keep()

    def write(self, chunk: Chunk) -> Mapping[str, str]:
        """Write a row of each trial that has not diverged."""
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
        """The newest loss and accuracies; of a population, the medians."""
        for name in written[0]:
            self._shown[name] = f"{np.median([values[name] for values in written]):.3f}"
        if lost := len(self.records) - len(written):
            self._shown["diverged"] = str(lost)
        return self._shown

    def _note_divergence(self, chunk: Chunk, snapshots: Sequence[dict[str, Any]]) -> None:
        """Tell the records that diverged in a chunk at which step they did.

        The state has the step where it was the loss, its gradient or the rates. Where parameters
        themselves overflowed, which a step does not check, that step is found by a replay.
        """
        lost = {
            number: int(snapshot["step"])
            for number, snapshot in enumerate(snapshots)
            if not snapshot["finite"] and self.records[number].diverged is None
        }
        # The square of what is finite may overflow too: then the replay comes to the same step.
        unsure = [n for n in lost if not np.isfinite(snapshots[n]["param_norm"])]
        if unsure:
            lost |= self._replay(chunk, unsure)
        for number, step in lost.items():
            self.records[number].diverge(step)

    def _replay(self, chunk: Chunk, numbers: Sequence[int]) -> dict[int, int]:
        """Train a chunk again step by step; returns the steps whose updates were not finite.

        Args:
          chunk: everything was finite where it began.
          numbers: of the records to look at.
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
