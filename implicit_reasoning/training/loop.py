"""Training from a configuration to a run directory, resumable at any moment, bit for bit.

What resuming relies on: the rows of `metrics.jsonl` up to a step are on disk before the full state
of that step is saved, everything that happens at a step follows from the configuration, and no
parameters are kept before their `finite` flag was read. Between events the device runs alone; what
it has to say is read one chunk late, while the next one runs. Nothing moves to or from it unasked:
the loop runs under a transfer guard.

Every process of a run goes through the same steps and the same saves; process 0 also writes files.
"""

from __future__ import annotations

import collections
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from implicit_reasoning.errors import InputError
from implicit_reasoning.paths import local_folder
from implicit_reasoning.runs import (
    Checkpoints,
    Damaged,
    Layout,
    Run,
    check_path,
    completed,
    end_row,
)
from implicit_reasoning.runtime import distributed, profiling, sharding
from implicit_reasoning.runtime.shutdown import (
    Interrupted,
    ShutdownRequest,
    shutdown_requests,
    signal_name,
)
from implicit_reasoning.training import directory, setup, states
from implicit_reasoning.training.evaluation import NEVER, Outcome
from implicit_reasoning.training.record import Record
from implicit_reasoning.training.schedule import Schedule
from implicit_reasoning.training.setup import Program
from implicit_reasoning.training.states import Start
from implicit_reasoning.training.step import TrainState

_CHUNK_SECONDS = 2.0  # a signal is answered within about two of these
_KEPT_RESUMES = 2
_CLOCKED = 10  # chunks that the speed is measured over


class NonFiniteLoss(Exception):
    """Training diverged: a loss, a gradient or an update was not finite.

    Attributes:
      step: updates made before the one that could not be made. Parameters of this step, and of all
        steps before it, are finite.
    """

    def __init__(self, step: int):
        super().__init__(
            f"the loss, its gradient or the update was not finite at step {step}; what was saved "
            "up to that step is finite and nothing after it was kept. "
            "A lower optimizer.learning_rate or optimizer.clip_norm, or a longer warm-up, may help"
        )
        self.step = step


