"""The launcher interface: a launcher receives trials to train and reports their progress.

A launcher can be stopped at any time, and a different launcher can continue the work. This is
possible because the directories of the trials and the journal of the sweep contain the complete
state. Each launcher decides how to assign trials to devices, processes and machines.
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

_SAYS = "implicit_reasoning: "  # prefix of the commands' error messages


@runtime_checkable
class ProgressReporter(Protocol):
    """The interface through which a launcher reports progress.

    `progress.Progress` implements this interface.
    """

    def note(self, trial: str, state: str, *, step: int | None = None, why: str = "") -> Any:
        """Record that a trial has a new state, such as `directory.DONE`."""
        ...

    def submitted(self, trial: str) -> None:
        """Record that a trial was queued. `look` detects when the trial begins."""
        ...

    def look(self) -> None:
        """Update the progress. Launchers call this method regularly."""
        ...


class LaunchRequest(NamedTuple):
    """The trials to train, and the options of the launcher.

    Attributes:
      files: files of the sweep.
      sweep: the sweep.
      stops: final step by trial name, in the order in which the trials are trained.
      options: options of the launcher from the command line.
    """

    files: SweepLayout
    sweep: Sweep
    stops: Mapping[str, int]
    options: Mapping[str, Any]


@runtime_checkable
class Launcher(Protocol):
    """A function that trains trials.

    The function returns when all trials have ended or a signal has stopped them.
    """

    def __call__(
        self, work: LaunchRequest, board: ProgressReporter, shutdown: ShutdownRequest
    ) -> None:
        """Train the trials.

        Raises:
          InputError: this launcher cannot be used here.
        """
        ...


def last_saved_step(files: Layout) -> int:
    """Return the step from which a trial would resume; 0 if no state is saved."""
    saved = saved_states.newest(files)
    return saved.step if saved else 0


def state_of_exit(code: int | None, said: str) -> tuple[str, str]:
    """Infer the state of a trial from the exit of its process.

    Args:
      code: the exit code of the process; -n if signal n killed the process; None if the code is
        unknown.
      said: the standard error of the process.

    Returns:
      The state, and the reason for the state.
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
        return FAILED, why or "its process ended without a message"
    if code < 0:
        return FAILED, f"its process was killed by signal {-code}" + (f"; {why}" if why else "")
    return FAILED, why or f"its process ended with exit code {code}"


def missing_package(extra: str, module: str, error: ImportError) -> InputError:
    """Create the error for an optional package that cannot be imported.

    Args:
      extra: the extra of this package that installs the optional package, such as "ray".
      module: the module that could not be imported.
      error: the exception of the import.
    """
    return InputError(
        f"the package {module} is needed but cannot be imported ({error}); install it with "
        f"pip install 'implicit_reasoning[{extra}]'"
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
