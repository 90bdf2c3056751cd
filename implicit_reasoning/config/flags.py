"""Parsing of a command line into flags and configuration overrides.

`argparse` recognizes the flags. Errors at which it would stop are collected instead, so that one
message lists all faults. `implicit_reasoning.commands.parser` uses `argparse` for the help.
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

_BARE = "\0"  # placeholder value of a flag without a value; no command line can contain it


@dataclass(frozen=True)
class Flag:
    """A flag of a command.

    Attributes:
      help: one sentence.
      kind: type of the value, or of each item of a list: str, int, float, bool, or Path for a
        folder.
      default: value if the flag is not given; a tuple for a list.
      many: whether the value is a list. Such a flag may be repeated.
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
        """Return the flag for a default value, or for a bare type if there is no default."""
        if isinstance(like, Flag):
            return like
        default = None if isinstance(like, type) else like
        return cls(kind=type(example(like)), default=default)

    def parse(self, texts: Sequence[str | bool], name: str) -> Any:
        """Return the parsed value.

        Args:
          texts: one element for each occurrence of the flag; True stands for a missing value.
          name: the flag as written, for error messages.

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
                f"{name} is an empty list; give an item, or omit the flag for {self.default}"
            )
        return tuple(self._item(item, name) for item in items)

    def _item(self, text: Any, name: str) -> Any:
        if self.kind is Path:
            return local_folder(text, name)
        try:
            # For flags of experiments whose default is a tuple, the syntax is that of overrides.
            like = self.default if self.kind is tuple else self.kind()
            return parse(text, like)
        except InputError as error:
            raise InputError(f"{name} {error}") from None

    def _split(self, text: str, name: str) -> list[str]:
        items = split_list(text)
        if "" in items:
            raise InputError(f"{name} is {text!r}, which has an empty item")
        if self.kind is Path and len(items) > 1:
            return _folders(text, items, name)
        return items


def _folders(text: str, items: list[str], name: str) -> list[str]:
    """Return the folders of a list, or only the whole text if it names an existing folder."""
    if local_folder(text, name).is_dir():
        return [text]
    missing = [item for item in items if not local_folder(item, name).is_dir()]
    if missing and (meant := _joined(items, name)):
        raise InputError(
            f"{name} has {missing[0]!r}, which is not a folder; write a comma inside a name as \\, "
            f"such as in {name}='{join_list(meant)}'"
        )
    return items


def _joined(items: list[str], name: str) -> list[str] | None:
    """Return the items with commas restored so that every folder exists, or None if that fails."""
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
    """An `ArgumentParser` that raises `InputError`."""

    def error(self, message: str) -> Any:
        """Raise an `InputError` with the message."""
        raise InputError(f"command line: {message}")


def parse_flags(
    argv: Iterable[str], known: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a command line into flags and configuration overrides.

    Args:
      argv: arguments such as `--workdir=runs/a`, `--workdir runs/a`, `--dry_run` and
        `--config.task.phi=3`. A bool flag does not consume the next argument. A value that begins
        with `--` requires the `=` form. `--dry-run` is equivalent to `--dry_run`.
      known: for each name a `Flag`, a default (the value must have its type), or a bare type such
        as `str` if there is no default.

    Returns:
      `flags`, with a value for every known name (the default if it is not given), and `overrides`
      for `apply_overrides`: keys without `config.`, values as text (True if there is no value).

    Raises:
      InputError: one message lists all faults: unknown flags (with the most similar known flag),
        duplicates, stray words, and values that are missing or have the wrong type.
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
    """Return arguments for argparse (`--name=value` or stray), overrides, and faults."""
    words: list[str] = []
    overrides: dict[str, Any] = {}
    faults: list[str] = []
    for word, name, text in _pairs(argv, table):
        if name is None:
            if word.startswith("-"):  # argparse treats `--` and `-x` specially
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
    """Yield (word, flag name or None when stray, its text or True when bare)."""
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        if not name.startswith("config."):
            name = name.replace("-", "_")  # accept hyphens instead of underscores
        is_bool = name in table and table[name].kind is bool
        if not word.startswith("--") or not name:
            yield word, None, True
        elif equals:
            yield word, name, text
        elif rest and not rest[0].startswith("--") and not is_bool:
            yield word, name, rest.pop(0)
        else:
            yield word, name, True
