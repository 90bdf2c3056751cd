"""The loop that trains anything, resumable at any moment, bit for bit.

The loop does not know what it trains. That is a `Training`: one model, a population of models, or a
set of dictionaries. The loop restores the newest state that can be read, advances from event to
event, saves states, and answers requests to shut down.

Resuming relies on three rules. Rows up to a step are on disk before the state of that step is
saved. Everything that happens at a step follows from the configuration. Nothing is kept of a step
before its results were read.

Between events the device runs alone: the results of a chunk of steps are read while the next chunk
runs. The loop runs under a transfer guard, so that nothing moves between host and device unless the
code asks for it.

Every process of a run takes the same steps and makes the same saves. The primary process also
writes files.
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
"""In place of a step: nothing has happened yet, not even the events of step 0."""

_CHUNK_SECONDS = 2.0  # a signal is answered within about two of these
_KEPT_STATES = 2
_TIMED_CHUNKS = 10  # that the speed is measured over


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


@dataclass(frozen=True)
class Chunk:
    """Steps that the device has finished.

    Attributes:
      before: the step at which the chunk began.
      step: the step at which it ended.
      results: what `Training.arrive` returned for that step, on the host.
      steps_per_second: over the last chunks, evaluations and saves included.
      read_newest: reads the newest saved tree and its step, given shapes and shardings of the tree;
        None where no state was saved since training began.
    """

    before: int
    step: int
    results: Any
    steps_per_second: float
    read_newest: Callable[[Any], tuple[Any, int] | None]


@runtime_checkable
class Training(Protocol[State]):
    """What the loop trains. The loop does not look into a state."""

    @property
    def steps(self) -> int:
        """The last step."""
        ...

    @property
    def begins_at(self) -> int:
        """The step of the state that `init` returns; `NOT_BEGUN` for one before step 0."""
        ...

    def init(self) -> State:
        """The state that training begins with where `resume/` has none of that step or later."""
        ...

    def restore(self, step: int, read: Callable[[Any], Any]) -> State:
        """The state that was saved at a step.

        Args:
          step: of the state.
          read: returns the saved tree, given its shapes and shardings.
        """
        ...

    def saved(self, state: State) -> Any:
        """The tree of arrays to save of a state."""
        ...

    def open(self, step: int) -> None:
        """Open the files of results, and remove from them what is later than `step`."""
        ...

    def close(self) -> None:
        """Close what `open` opened, also where it failed half-way."""
        ...

    def chunk_end(self, step: int, count: int) -> int:
        """The next event after `step`, or `step + count` if chunks can be cut there."""
        ...

    def advance(self, state: State, step: int, count: int) -> State:
        """The state `count` steps after `step`; the given one is donated. Does not wait."""
        ...

    def arrive(self, before: int, step: int, state: State) -> Any:
        """Start to compute the results of a step; arrays on the device. Does not wait."""
        ...

    def write(self, chunk: Chunk) -> Mapping[str, str]:
        """Write the results of a chunk; returns values to show beside the progress bar.

        Raises:
          NonFiniteLoss: there is nothing left to train.
        """
        ...

    def keeps_at(self, step: int) -> bool:
        """Whether `keep` has something to save at a step, apart from the state."""
        ...

    def resumes_at(self, step: int) -> bool:
        """Whether the state is to be saved at a step."""
        ...

    def keep(self, step: int, state: State, *, resumable: bool) -> None:
        """Save what is due at a step; where the state is saved next, wait until it is on disk."""
        ...


@dataclass(frozen=True)
class _Pending:
    """Results that are still being computed on the device."""

    before: int
    step: int
    results: Any


class ResumableLoop(Generic[State]):
    """Trains until a step, from the newest saved state."""

    def __init__(
        self, training: Training[State], folder: Path, *, title: str = "", progress: bool = True
    ):
        """Nothing is read or written yet.

        Args:
          training: what is trained.
          folder: where states are saved; the last two are kept.
          title: of the progress bar.
          progress: whether to show the bar.
        """
        self._training, self._folder = training, folder
        self._title, self._progress = title, progress

    def run(self, stop: int, shutdown: ShutdownRequest) -> State:
        """Train until step `stop`, or until a shutdown request.

        Raises:
          InputError: there are saved states, and none can be read.
          Interrupted: a shutdown was requested; the state is saved.
          NonFiniteLoss: training diverged.
        """
        training = self._training
        # Closed in reverse order, also when training fails: what was saved must be whole on disk.
        with contextlib.ExitStack() as stack:

            def opened(part: Any) -> Any:
                stack.push(lambda kind, error, trace: _close(part, error))
                return part

            self._states = opened(Checkpoints(self._folder, keep=_KEPT_STATES))
            state, step = self._restore()
            opened(training)
            training.open(step)
            # Later states are of a start whose own state is lost, maybe on another mesh.
            self._states.drop_after(step)
            self._bar = opened(
                ProgressBar(
                    training.steps, done=max(step, 0), title=self._title, shown=self._progress
                )
            )
            with jax.transfer_guard("disallow"):
                return self._loop(state, step, stop, shutdown)

    def _restore(self) -> tuple[State, int]:
        """The state to resume from and its step.

        A state that cannot be read is passed over for the one before it. What came after is trained
        again, and comes out the same.
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
            said = said or f"the checkpoint of step {step} cannot be read by another process"
            say(f"{said}; trying the one before it")
        raise InputError(
            f"no state in {self._folder} can be read; remove that folder to train again from step 0"
        )

    def _newest(self) -> int | None:
        """The step of the newest saved state; None where `init` gives a newer one."""
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
        """The signal that any process got, and the steps until the next call.

        They are not more than the device makes before a signal would have to wait long.
        """
        own = np.array([shutdown.number, self._steps_per_second()], np.float32)
        said = distributed.allgather(own)
        return signal_name(int(said[:, 0].max())), max(int(_CHUNK_SECONDS * said[0, 1]), 1)

    def _save(self, step: int, state: State, pending: _Pending | None, leaving: bool) -> bool:
        """Save what is due at a step, after its row; returns whether `pending` was finished."""
        training = self._training
        resumable = training.resumes_at(step) or (leaving and step < training.steps)
        if not (training.keeps_at(step) or resumable):
            return False
        if pending:
            self._finish(pending)
        with jax.transfer_guard("allow"):  # Orbax copies as it likes
            # A resumed run does not come by this step again: what is kept of it must be on disk.
            training.keep(step, state, resumable=resumable)
            if resumable:
                self._states.save(step, training.saved(state))
        return True

    def _finish(self, pending: _Pending) -> None:
        """Wait for the results of a chunk, and write them."""
        results = jax.device_get(pending.results)
        self._read.append((time.perf_counter(), pending.step))
        speed = self._steps_per_second()
        chunk = Chunk(pending.before, pending.step, results, speed, self._read_newest)
        self._bar.move_to(pending.step, self._training.write(chunk))

    def _steps_per_second(self) -> float:
        """Over the last chunks, evaluations and saves included.

        The last chunk alone does not tell: where a device computes while it is given work (a CPU
        does), the results of two chunks can be read at the same moment.
        """
        (then, before), (now, step) = self._read[0], self._read[-1]
        return (step - before) / (now - then) if step > before else 0.0


def _close(part: Any, error: BaseException | None) -> None:
    """Close a part of the loop, unless a process failed alone: it must not wait for its peers.

    After a signal or divergence all processes close together.
    """
    together = error is None or isinstance(error, Interrupted | NonFiniteLoss)
    if together or not distributed.is_distributed():
        part.close()
