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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict
from tqdm import tqdm

from implicit_reasoning.errors import InputError
from implicit_reasoning.files import write_npz
from implicit_reasoning.runs import Checkpoints, Damaged, Layout, Run
from implicit_reasoning.training import directory, distributed, profiling, setup, sharding
from implicit_reasoning.training.evaluation import NEVER, Evaluation, Outcome
from implicit_reasoning.training.interruption import Interrupted, Wish, signal_name, wishes
from implicit_reasoning.training.optimizer import Hyper
from implicit_reasoning.training.phases import Splits
from implicit_reasoning.training.schedule import Schedule
from implicit_reasoning.training.step import TrainState
from implicit_reasoning.training.writers import MetricsFile, Row, TensorBoard
from implicit_reasoning.worlds import Dataset

_CHUNK_SECONDS = 2.0  # a signal is answered within about two of these
_KEPT_RESUMES = 2
_CLOCKED = 10  # chunks that the speed is measured over


class NonFiniteLoss(Exception):
    """The loss or its gradient was not finite; parameters are as they were before that step."""

    def __init__(self, step: int):
        super().__init__(
            f"the loss or its gradient was not finite at step {step}; parameters were not changed. "
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
    files = Layout(Path(workdir))
    setup.check_config(config)
    stop = config.steps if stop_at is None else stop_at
    if not 0 <= stop <= config.steps:
        raise InputError(f"stop_at is {stop}; it must be between 0 and steps = {config.steps}")
    distributed.join(config.distributed)
    with distributed.watched():
        # Whatever can be wrong with a new run is found before anything is made.
        dataset = directory.open_dataset(files, config)
        if distributed.many():
            distributed.check_alike(directory.identity(config, stop, dataset))
        trainer = Trainer(config, dataset, files)
        with directory.exclusive(files), wishes() as wish:
            directory.begin(files, config, dataset)
            trainer.run(stop, wish)
    return Run(workdir)


@dataclass(frozen=True)
class _Pending:
    """What the device will know at a step, while it still computes."""

    step: int
    snapshot: dict[str, Any]
    outcome: Outcome | None


class Trainer:
    """One run in progress."""

    def __init__(self, config: ConfigDict, dataset: Dataset, files: Layout):
        """Build everything from the configuration; nothing is written yet."""
        self._config, self._files = config, files
        self._compiled = profiling.compiles()
        self._program = program = setup.make_program(config, dataset)
        self._schedule = Schedule.from_config(config)
        self._evaluation = Evaluation(program.recipe.model, dataset, program.whole)
        self._splits = Splits.of(dataset)
        self._all_splits = [name for name in dataset.splits if len(dataset.probes(name))]
        self._snapshot = jax.jit(self._snapshot_of, out_shardings=program.whole)

    def run(self, stop: int, wish: Wish) -> None:
        """Go on from the last saved state until step `stop`, or until a signal asks to stop."""
        files, writes = self._files, distributed.writes()
        # Closed in reverse order, also when training fails: what was saved must be whole on disk.
        with contextlib.ExitStack() as stack:

            def opened(part: Any) -> Any:
                stack.push(lambda kind, error, trace: _close(part, error))
                return part

            self._resumes = opened(Checkpoints(files.resume, keep=_KEPT_RESUMES))
            self._checkpoints = opened(Checkpoints(files.checkpoints))
            state, step = self._restore()
            if writes:
                directory.record_start(files, max(step, 0))
            self._metrics = writes and opened(MetricsFile(files.metrics, resumed_at=step))
            # What is later was kept by a start whose state is lost, maybe on another mesh.
            self._checkpoints.drop_after(step)
            self._resumes.drop_after(step)
            rows = self._metrics.rows if self._metrics else []
            self._tensorboard = (
                writes
                and self._config.writers.tensorboard
                and opened(TensorBoard(files, self._config, self._all_splits, rows))
            )
            self._bar = opened(self._progress_bar(max(step, 0)))
            self._shown: dict[str, str] = {}
            traced = files.profile if writes and self._config.profile else None
            self._profile = opened(profiling.Profile(traced))
            with jax.transfer_guard("disallow"):
                self._loop(state, step, stop, wish)

    def _progress_bar(self, step: int) -> tqdm[Any]:
        return tqdm(
            total=self._schedule.horizon,
            initial=step,
            unit="step",
            disable=not (self._config.writers.progress and distributed.writes()),
            dynamic_ncols=True,
        )

    def _restore(self) -> tuple[TrainState, int]:
        """The state to go on from and its step, -1 if nothing has happened yet, not even step 0.

        A state that cannot be read is passed over for the one before it: what came after is then
        trained again, and comes out the same.
        """
        self._first_correct = np.full(len(self._evaluation.rows), NEVER, np.int32)
        like = {"state": self._program.like, "first_correct": self._first_correct}
        for step in reversed(self._resumes.steps):
            saved, said = None, ""
            try:
                saved = self._resumes.restore(step, like)
            except Damaged as damage:
                said = str(damage)
            if distributed.gather(np.array([saved is not None], np.float32)).all() and saved:
                self._first_correct = np.array(saved["first_correct"])
                return saved["state"], step
            said = said or f"the checkpoint of step {step} cannot be read by another process"
            print(f"implicit_reasoning: {said}; trying the one before it", file=sys.stderr)
        if self._resumes.steps:
            raise InputError(
                f"no state in {self._files.resume} can be read; remove that folder to train again "
                "from step 0, or choose another --workdir"
            )
        return self._program.init(self._program.init_key), NEVER

    def _loop(self, state: TrainState, step: int, stop: int, wish: Wish) -> None:
        self._finished = collections.deque([(time.perf_counter(), max(step, 0))], maxlen=_CLOCKED)
        program = self._program
        pending: _Pending | None = None
        if step == NEVER:
            step = 0
            pending = self._arrive(step, state)
            self._keep(step, state, pending, step == stop)
            pending = None
        while step < stop:
            asked, patience = self._agree(wish)
            if asked:
                self._keep(step, state, pending, True)
                raise Interrupted(step, asked)
            previous, step = step, min(self._schedule.next_event(step), stop, step + patience)
            self._profile.next_chunk(state)
            steps = sharding.put_number(step - previous, program.whole)
            state = program.advance(state, program.rows, program.hyper, program.stream_key, steps)
            if pending:
                self._finish(pending)
            pending = self._arrive(step, state)
            if self._keep(step, state, pending, step == stop):
                pending = None

    def _agree(self, wish: Wish) -> tuple[str | None, int]:
        """A signal that any process got, and how many steps to go before asking again.

        Not more than the device gets done before a signal would have to wait long.
        """
        own = np.array([wish.number, self._steps_per_second()], np.float32)
        said = distributed.gather(own)
        return signal_name(int(said[:, 0].max())), max(int(_CHUNK_SECONDS * said[0, 1]), 1)

    def _arrive(self, step: int, state: TrainState) -> _Pending:
        """Start what has to be computed at a step, without waiting for it."""
        evaluate = step in self._schedule.evaluations
        outcome = self._evaluation.launch(state.params) if evaluate else None
        return _Pending(step, self._snapshot(state, self._program.hyper), outcome)

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
                self._resumes.save(step, {"state": state, "first_correct": self._first_correct})
        if resume and distributed.writes():
            rows, first = self._evaluation.rows, self._first_correct
            write_npz(self._files.first_correct, {"row": rows, "step": first})
        return True

    def _finish(self, pending: _Pending) -> None:
        """Read what the device says of a step; write its row if it has one."""
        snapshot = jax.device_get(pending.snapshot)
        if not snapshot["finite"]:
            raise NonFiniteLoss(int(snapshot["step"]))
        step = pending.step
        self._finished.append((time.perf_counter(), step))
        self._bar.update(step - self._bar.n)
        if step in self._schedule.rows:
            self._write(pending, snapshot)

    def _write(self, pending: _Pending, snapshot: dict[str, Any]) -> None:
        step = pending.step
        row: Row = {"step": step, **self._training_metrics(step, snapshot)}
        if pending.outcome is not None:
            outcome = jax.device_get(pending.outcome)
            row |= self._evaluation.summary(outcome)
            self._first_correct = self._evaluation.first_correct(self._first_correct, step, outcome)
        if not self._metrics:
            return
        row |= {"time": time.time(), "steps_per_second": self._steps_per_second()}
        row |= profiling.compiles().since(self._compiled)
        self._metrics.write(row)
        if self._tensorboard:
            self._tensorboard.write(row)
        self._show(row)

    def _steps_per_second(self) -> float:
        """Over the last chunks, evaluations and saves included.

        Not over the last one alone: where a device computes while it is being told to (CPUs do),
        two chunks can be heard of in the same moment.
        """
        (then, before), (now, step) = self._finished[0], self._finished[-1]
        return (step - before) / (now - then) if step > before else 0.0

    def _training_metrics(self, step: int, snapshot: dict[str, Any]) -> Row:
        """Means over the steps since the last row, and what holds at this step."""
        since = np.arange(self._schedule.previous_row(step), step) % self._config.log_every
        means = {
            name: float(values[since].mean(dtype=np.float64))
            for name, values in snapshot["window"].items()
            if len(since)
        }
        return means | {name: float(snapshot[name]) for name in ("param_norm", "learning_rate")}

    def _show(self, row: Row) -> None:
        """Beside the bar: the newest loss, and accuracies on trained and held-out chains."""
        keys = {
            "loss": "loss",
            "memorise": f"accuracy/{self._splits.trained}",
            "generalise": f"accuracy/{self._splits.held_out}",
        }
        self._shown |= {name: f"{row[key]:.3f}" for name, key in keys.items() if key in row}
        self._bar.set_postfix(self._shown)

    def _snapshot_of(self, state: TrainState, hyper: Hyper) -> dict[str, Any]:
        """Copies of what the host reads late, as the state itself is donated to the next chunk."""
        return {
            "step": state.step,
            "finite": state.finite,
            "window": state.window,
            "param_norm": optax.tree.norm(state.params),
            "learning_rate": hyper.learning_rate * self._program.recipe.relative_rate(state.step),
        }


def _close(part: Any, error: BaseException | None) -> None:
    """Close a part of a run; but after an error of its own a process must not wait for its peers.

    A signal and divergence all processes leave with alike.
    """
    alike = error is None or isinstance(error, Interrupted | NonFiniteLoss)
    if alike or not distributed.many():
        part.close()
