"""A command line, split into flags and overrides of a configuration.

`argparse` recognises the flags. What it would stop at is collected instead, so that one error names
all faults. It also prints the help: see `implicit_reasoning.commands.parser`.
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

_BARE = "\0"  # stands for the value of a flag without one; no command line can contain it


@dataclass(frozen=True)
class Flag:
    """A flag of a command.

    Attributes:
      help: a sentence about it.
      kind: the type of its value, or of an item of its list: str, int, float, bool, or Path for a
        folder.
      default: the value when it is not given; for a list a tuple.
      many: whether it takes a list. Such a flag may be repeated.
      required: whether it must be given.
      value: what the help shows for its value.
    """

    help: str = ""
    kind: type = str
    default: Any = None
    many: bool = False
    required: bool = False
    value: str = ""

    @classmethod
    def of(cls, like: Any) -> Flag:
        """The flag of a default value, or of a bare type where there is no default."""
        if isinstance(like, Flag):
            return like
        default = None if isinstance(like, type) else like
        return cls(kind=type(example(like)), default=default)

    def parse(self, texts: Sequence[str | bool], name: str) -> Any:
        """The value that was given; `texts` has one element for each time that the flag occurs."""
        if any(text is True for text in texts) and self.kind is not bool:
            raise InputError(f"{name} has no value: write {name}=VALUE")
        if not self.many:
            if len(texts) > 1:
                raise InputError(f"{name} is given twice")
            return self._item(texts[0], name)
        items = [item for text in texts for item in self._split(str(text), name)]
        if not items and self.default:
            raise InputError(f"{name} is an empty list; without it, it is {self.default}")
        return tuple(self._item(item, name) for item in items)

    def _item(self, text: Any, name: str) -> Any:
        if self.kind is Path:
            return local_folder(text, name)
        try:
            # `()`: a flag of experiments whose default is a tuple takes what an override takes.
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
    """The folders of a list; a name with a comma in it counts as one if it is there as a whole."""
    if local_folder(text, name).is_dir():
        return [text]
    missing = [item for item in items if not local_folder(item, name).is_dir()]
    if missing and (meant := _joined(items, name)):
        raise InputError(
            f"{name} has {missing[0]!r}, which is no folder; a comma that belongs to a name is "
            f"written \\, as in {name}='{join_list(meant)}'"
        )
    return items


def _joined(items: list[str], name: str) -> list[str] | None:
    """The items with commas put back where that gives folders that exist; None if nothing does."""
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
    """An `ArgumentParser` whose errors are `InputError`s."""

    def error(self, message: str) -> Any:
        """Raise what is wrong."""
        raise InputError(f"command line: {message}")


def parse_flags(
    argv: Iterable[str], known: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a command line into flags and configuration overrides.

    Args:
      argv: words such as `--workdir=runs/a`, `--workdir runs/a`, `--dry_run` and
        `--config.task.phi=3`. A bool flag never takes the next word; a value that begins with `--`
        needs the `=` form. `--dry-run` is `--dry_run`.
      known: name to `Flag`; or to a default, whose type the value must have; or to a bare type
        (`str`) where there is no default.

    Returns:
      `flags`, with a value for every known name (its default if it is not given), and `overrides`
      for `apply_overrides`: keys without `config.`, values as text (True if bare).

    Raises:
      InputError: one message with all faults: unknown flags (with the nearest), duplicates, stray
        words, values missing or of the wrong type.
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
            faults.append(f"stray word {word!r}: flags look like --name=value")
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
    """Words for argparse (`--name=value`, or stray), overrides, and what is wrong in them."""
    words: list[str] = []
    overrides: dict[str, Any] = {}
    faults: list[str] = []
    for word, name, text in _pairs(argv, table):
        if name is None:
            if word.startswith("-"):  # argparse has a meaning of its own for `--` and `-x`
                faults.append(f"stray word {word!r}: flags look like --name=value")
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
            name = name.replace("-", "_")  # as many commands spell it
        is_bool = name in table and table[name].kind is bool
        if not word.startswith("--") or not name:
            yield word, None, True
        elif equals:
            yield word, name, text
        elif rest and not rest[0].startswith("--") and not is_bool:
            yield word, name, rest.pop(0)
        else:
            yield word, name, True
