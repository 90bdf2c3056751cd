"""Parsing of a command line into flags and configuration overrides.

`argparse` recognizes the flags, but would stop at the first error. This module collects all errors
and reports them in one message. `implicit_reasoning.commands.parser` writes the help.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from implicit_reasoning.config.lists import join_list, split_list
from implicit_reasoning.config.messages import did_you_mean, raise_all
from implicit_reasoning.config.values import example, parse
from implicit_reasoning.errors import InputError
from implicit_reasoning.paths import local_folder

_BARE = "\0"  # stands for the value of a flag that has none; no command line can contain it


@dataclass(frozen=True)
class Flag:
    """A flag of a command.

    Attributes:
      help: description for the help, one sentence.
      kind: type of the value: str, int, float, bool, or Path for a folder. For a list, the type of
        each item.
      default: value if the flag is not given; a tuple if the value is a list.
      many: whether the value is a list. A flag with a list may be repeated.
      required: whether the flag must be given.
      value: placeholder for the value in the help.
    """

    help: str = ""
    kind: type = str
    default: Any = None
    many: bool = False
    required: bool = False
    value: str = ""

    @classmethod
    def of(cls, like: Any) -> Flag:
        """Create a flag from a default value, or from the type of its value.

        Args:
          like: a default value, a type such as `str` for a flag without a default, or a `Flag`,
            which is returned unchanged.
        """
        if isinstance(like, Flag):
            return like
        default = None if isinstance(like, type) else like
        return cls(kind=type(example(like)), default=default)

    def parse(self, texts: Sequence[str | bool], name: str) -> Any:
        """Convert the text that follows this flag on a command line to a value.

        Args:
          texts: one element for each occurrence of the flag; True if the occurrence has no value.
          name: the flag with its dashes, for error messages.

        Raises:
          InputError: the value is missing, has the wrong type, or is given twice.
        """
        if any(text is True for text in texts) and self.kind is not bool:
            raise InputError(f"{name} has no value: write {name}=VALUE")
        if not self.many:
            if len(texts) > 1:
                raise InputError(f"{name} is given twice")
            return self._item(texts[0], name)
        items = [item for text in texts for item in self._split(str(text), name)]
        if not items and self.default:
            raise InputError(
                f"{name} is an empty list; give at least one item, or omit the flag to use the "
                f"default {self.default}"
            )
        return tuple(self._item(item, name) for item in items)

    def _item(self, text: Any, name: str) -> Any:
        if self.kind is Path:
            return local_folder(text, name)
        try:
            # If the default of an experiment's flag is a tuple, the syntax is that of overrides.
            like = self.default if self.kind is tuple else self.kind()
            return parse(text, like)
        except InputError as error:
            raise InputError(f"{name} {error}") from None

    def _split(self, text: str, name: str) -> list[str]:
        items = split_list(text)
        if "" in items:
            raise InputError(
                f"{name} is {text!r}, which contains an empty item; remove the extra comma"
            )
        if self.kind is Path and len(items) > 1:
            return _folders(text, items, name)
        return items


def _folders(text: str, items: list[str], name: str) -> list[str]:
    """Return `items`, or only the whole text if the whole text names an existing folder.

    Raises:
      InputError: an item is not a folder, but joining items with commas gives existing folders.
    """
    if local_folder(text, name).is_dir():
        return [text]
    missing = [item for item in items if not local_folder(item, name).is_dir()]
    if missing and (meant := _joined(items, name)):
        raise InputError(
            f"{name} contains {missing[0]!r}, which is not a folder; if the name of a "
            "folder contains a comma, put a backslash before the comma, as in "
            f"{name}='{join_list(meant)}'"
        )
    return items


def _joined(items: list[str], name: str) -> list[str] | None:
    """Join neighboring items with commas so that each result is an existing folder.

    Return None if this is not possible.
    """
    if not items:
        return []
    for count in range(len(items), 0, -1):
        whole = ",".join(items[:count])
        if local_folder(whole, name).is_dir():
            rest = _joined(items[count:], name)
            if rest is not None:
                return [whole, *rest]
    return None


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises an `InputError` instead of exiting."""

    def error(self, message: str) -> Any:
        """Raise an `InputError` with this message."""
        raise InputError(f"command line: {message}")


