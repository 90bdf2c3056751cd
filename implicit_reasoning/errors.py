"""The exception for invalid user input, and the exit codes of all commands."""

from enum import IntEnum


class InputError(ValueError):
    """Invalid user input. The message says what is wrong, what was given, and what is valid."""


class Exit(IntEnum):
    """The exit codes of commands. Codes above 64 have the meaning that `sysexits.h` gives them."""

    DONE = 0
    FAULT = 1  # an unexpected error, printed with its traceback
    BAD_INPUT = 2
    DIVERGED = 3  # a loss was not finite, or trials of a sweep diverged or failed
    PEER_LOST = 69  # EX_UNAVAILABLE: another process of a distributed run was lost
    NO_FILE = 74  # EX_IOERR
    INTERRUPTED = 75  # EX_TEMPFAIL: the run stopped on a signal after saving its state
