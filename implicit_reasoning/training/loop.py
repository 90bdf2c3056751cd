"""Resumable training loop; a resumed run gives bit-for-bit the results of an uninterrupted run.

The loop trains an object that implements the `Training` protocol: one model, several models, or a
set of sparse dictionaries. It restores the newest readable state, runs the steps between two events
(evaluations, checkpoints, log rows), saves states, and handles shutdown requests.

Resuming relies on three rules:

- The metrics rows up to a step are on disk before the state of that step is saved.
- The configuration determines everything that happens at a step.
- Nothing is saved for a step before the host has read the results of that step.

Between events the device runs without waiting for the host: the host reads the results of a chunk
of steps while the device runs the next chunk. The loop runs under a transfer guard, so only
explicit transfers between host and device are possible.

Every process of a run executes the same steps and the same saves. All other files are written only
by process 0.
"""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np

from implicit_reasoning.errors import InputError
from implicit_reasoning.runs import Checkpoints, DamagedCheckpoint
from implicit_reasoning.runtime import distributed
from implicit_reasoning.runtime.progress import ProgressBar, say
from implicit_reasoning.runtime.shutdown import Interrupted, ShutdownRequest, signal_name

State = TypeVar("State")

NOT_BEGUN = -1
"""Step number before training begins: the events of step 0 have not happened yet."""

_CHUNK_SECONDS = 2.0  # A signal is handled within about twice this time.
_KEPT_STATES = 2
_TIMED_CHUNKS = 10  # The speed is measured over this number of chunks.


class NonFiniteLoss(Exception):
    """Error that ends diverged training: a loss, a gradient or an update is not finite.

    Attributes:
      step: the last step with finite parameters. The next update is not finite.
    """

    def __init__(self, step: int):
        super().__init__(
            f"training diverged: the loss, its gradient or the update was not finite at step "
            f"{step}. Everything that was saved up to that step is finite, and later steps were "
            "discarded. Try a lower optimizer.learning_rate or optimizer.clip_norm, or a higher "
            "optimizer.warmup_steps"
        )
        self.step = step


@dataclass(frozen=True)
class Chunk:
    """A chunk of consecutive steps that the device has finished.

    Attributes:
      before: the step at which the chunk began.
      step: the step at which the chunk ended.
      results: the results of `Training.arrive` for the last step, on the host.
      steps_per_second: recent speed, including evaluations and saves.
      read_newest: function that reads the newest saved state. Its argument is a pytree of shapes
        and shardings. The function returns the saved pytree and its step, or None before the first
        save.
    """

    before: int
    step: int
    results: Any
    steps_per_second: float
    read_newest: Callable[[Any], tuple[Any, int] | None]


