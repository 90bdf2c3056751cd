"""What a launcher is: it takes work, and says what becomes of it.

A launcher may be stopped at any time and another one may go on: all that is kept is in the trials'
directories and in the sweep's journal. How trials are dealt out to devices, processes and machines
is its own affair.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from implicit_reasoning import renames
from implicit_reasoning.errors import Exit, InputError
from implicit_reasoning.runs import Layout
from implicit_reasoning.runtime.shutdown import ShutdownRequest
from implicit_reasoning.sweeps.definition import Sweep
from implicit_reasoning.sweeps.directory import DIVERGED, DONE, FAILED, STOPPED, SweepLayout
from implicit_reasoning.training import saved_states

_SAYS = "implicit_reasoning: "  # before what the commands say of an error


@runtime_checkable
class ProgressReporter(Protocol):
    """Where a launcher says what happens; see `progress.py`."""

    def note(self, trial: str, state: str, *, step: int | None = None, why: str = "") -> Any:
        """Something happened to a trial: one of the states of `directory.py`."""
        ...

    def submitted(self, trial: str) -> None:
        """A trial was handed to somebody who will start it; `look` sees when it has begun."""
        ...

    def look(self) -> None:
        """Nothing may have happened, but time has passed."""
        ...


class LaunchRequest(NamedTuple):
    """What is to be done.

    Attributes:
      files: of the sweep.
      sweep: what it is.
      stops: names of the trials to go on with, in order, and the step at which each is to stop.
      options: of the launcher, from the command line.
    """

    files: SweepLayout
    sweep: Sweep
    stops: Mapping[str, int]
    options: Mapping[str, Any]


@runtime_checkable
class Launcher(Protocol):
    """Does work; returns when all of it is done, failed, or stopped by a signal."""

    def __call__(
        self, work: LaunchRequest, board: ProgressReporter, shutdown: ShutdownRequest
    ) -> None:
        """Do it.

        Raises:
          InputError: it cannot be done here at all.
        """
        ...


def last_saved_step(files: Layout) -> int:
    """The step that a trial would go on from."""
    saved = saved_states.newest(files)
    return saved.step if saved else 0


def state_of_exit(code: int | None, said: str) -> tuple[str, str]:
    """What the end of a trial's process means: a state, and why.

    Args:
      code: its exit code; negative: the signal that killed it; None: nobody knows.
      said: what it wrote to standard error.
    """
    if code == 0:
        return DONE, ""
    lines = [line for line in said.splitlines() if line.strip()]
    own = [line.partition(_SAYS)[2] for line in lines if _SAYS in line]
    why = own[-1] if own else lines[-1] if lines else ""
    if code == Exit.INTERRUPTED:
        return STOPPED, why
    if code == Exit.DIVERGED:
        return DIVERGED, why
    if code is None:
        return FAILED, why or "its process is gone"
    if code < 0:
        return FAILED, f"its process was killed by signal {-code}" + (f"; {why}" if why else "")
    return FAILED, why or f"its process ended with exit code {code}"


def missing_package(extra: str, module: str, error: ImportError) -> InputError:
    """The answer to a package that is not there."""
    return InputError(
        f"this needs the package {module} ({error}): pip install 'implicit_reasoning[{extra}]'"
    )


__getattr__ = renames.old_names(
    __name__,
    {
        "Board": "ProgressReporter",
        "Work": "LaunchRequest",
        "reached": "last_saved_step",
        "outcome": "state_of_exit",
        "need": "missing_package",
    },
)
