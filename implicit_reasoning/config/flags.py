"""A command line, split into flags and overrides of a configuration."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from implicit_reasoning.config.messages import did_you_mean, raise_all
from implicit_reasoning.config.values import example, parse
from implicit_reasoning.errors import InputError


def parse_flags(
    argv: Iterable[str], known: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a command line into flags and configuration overrides.

    Args:
      argv: words such as `--workdir=runs/a`, `--workdir runs/a`, `--dry_run` and
        `--config.task.phi=3`. A bool flag never takes the next word; a value that begins with `--`
        needs the `=` form.
      known: name to default, whose type the value must have; a bare type (`str`) means no default.

    Returns:
      `flags`, with a value for every known name (None where there is no default and none is given),
      and `overrides` for `apply_overrides`: keys without `config.`, values as text (True if bare).

    Raises:
      InputError: one message with all faults: unknown flags (with the nearest), duplicates, stray
        words, values missing or of the wrong type.
    """
    likes = {name: example(like) for name, like in known.items()}
    flags = {name: None if isinstance(like, type) else like for name, like in known.items()}
    overrides: dict[str, Any] = {}
    seen: set[str] = set()
    faults: list[str] = []
    for word, name, given in _words(list(argv), likes):
        if name is None:
            faults.append(f"stray word {word!r}: flags look like --name=value")
        elif name in seen:
            faults.append(f"--{name} is given twice")
        elif name.startswith("config."):
            overrides[name.removeprefix("config.")] = given
        elif name not in likes:
            faults.append(f"there is no flag --{name}{did_you_mean(name, likes, '--')}")
        elif given is True and not isinstance(likes[name], bool):
            faults.append(f"--{name} has no value: write --{name}=VALUE")
        else:
            try:
                flags[name] = parse(given, likes[name])
            except InputError as error:
                faults.append(f"--{name} {error}")
        seen.update([name] if name else [])
    raise_all(faults, "command line")
    return flags, overrides


def _words(
    argv: Sequence[str], likes: Mapping[str, Any]
) -> Iterator[tuple[str, str | None, str | bool]]:
    """Yield (word, flag name or None when stray, its text or True when bare)."""
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        if not name.startswith("config."):
            name = name.replace("-", "_")  # as many commands spell it
        if not word.startswith("--") or not name:
            yield word, None, True
        elif equals:
            yield word, name, text
        elif rest and not rest[0].startswith("--") and not isinstance(likes.get(name), bool):
            yield word, name, rest.pop(0)
        else:
            yield word, name, True