@runtime_checkable
class Training(Protocol[State]):
    """Interface of the objects that the loop trains. The loop does not inspect training states."""

    @property
    def steps(self) -> int:
        """The number of steps of the complete training."""
        ...

    @property
    def begins_at(self) -> int:
        """The step of the initial state; `NOT_BEGUN` if the events of step 0 are due."""
        ...

    def init(self) -> State:
        """Return the initial state.

        The loop calls this method if `resume/` contains no state of step `begins_at` or later.
        """
        ...

    def restore(self, step: int, read: Callable[[Any], Any]) -> State:
        """Restore the state that was saved at a step.

        Args:
          step: the step of the state.
          read: function from a pytree of shapes and shardings to the saved pytree.

        Raises:
          DamagedCheckpoint: the state cannot be read.
        """
        ...

    def saved(self, state: State) -> Any:
        """Return the pytree of arrays that the loop saves for a state."""
        ...

    def open(self, step: int) -> None:
        """Open the result files, and remove the results of steps after `step`."""
        ...

    def close(self) -> None:
        """Close all files that `open` opened. The loop calls this method even if `open` failed."""
        ...

    def chunk_end(self, step: int, count: int) -> int:
        """Return the last step of the chunk that starts at `step`.

        The result is the step of the next event (evaluation, checkpoint or log row) after `step`.
        If chunks may end between events, `step + count` is an upper limit.
        """
        ...

    def advance(self, state: State, step: int, count: int) -> State:
        """Dispatch `count` steps from `step`, and return the new state without blocking.

        The buffers of `state` are donated, so the caller must not use `state` again.
        """
        ...

    def arrive(self, before: int, step: int, state: State) -> Any:
        """Dispatch the computation of the results at the end of a chunk, without blocking.

        Args:
          before: the step at which the chunk began.
          step: the step at which the chunk ends.
          state: the state at `step`.

        Returns:
          A pytree of arrays on the device.
        """
        ...

    def write(self, chunk: Chunk) -> Mapping[str, str]:
        """Write the results of a chunk.

        Returns:
          Values to show next to the progress bar.

        Raises:
          NonFiniteLoss: training diverged. In joint training of several models, all models
            diverged.
        """
        ...

    def keeps_at(self, step: int) -> bool:
        """Return whether `keep` saves a permanent checkpoint at a step."""
        ...

    def resumes_at(self, step: int) -> bool:
        """Return whether the loop saves the full state at a step, for resuming."""
        ...

    def keep(self, step: int, state: State, *, resumable: bool) -> None:
        """Save all files that are due at a step, except the full state, which the loop saves.

        Args:
          step: the step.
          state: the state at that step.
          resumable: whether the loop saves the full state after this call. If True, all files of
            the step must be on disk when this method returns.
        """
        ...


@dataclass(frozen=True)
class _Pending:
    """Results that are still being computed on the device."""

    before: int
    step: int
    results: Any


