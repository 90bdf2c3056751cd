"""Command-line entry point: `python -m implicit_reasoning VERB --flag=value ...`.

Each command calls one function. `implicit_reasoning.commands.VERBS` is the table of commands.
`errors.Exit` lists the exit codes.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import Any

from implicit_reasoning.commands import VERBS, Verb
from implicit_reasoning.commands.table import CACHE_FLAG, all_flags
from implicit_reasoning.config import parse_flags
from implicit_reasoning.config.messages import did_you_mean
from implicit_reasoning.errors import Exit, InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return the exit code. `argv` defaults to `sys.argv[1:]`."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if not words or words[0] == "help" or words[0].startswith("-"):
            print(_general(words), end="")
            return Exit.DONE
        return _run(words[0], words[1:])
    except (InputError, OSError, MemoryError) as error:
        return _answer(error)


def _general(words: Sequence[str]) -> str:
    """Return the output for a command line that has no command: first steps, help or version."""
    from implicit_reasoning.commands import parser

    if not words:
        return parser.FIRST_STEPS
    if words[0] != "help":
        return parser.answer_options(words)
    if words[1:]:
        return parser.verb_help(_known(words[1]), words[2:])
    return parser.answer_options(["--help"])


def _known(name: str) -> str:
    if name not in VERBS:
        raise InputError(
            f"there is no command {name!r}{did_you_mean(name, VERBS)} (available: "
            f"{', '.join(VERBS)})"
        )
    return name


def _run(name: str, words: Sequence[str]) -> int:
    verb = VERBS[_known(name)]
    if "--help" in words or "-h" in words:
        from implicit_reasoning.commands.parser import verb_help

        print(verb_help(name, words), end="")
        return Exit.DONE
    flags, overrides = _parse(name, verb, words)
    if verb.computes:
        from implicit_reasoning.runtime.compilation import use_cache

        use_cache(flags.pop(CACHE_FLAG))
    if not verb.saves:
        verb.function(flags, overrides)
        return Exit.DONE
    return _train_and_answer(verb, flags, overrides)


def _parse(name: str, verb: Verb, words: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    flags, overrides = parse_flags(words, all_flags(verb))
    missing = [f"--{key}=" for key, flag in verb.flags.items() if flag.required and not flags[key]]
    if missing:
        raise InputError(f"{name} needs {', '.join(missing)}; see `{name} --help`")
    if overrides and not verb.takes_config:
        raise InputError(
            f"{name} takes no configuration, so it takes no --config.* overrides; remove "
            f"--config.{next(iter(overrides))}"
        )
    return flags, overrides


def _train_and_answer(verb: Verb, flags: dict[str, Any], overrides: dict[str, Any]) -> int:
    """Run a command that saves results, and return its exit code.

    In a distributed run, an unexpected exception ends this process at once, so that the other
    processes of the run detect the failure.
    """
    from implicit_reasoning.runtime import distributed
    from implicit_reasoning.sweeps.run import TrialsLost
    from implicit_reasoning.training import Interrupted, NonFiniteLoss, PeerLost

    try:
        verb.function(flags, overrides)
    except Interrupted as stopped:
        return _say(stopped, Exit.INTERRUPTED)
    except (NonFiniteLoss, TrialsLost) as diverged:
        return _say(diverged, Exit.DIVERGED)
    except PeerLost as lost:
        distributed.exit_process(_say(lost, Exit.PEER_LOST))
        return Exit.PEER_LOST
    except Exception as error:
        if distributed.is_distributed():
            distributed.exit_process(_answer(error))
        raise
    return Exit.DONE


def _answer(error: Exception) -> int:
    """Print an error to standard error, and return the exit code for it."""
    if isinstance(error, MemoryError):
        return _say(InputError(f"not enough memory: {error}; choose smaller sizes"), Exit.BAD_INPUT)
    if isinstance(error, InputError | OSError):
        return _say(error, Exit.BAD_INPUT if isinstance(error, InputError) else Exit.NO_FILE)
    traceback.print_exception(error)
    return Exit.FAULT


def _say(error: Exception, code: int) -> int:
    print(f"implicit_reasoning: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
