"""Training of one trial in a process: `python -m implicit_reasoning.sweeps.worker DIR TRIAL STOP`.

The launchers `local` and `slurm` start this module. The launcher `ray` calls `run_trial`. DIR is
the directory of the sweep, from which the worker reads the configuration of the trial. An optional
fourth argument lists the CPU cores to use. The exit codes are the exit codes of the command
`train`.
"""

from __future__ import annotations

import ctypes
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from implicit_reasoning.errors import Exit, InputError
from implicit_reasoning.runtime.compilation import use_cache
from implicit_reasoning.runtime.machine import pin_to_cores
from implicit_reasoning.sweeps.directory import SweepLayout, load, trial_config
from implicit_reasoning.training import Interrupted, NonFiniteLoss, train

_PR_SET_PDEATHSIG = 1  # defined in <sys/prctl.h>
_CODES: tuple[tuple[type[BaseException], Exit], ...] = (
    (Interrupted, Exit.INTERRUPTED),
    (NonFiniteLoss, Exit.DIVERGED),
    (InputError, Exit.BAD_INPUT),
    (OSError, Exit.NO_FILE),
    (MemoryError, Exit.BAD_INPUT),
)


def run_trial(directory: str | Path, trial: str, stop: int) -> tuple[int, str]:
    """Train a trial until step `stop`, starting from its saved state if there is one.

    Args:
      directory: directory of the sweep.
      trial: name of the trial.
      stop: step at which to stop.

    Returns:
      The exit code of the command `train`, and the error message. The message is empty after
      success.
    """
    use_cache()
    files = SweepLayout(Path(directory))
    try:
        config = trial_config(load(files), trial).copy_and_resolve_references()
        with config.unlocked():
            config.writers.progress = False
        train(config, files.trial(trial).workdir, stop_at=stop)
    except Exception as error:
        for kind, code in _CODES:
            if isinstance(error, kind):
                return code, f"implicit_reasoning: {error}"
        return Exit.FAULT, traceback.format_exc()
    return Exit.DONE, ""


def main(argv: Sequence[str]) -> int:
    """Train a trial, print any error to standard error, and return the exit code.

    Args:
      argv: the arguments DIR, TRIAL, STOP and optionally CORES of the module.
    """
    directory, trial, stop, *cores = argv
    if cores:  # before other code reads the number of cores
        pin_to_cores([int(core) for core in cores[0].split(",")])
        _end_with_parent()
    code, said = run_trial(directory, trial, int(stop))
    print(said, file=sys.stderr, end="\n" if said else "")
    return code


def _end_with_parent() -> None:
    """Raise SIGTERM in this process when the launcher ends, so that the trial's state is saved.

    This works on Linux only; on other systems, the function does nothing.
    """
    if sys.platform != "linux":
        return

    def leave(*_: Any) -> None:
        # Linux sends the signal once per thread of the launcher. A second SIGTERM would kill the
        # process.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.raise_signal(signal.SIGTERM)

    signal.signal(signal.SIGUSR1, leave)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGUSR1))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