def parse_flags(
    argv: Iterable[str], known: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a command line into flags and configuration overrides.

    Args:
      argv: arguments such as `--workdir=runs/a`, `--workdir runs/a`, `--dry_run` and
        `--config.task.phi=3`. A bool flag does not consume the next argument. A value that begins
        with `--` requires the `=` form. `--dry-run` is equivalent to `--dry_run`.
      known: for each flag name, a `Flag`, a default value, or a type such as `str` if there is no
        default.

    Returns:
      Two dicts, flags and overrides. The first dict has a value for every known flag, which is the
      default if the flag is not given. The second dict is an argument for `apply_overrides`. Its
      keys do not have the prefix `config.`, and its values are text, or True if no value is given.

    Raises:
      InputError: one message lists all faults: unknown flags (with the most similar known flag),
        flags that are given twice, words that are not flags, and values that are missing or have
        the wrong type.
    """
    table = {name: Flag.of(like) for name, like in known.items()}
    parser = Parser(add_help=False, allow_abbrev=False)
    for name in table:
        parser.add_argument(f"--{name}", dest=name, action="append", default=[])
    words, overrides, faults = _normal(list(argv), table)
    given, rest = parser.parse_known_args(words)
    for word in rest:
        name, equals, _ = word.removeprefix("--").partition("=")
        if word.startswith("--") and name and equals:
            faults.append(f"there is no flag --{name}{did_you_mean(name, table, '--')}")
        else:
            faults.append(f"unexpected argument {word!r}; write flags as --name=value")
    flags = {name: flag.default for name, flag in table.items()}
    for name, flag in table.items():
        texts = [True if text == _BARE else text for text in getattr(given, name)]
        try:
            flags[name] = flag.parse(texts, f"--{name}") if texts else flag.default
        except InputError as error:
            faults.append(str(error))
    raise_all(faults, "command line")
    return flags, overrides


def _normal(
    argv: Sequence[str], table: Mapping[str, Flag]
) -> tuple[list[str], dict[str, Any], list[str]]:
    """Split a command line into arguments for argparse, overrides, and messages about faults.

    The arguments for argparse are flags as `--name=value`, and words that are not flags.
    """
    words: list[str] = []
    overrides: dict[str, Any] = {}
    faults: list[str] = []
    for word, name, text in _pairs(argv, table):
        if name is None:
            if word.startswith("-"):  # argparse would give `--` and `-x` a special meaning
                faults.append(f"unexpected argument {word!r}; write flags as --name=value")
            else:
                words.append(word)
        elif not name.startswith("config."):
            words.append(f"--{name}={_BARE if text is True else text}")
        elif (key := name.removeprefix("config.")) in overrides:
            faults.append(f"--{name} is given twice")
        else:
            overrides[key] = text
    return words, overrides, faults


def _pairs(
    argv: Sequence[str], table: Mapping[str, Flag]
) -> Iterator[tuple[str, str | None, str | bool]]:
    """Yield `(word, name, text)` for each flag or other word of a command line.

    `name` is the name of the flag, or None if the word is not a flag. `text` is the text of the
    value, or True if the flag has no value.
    """
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        if not name.startswith("config."):
            name = name.replace("-", "_")  # flags may be written with hyphens
        is_bool = name in table and table[name].kind is bool
        if not word.startswith("--") or not name:
            yield word, None, True
        elif equals:
            yield word, name, text
        elif rest and not rest[0].startswith("--") and not is_bool:
            yield word, name, rest.pop(0)
        else:
            yield word, name, True