def train(
    config: ConfigDict, workdir: str | os.PathLike[str], *, stop_at: int | None = None
) -> Run:
    """Train until `config.steps`, or go on with a run that stopped before.

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
        program, record = setup.make_program(config, dataset), Record(config, dataset, files)
        with directory.exclusive(files), shutdown_requests() as shutdown:
            directory.begin(files, config, dataset)
            Trainer(program, [record], files, start=_as_a_row(files, program)).run(stop, shutdown)
    return Run(workdir)


def _as_a_row(files: Layout, program: Program) -> Start | None:
    """What a trial that was trained in a population goes on from, when it goes on alone."""
    saved = states.newest(files)
    if saved is None or saved.row is None:
        return None
    if distributed.is_primary():
        end_row(files, saved.step)
    return states.read([saved], program.like, stacked=False)


@dataclass(frozen=True)
class _Pending:
    """What the device will know at a step, while it still computes; `before`: the step it left."""

    before: int
    step: int
    snapshot: dict[str, Any]
    outcome: Outcome | None


class Trainer:
    """A run in progress, or a population of them in step with each other."""

    def __init__(
        self,
        program: Program,
        records: Sequence[Record],
        files: Layout,
        *,
        start: Start | None = None,
        title: str = "",
    ):
        """Nothing is written yet.

        Args:
          program: what is computed.
          records: of the run; of each trial of a population, whose schedules are one.
          files: where states and checkpoints are saved; of a run, its own.
          start: what to go on from where `files` has no state of that step or later.
          title: of the progress bar.
        """
        self._program, self._records, self._files = program, records, files
        self._config, self._start, self._title = records[0].config, start, title
        self._compiled = profiling.compiles()
        self._schedule = Schedule.from_config(self._config)

    def run(self, stop: int, shutdown: ShutdownRequest) -> None:
        """Go on from the last saved state until step `stop`, or until a signal asks to stop."""
        files, writes = self._files, distributed.is_primary()
        # Closed in reverse order, also when training fails: what was saved must be whole on disk.
        with contextlib.ExitStack() as stack:

            def opened(part: Any) -> Any:
                stack.push(lambda kind, error, trace: _close(part, error))
                return part

            self._resumes = opened(Checkpoints(files.resume, keep=_KEPT_RESUMES))
            self._checkpoints = opened(Checkpoints(files.checkpoints))
            state, step = self._restore()
            for record in self._records:
                opened(record).open(step)
            # What is later was kept by a start whose state is lost, maybe on another mesh.
            self._checkpoints.drop_after(step)
            self._resumes.drop_after(step)
            self._bar = opened(self._progress_bar(max(step, 0)))
            self._shown: dict[str, str] = {}
            traced = files.profile if writes and self._config.profile else None
            self._profile = opened(profiling.Profile(traced))
            with jax.transfer_guard("disallow"):
                self._loop(state, step, stop, shutdown)

    def _progress_bar(self, step: int) -> tqdm[Any]:
        return tqdm(
            desc=self._title or None,
            total=self._schedule.horizon,
            initial=step,
            unit="step",
            disable=not (self._config.writers.progress and distributed.is_primary()),
            dynamic_ncols=True,
        )

    def _restore(self) -> tuple[TrainState, int]:
        """The state to go on from and its step, -1 if nothing has happened yet, not even step 0.

        A state that cannot be read is passed over for the one before it: what came after is then
        trained again, and comes out the same.
        """
        like = {"state": self._program.like, "first_correct": self._first_correct()}
        if self._start and self._start.step > max(self._resumes.steps, default=NEVER):
            self._remember(self._start.first_correct)
            return states.placed(self._start.state, self._program.like), self._start.step
        for step in reversed(self._resumes.steps):
            saved, said = None, ""
            try:
                saved = self._resumes.restore(step, like)
            except Damaged as damage:
                said = str(damage)
            if distributed.allgather(np.array([saved is not None], np.float32)).all() and saved:
                self._remember(self._program.split(np.array(saved["first_correct"])))
                return saved["state"], step
            said = said or f"the checkpoint of step {step} cannot be read by another process"
            print(f"implicit_reasoning: {said}; trying the one before it", file=sys.stderr)
        if self._resumes.steps:
            raise InputError(
                f"no state in {self._files.resume} can be read; remove that folder to train again "
                "from step 0, or choose another --workdir"
            )
        return self._program.init(self._program.init_key), NEVER

    def _remember(self, first_correct: Sequence[np.ndarray]) -> None:
        for record, steps in zip(self._records, first_correct, strict=True):
            record.first_correct = steps[: len(record.first_correct)]

    def _first_correct(self) -> np.ndarray:
        """Of the run, or of all trials, filled up to equal lengths."""
        found = [record.first_correct for record in self._records]
        most = max(map(len, found))
        stacked = [np.pad(steps, (0, most - len(steps)), constant_values=NEVER) for steps in found]
        return self._program.stack(stacked)

    def _loop(self, state: TrainState, step: int, stop: int, shutdown: ShutdownRequest) -> None:
        self._finished = collections.deque([(time.perf_counter(), max(step, 0))], maxlen=_CLOCKED)
        pending: _Pending | None = None
        if step == NEVER:
            step = 0
            pending = self._arrive(step, step, state)
            self._keep(step, state, pending, step == stop)
            pending = None
        while step < stop:
            asked, patience = self._agree(shutdown)
            if asked:
                self._keep(step, state, pending, True)
                raise Interrupted(step, asked)
            previous, step = step, min(self._schedule.next_event(step), stop, step + patience)
            self._profile.next_chunk(state)
            state = self._advance(state, step - previous)
            if pending:
                self._finish(pending)
            pending = self._arrive(previous, step, state)
            if self._keep(step, state, pending, step == stop):
                pending = None

    def _agree(self, shutdown: ShutdownRequest) -> tuple[str | None, int]:
        """A signal that any process got, and how many steps to go before asking again.

        Not more than the device gets done before a signal would have to wait long.
        """
        own = np.array([shutdown.number, self._steps_per_second()], np.float32)
        said = distributed.allgather(own)
        return signal_name(int(said[:, 0].max())), max(int(_CHUNK_SECONDS * said[0, 1]), 1)

    def _arrive(self, before: int, step: int, state: TrainState) -> _Pending:
        """Start what has to be computed at a step, without waiting for it."""
        program, evaluate = self._program, step in self._schedule.evaluations
        outcome = program.evaluate(state.params) if evaluate else None
        return _Pending(before, step, program.snapshot(state, program.hyper), outcome)

    def _keep(self, step: int, state: TrainState, pending: _Pending | None, leaving: bool) -> bool:
        """Save what is due at a step, after its row; returns whether `pending` was finished."""
        checkpoint = step in self._schedule.checkpoints
        resume = leaving or step in self._schedule.resumes
        if not (checkpoint or resume):
            return False
        if pending:
            self._finish(pending)
        with jax.transfer_guard("allow"):  # Orbax copies as it likes
            if checkpoint:
                self._checkpoints.save(step, state.params)
            if resume:
                # A run that resumes here never comes by this step again: what it kept must be there
                self._checkpoints.wait()
                self._resumes.save(step, {"state": state, "first_correct": self._first_correct()})
        if resume:
            for record in self._records:
                record.keep()
        return True

    def _finish(self, pending: _Pending) -> None:
        """Read what the device says of a step; write its rows if it has any."""
        step, split = pending.step, self._program.split
        snapshots = split(jax.device_get(pending.snapshot))
        self._note_divergence(pending, snapshots)
        ends = [record.diverged for record in self._records]
        if None not in ends:
            raise NonFiniteLoss(max(end for end in ends if end is not None))
        self._finished.append((time.perf_counter(), step))
        self._bar.update(step - self._bar.n)
        if step not in self._schedule.rows:
            return
        outcomes = split(jax.device_get(pending.outcome)) if pending.outcome else [None] * len(ends)
        timings = {"steps_per_second": self._steps_per_second()}
        timings |= profiling.compiles().since(self._compiled)
        said = [
            record.write(step, snapshot, outcome, timings)
            for record, snapshot, outcome in zip(self._records, snapshots, outcomes, strict=True)
            if record.diverged is None
        ]
        self._show(said)

    def _note_divergence(self, pending: _Pending, snapshots: Sequence[dict[str, Any]]) -> None:
        """Tell the records that diverged in a chunk at which step they did.

        The state says the step where it was the loss, its gradient or the rates. Where parameters
        themselves overflowed, which a step does not look for, that step is found by a replay.
        """
        lost = {
            number: int(snapshot["step"])
            for number, snapshot in enumerate(snapshots)
            if not snapshot["finite"] and self._records[number].diverged is None
        }
        # The square of what is finite may overflow too: then the replay comes to the same step.
        unsure = [n for n in lost if not np.isfinite(snapshots[n]["param_norm"])]
        if unsure:
            lost |= self._replay(pending.before, pending.step, unsure)
        for number, step in lost.items():
            self._records[number].diverge(step)

    def _replay(self, before: int, until: int, numbers: Sequence[int]) -> dict[int, int]:
        """Train a chunk again step by step; returns the steps whose updates were not finite.

        Args:
          before: where the chunk began; everything was finite there.
          until: where it ended.
          numbers: of the records to look at.
        """
        program = self._program
        with jax.transfer_guard("allow"):
            state, step = self._latest()
        if step < before:
            state = self._advance(state, before - step)
        found: dict[int, int] = {}
        for step in range(before, until):
            state = self._advance(state, 1)
            snapshots = program.split(jax.device_get(program.snapshot(state, program.hyper)))
            for number in numbers:
                if not snapshots[number]["finite"]:
                    found.setdefault(number, step)
            if len(found) == len(numbers):
                break
        return found

    def _latest(self) -> tuple[TrainState, int]:
        """The newest saved state and its step; what training began with where there is none."""
        self._resumes.wait()
        newest = max(self._resumes.steps, default=NEVER)
        if self._start and self._start.step > newest:
            return states.placed(self._start.state, self._program.like), self._start.step
        if newest == NEVER:
            return self._program.init(self._program.init_key), 0
        like = {"state": self._program.like, "first_correct": self._first_correct()}
        state: TrainState = self._resumes.restore(newest, like)["state"]
        return state, newest

    def _advance(self, state: TrainState, count: int) -> TrainState:
        program = self._program
        steps = sharding.put_scalar(count, program.whole)
        after: TrainState = program.advance(
            state, program.rows, program.hyper, program.stream_key, steps
        )
        return after

    def _steps_per_second(self) -> float:
        """Over the last chunks, evaluations and saves included.

        Not over the last one alone: where a device computes while it is being told to (CPUs do),
        two chunks can be heard of in the same moment.
        """
        (then, before), (now, step) = self._finished[0], self._finished[-1]
        return (step - before) / (now - then) if step > before else 0.0

    def _show(self, said: Sequence[dict[str, float]]) -> None:
        """Beside the bar: the newest loss and accuracies; of a population, the medians."""
        for name in said[0]:
            self._shown[name] = f"{np.median([values[name] for values in said]):.3f}"
        if lost := len(self._records) - len(said):
            self._shown["diverged"] = str(lost)
        self._bar.set_postfix(self._shown)


def _close(part: Any, error: BaseException | None) -> None:
    """Close a part of a run; but after an error of its own a process must not wait for its peers.

    A signal and divergence all processes leave with alike.
    """
    alike = error is None or isinstance(error, Interrupted | NonFiniteLoss)
    if alike or not distributed.is_distributed():
        part.close()