class ResumableLoop(Generic[State]):
    """A loop that resumes from the newest saved state and trains until a given step."""

    def __init__(
        self, training: Training[State], folder: Path, *, title: str = "", progress: bool = True
    ):
        """Create the loop. Nothing is read or written yet.

        Args:
          training: the object to train.
          folder: the folder of the saved states; the last two states are kept.
          title: the title of the progress bar.
          progress: whether to show the progress bar.
        """
        self._training, self._folder = training, folder
        self._title, self._progress = title, progress

    def run(self, stop: int, shutdown: ShutdownRequest) -> State:
        """Train until step `stop`, or until a shutdown request.

        Returns:
          The state at step `stop`.

        Raises:
          InputError: all saved states are damaged.
          Interrupted: a shutdown was requested, and the state is saved.
          NonFiniteLoss: training diverged.
        """
        training = self._training
        # Close in reverse order, even if training fails, so that every save on disk is complete.
        with contextlib.ExitStack() as stack:

            def opened(part: Any) -> Any:
                stack.push(lambda kind, error, trace: _close(part, error))
                return part

            self._states = opened(Checkpoints(self._folder, keep=_KEPT_STATES))
            state, step = self._restore()
            opened(training)
            training.open(step)
            # If there are states of later steps, at least one process could not read them. Their
            # steps are trained again.
            self._states.drop_after(step)
            self._bar = opened(
                ProgressBar(
                    training.steps, done=max(step, 0), title=self._title, shown=self._progress
                )
            )
            with jax.transfer_guard("disallow"):
                return self._loop(state, step, stop, shutdown)

    def _restore(self) -> tuple[State, int]:
        """Return the state to resume from, and its step.

        If the newest state cannot be read, the newest state that can be read is used. The steps
        after that state are trained again, with the same results.
        """
        training = self._training
        if self._newest() is None:
            return training.init(), training.begins_at
        for step in reversed(self._states.steps):
            state, said = None, ""
            try:
                state = training.restore(step, partial(self._states.restore, step))
            except DamagedCheckpoint as damage:
                said = str(damage)
            readable = np.array([state is not None], np.float32)
            if distributed.allgather(readable).all() and state is not None:
                return state, step
            said = said or f"another process of the run cannot read the state of step {step}"
            say(f"{said}; trying the previous state")
        raise InputError(
            f"no state in {self._folder} can be read; remove this folder to train again from step 0"
        )

    def _newest(self) -> int | None:
        """Return the step of the newest saved state.

        Return None if there is no saved state, or if the state that `init` returns is newer.
        """
        newest = max(self._states.steps, default=None)
        return newest if newest is not None and newest >= self._training.begins_at else None

    def _read_newest(self, like: Any) -> tuple[Any, int] | None:
        self._states.wait()
        newest = self._newest()
        return None if newest is None else (self._states.restore(newest, like), newest)

    def _loop(self, state: State, step: int, stop: int, shutdown: ShutdownRequest) -> State:
        training = self._training
        self._read = collections.deque([(time.perf_counter(), max(step, 0))], maxlen=_TIMED_CHUNKS)
        pending: _Pending | None = None
        if step == NOT_BEGUN:
            step = 0
            pending = _Pending(step, step, training.arrive(step, step, state))
            if self._save(step, state, pending, step == stop):
                pending = None
        while step < stop:
            asked, count = self._agree(shutdown)
            if asked:
                self._save(step, state, pending, True)
                raise Interrupted(step, asked)
            before, step = step, min(training.chunk_end(step, count), stop)
            state = training.advance(state, before, step - before)
            if pending:
                self._finish(pending)
            pending = _Pending(before, step, training.arrive(before, step, state))
            if self._save(step, state, pending, step == stop):
                pending = None
        if pending:
            self._finish(pending)
        return state

    def _agree(self, shutdown: ShutdownRequest) -> tuple[str | None, int]:
        """Return the signal that any process received, and the maximum length of the next chunk.

        The maximum length is the number of steps that take about `_CHUNK_SECONDS`, so that a signal
        is handled soon. All processes return the same values.
        """
        own = np.array([shutdown.number, self._steps_per_second()], np.float32)
        said = distributed.allgather(own)
        return signal_name(int(said[:, 0].max())), max(int(_CHUNK_SECONDS * said[0, 1]), 1)

    def _save(self, step: int, state: State, pending: _Pending | None, leaving: bool) -> bool:
        """Write the pending metrics row, then save the checkpoint and the state if they are due.

        Return whether something was saved. `pending` has then been written.

        Args:
          step: the step.
          state: the state at that step.
          pending: the results of that step, if they have not been written yet.
          leaving: whether the loop ends at this step.
        """
        training = self._training
        resumable = training.resumes_at(step) or (leaving and step < training.steps)
        if not (training.keeps_at(step) or resumable):
            return False
        if pending:
            self._finish(pending)
        with jax.transfer_guard("allow"):  # Orbax makes implicit transfers.
            # A run that resumes from this state will not revisit this step, so all other files of
            # this step must be on disk before the state is saved.
            training.keep(step, state, resumable=resumable)
            if resumable:
                self._states.save(step, training.saved(state))
        return True

    def _finish(self, pending: _Pending) -> None:
        """Wait for the results of a chunk, then write them."""
        results = jax.device_get(pending.results)
        self._read.append((time.perf_counter(), pending.step))
        speed = self._steps_per_second()
        chunk = Chunk(pending.before, pending.step, results, speed, self._read_newest)
        self._bar.move_to(pending.step, self._training.write(chunk))

    def _steps_per_second(self) -> float:
        """Return the speed over the last chunks, including evaluations and saves.

        One chunk is not enough to measure the speed: on a CPU, computation happens during dispatch,
        so the results of two chunks can become available at the same time.
        """
        (then, before), (now, step) = self._read[0], self._read[-1]
        return (step - before) / (now - then) if step > before else 0.0


def _close(part: Any, error: BaseException | None) -> None:
    """Close a part of the loop, unless only this process of a distributed run failed.

    Closing a part waits until all processes close it. After an error in this process only, the
    other processes do not close the part. After a signal or divergence, all processes close it.
    """
    together = error is None or isinstance(error, Interrupted | NonFiniteLoss)
    if together or not distributed.is_distributed():
        part.close()
