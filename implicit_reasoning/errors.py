"""The one exception that means "your input is wrong", and the exit codes of all commands."""

from enum import IntEnum


class InputError(ValueError):
    """Bad input from a person: says what is wrong, what was given, and what would be right."""


class Exit(IntEnum):
    """How a command ended; the numbers above 64 are those of `sysexits.h`."""

    DONE = 0
    FAULT = 1  # ours, with a traceback
    BAD_INPUT = 2
    DIVERGED = 3  # or some trials of a sweep diverged or failed
    PEER_LOST = 69  # EX_UNAVAILABLE: another process of a run on many hosts
    NO_FILE = 74  # EX_IOERR
    INTERRUPTED = 75  # EX_TEMPFAIL: a signal came, the state is saved
