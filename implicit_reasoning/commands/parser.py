"""Help, version and shell completion, generated from the table of commands.

The module uses argparse and shtab.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import implicit_reasoning
from implicit_reasoning.commands.table import VERBS, Verb, all_flags
from implicit_reasoning.config import Flag, Parser, join_list
from implicit_reasoning.config.messages import did_you_mean
from implicit_reasoning.errors import InputError

PROGRAM = "implicit_reasoning"
SHELLS = ("bash", "zsh", "tcsh")

_OVERRIDES = """\
configuration:
  --config.GROUP.FIELD=VALUE replaces the value of a field, as in --config.task.phi=5 or
  --config.optimizer.learning_rate=3e-4. The value must have the type of the field. An int may be
  written as 1e5 or 100_000, a bool as true or false, and a tuple as 1,2,3.
  `--config=FILE --help` lists the fields of a configuration, with their values.
"""
_LISTS = """\
lists:
  Commas separate items, and blanks around them are ignored. Write a comma inside an item as \\,
  (in quotes: '--workdir=a\\,b'). The flag may also be repeated, once for each item.
"""
FIRST_STEPS = f"""\
{PROGRAM} trains transformers on small worlds of known facts, and analyses how they reason.

Begin with these commands:
  {PROGRAM} doctor
  {PROGRAM} train --config=composition:pocket --workdir=runs/pocket
  {PROGRAM} report --workdir=runs/pocket
`{PROGRAM} --help` lists all commands. `{PROGRAM} VERB --help` lists the flags of one command.
`python -m implicit_reasoning` does the same as `{PROGRAM}`.
"""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """A help formatter that shows flags in the form `--name=VALUE`."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=28, width=100)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        return f"{', '.join(action.option_strings)}={action.metavar}"


def make_parser() -> tuple[Parser, dict[str, argparse.ArgumentParser]]:
    """Create the parser of the program.

    Returns:
      The parser, and a dict of the subparsers by command name.
    """
    parser = Parser(
        prog=PROGRAM,
        description="Controlled experiments on how transformers learn to reason.",
        epilog=f"`{PROGRAM} VERB --help` explains one command.\n\nExit codes: 0: done; 2: invalid "
        "input; 3: the loss was not finite; 69: a process of the run was\nlost; 74: a file could "
        "not be read or written; 75: the command stopped after a signal, and the\nstate was saved.",
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=f"{PROGRAM} {implicit_reasoning.__version__}"
    )
    parser.add_argument(
        "--print-completion",
        choices=SHELLS,
        metavar="SHELL",
        help="print the completion script of a shell (bash, zsh or tcsh)",
    )
    commands = parser.add_subparsers(title="commands", metavar="VERB", parser_class=Parser)
    return parser, {name: _add_verb(commands, name, verb) for name, verb in VERBS.items()}


def _add_verb(commands: Any, name: str, verb: Verb) -> argparse.ArgumentParser:
    notes = [_OVERRIDES] if verb.takes_config else []
    notes += [_LISTS] if any(flag.many for flag in verb.flags.values()) else []
    words = " ".join(f"--{key}={flag.value}" for key, flag in verb.flags.items() if flag.required)
    more = " [--config.GROUP.FIELD=VALUE ...]" if verb.takes_config else ""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=verb.summary,
        description=verb.summary,
        usage=f"{PROGRAM} {name} {words} [flags]{more}".replace("  ", " "),
        epilog="\n".join(notes),
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    required = parser.add_argument_group("required flags")
    others = parser.add_argument_group("other flags")
    for key, flag in all_flags(verb).items():
        group = required if flag.required else others
        group.add_argument(
            f"--{key}", metavar=flag_value(flag), help=flag_help(flag).replace("%", "%%")
        )
    return parser


def flag_value(flag: Flag) -> str:
    """Return the placeholder for the value of a flag in the help, such as `DIR`."""
    return flag.value or ("true|false" if flag.kind is bool else flag.kind.__name__.upper())


def flag_help(flag: Flag) -> str:
    """Return the help text of a flag, with its type and default."""
    kind = "folder" if flag.kind is Path else flag.kind.__name__
    notes = [f"list of {kind}" if flag.many else kind]
    if flag.default not in (None, ()):
        notes.append(f"default: {_shown(flag.default)}")
    return f"{flag.help} ({'; '.join(notes)})"


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return join_list(map(str, default))
    return str(default)


def verb_help(name: str, words: Sequence[str]) -> str:
    """Return the help text of a command.

    If `words` contains `--config=FILE`, the text also lists the fields of this configuration.

    Args:
      name: name of the command.
      words: the arguments of the command.
    """
    text = make_parser()[1][name].format_help()
    spec = _config_of(words)
    if spec is None or not VERBS[name].takes_config:
        return text
    return f"{text}\n{_fields(spec, name)}"


def _config_of(words: Sequence[str]) -> str | None:
    for word, following in zip(words, [*words, ""][1:], strict=True):
        if word.startswith("--config="):
            return word.removeprefix("--config=")
        if word == "--config" and not following.startswith("-"):
            return following
    return None


def _fields(spec: str, verb: str) -> str:
    """Return a list of the fields of a configuration, with their values and known meanings."""
    from implicit_reasoning.config import documentation, flatten, load_config

    config = load_config(spec)
    if verb == "dictionaries":
        from implicit_reasoning.dictionaries.fields import schema
    else:
        from implicit_reasoning.runs.fields import schema
    known = documentation(config, schema(config))
    lines = [f"fields of {spec} and their values:"]
    for key, value in flatten(config).items():
        shown = join_list(map(str, value)) if isinstance(value, tuple) else str(value)
        lines.append(f"  --config.{key}={shown}")
        if key in known:
            lines.append(f"      {known[key]}")
    return "\n".join(lines) + "\n"


def answer_options(words: Sequence[str]) -> str:
    """Return the output for a command line that begins with an option instead of a command.

    Args:
      words: the command line, such as `["--version"]`.

    Raises:
      InputError: the option or its value is unknown.
    """
    option, equals, value = words[0].partition("=")
    if option in ("-h", "--help"):
        return make_parser()[0].format_help()
    if option == "--version":
        return f"{PROGRAM} {implicit_reasoning.__version__}\n"
    if option == "--print-completion":
        return completion(value if equals else "".join(words[1:2]))
    options = ("--help", "--version", "--print-completion")
    raise InputError(
        f"there is no option {option}{did_you_mean(option, options)}; write the command first, as "
        f"in `{PROGRAM} doctor`"
    )


def completion(shell: str) -> str:
    """Return the completion script for a shell, which completes commands and flags.

    Args:
      shell: one of `SHELLS`.

    Raises:
      InputError: the shell is not supported.
    """
    import shtab

    if shell not in SHELLS:
        raise InputError(f"--print-completion is {shell!r}; it must be one of {', '.join(SHELLS)}")
    parser, verbs = make_parser()
    for name, sub in verbs.items():
        flags = VERBS[name].flags
        for action in sub._actions:
            # shtab reads the attribute `complete`, which argparse does not declare.
            if (flag := flags.get(action.dest)) and flag.kind is Path:
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
            elif action.dest == "config":
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell))
