"""Configurations: loading them, overriding their fields by type, comparing and storing them.

A configuration is a locked tree (`ml_collections.ConfigDict`) whose leaves are None, bool, int,
float, str, or a tuple of those. *Sequences are always tuples*: `load_config`, `apply_overrides` and
`from_json` turn lists into tuples, so that what was written as JSON reads back equal.

The parser is our own because `ml_collections.config_flags` reads `sys.argv`, refuses `1e5` for an
int and cannot set a field whose default is None; and because commands and sweeps should share one
set of checks. Every function reports *all* faults at once, as one `InputError`.
"""

from __future__ import annotations

import ast
import copy
import difflib
import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from ml_collections import ConfigDict

from implicit_reasoning import imports
from implicit_reasoning.errors import InputError

T = TypeVar("T")

_BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_NONES = ("none", "null")
# What a bare type stands for where a default is expected: a flag without one, an empty placeholder.
_EXAMPLES: dict[type, Any] = {bool: False, int: 0, float: 0.0, str: "", tuple: (), list: ()}


class Absent:
    """The value of a key that one of two configurations does not have."""

    def __repr__(self) -> str:
        return "(absent)"


ABSENT = Absent()


class Change(NamedTuple):
    """A field that differs between two configurations; a side without the key holds `ABSENT`."""

    key: str
    old: Any
    new: Any


# ---- loading -----------------------------------------------------------------------------------


def load_config(spec: str) -> ConfigDict:
    """Load the configuration that `spec` names, and lock it.

    Args:
      spec: `path/to/file.py[:arg]` or `package.module[:arg]`, whose `get_config(arg)` is called;
        without `:arg` it is called with its own default, or with `""` when it has none (`choose`
        then lists what there is).

    Returns:
      The locked configuration, with tuples for lists.

    Raises:
      InputError: no such file or module, no `get_config`, an argument it does not take, or a leaf
        that JSON cannot hold. An exception raised inside the file keeps its own traceback.
    """
    where, _, arg = spec.partition(":")
    get_config = getattr(imports.load(where, "configuration"), "get_config", None)
    if not callable(get_config):
        raise InputError(f"{where} has no function get_config(), so it is no configuration file")
    config = _call(get_config, where, arg)
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"get_config() in {where} returned a {type(config).__name__}, not a ConfigDict"
        )
    return _with_tuples(config).lock()


def choose(arg: str, options: Mapping[str, T]) -> T:
    """Pick `options[arg]`; an unknown `arg` is an `InputError` that suggests and lists the options.

    For the argument of `get_config`: `choose(scale, {"pocket": 128, "desk": 256, "paper": 768})`.
    """
    if arg in options:
        return options[arg]
    given = f"unknown choice {arg!r}" if arg else "a choice is missing"
    near = _did_you_mean(arg, options)
    raise InputError(f"{given}{near} (there are: {', '.join(options)})")


def _call(get_config: Callable[..., Any], where: str, arg: str) -> Any:
    parameters = list(inspect.signature(get_config).parameters.values())
    if arg and not parameters:
        raise InputError(f"get_config() in {where} takes no argument, was given {arg!r}")
    if arg:
        return get_config(arg)
    needs_one = any(parameter.default is parameter.empty for parameter in parameters[:1])
    return get_config("") if needs_one else get_config()


# ---- overriding --------------------------------------------------------------------------------


def apply_overrides(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    """Return a locked copy of `config` with some leaves replaced, checked by their default's type.

    Args:
      config: the configuration; it is not changed.
      overrides: dotted leaf key to value: text from a command line, or a Python value from a sweep.
        int: also `1e5`, `100_000` and `1000.0`, but not `0.5`. float: also ints; must be finite.
        bool: true/false/yes/no/1/0 (and no number is a bool). tuple: `1,2,3` or `(1, 2)`, with
        elements of its default's type. A field whose default is None: `none`, a Python literal,
        or else plain text.

    Returns:
      The copy. Fields derived by `get_ref` follow the fields they derive from.

    Raises:
      InputError: one message with all faults: unknown keys (with the nearest), groups, wrong types.
    """
    changed = _with_tuples(config).lock()
    values, faults = parse_overrides(changed, overrides)
    _raise(faults, "configuration override")
    with changed.ignore_type():  # the types were checked above, by our rules
        for key, value in values.items():
            group, name = _owner(changed, key)
            group[name] = value
    return changed


def parse_overrides(
    config: ConfigDict, overrides: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """What `apply_overrides` would set: key to value of the field's type, and all faults."""
    leaves = flatten(config)
    faults: list[str] = []
    values: dict[str, Any] = {}
    for key, given in overrides.items():
        if key in leaves:
            try:
                values[key] = _parse_field(given, *_owner(config, key))
            except InputError as error:
                faults.append(f"{key} {error}")
        else:
            faults.append(_unknown(key, leaves))
    return values, faults


def _owner(config: ConfigDict, key: str) -> tuple[ConfigDict, str]:
    *groups, name = key.split(".")
    for group in groups:
        config = config[group]
    return config, name


def _unknown(key: str, leaves: Mapping[str, Any]) -> str:
    """Say why `key` is no leaf: it names a group, or nothing."""
    inside = [leaf for leaf in leaves if leaf.startswith(f"{key}.")]
    if inside:
        return f"{key} is a group, not a field: set one of {', '.join(inside)}"
    # A leaf's own name without its group is the commonest slip: it goes before overall likeness.
    tail = key.rpartition(".")[2]
    tails = {leaf.rpartition(".")[2] for leaf in leaves}
    namesakes = [leaf for leaf in leaves if leaf.rpartition(".")[2] == tail]
    whole = difflib.get_close_matches(key, leaves, n=1)
    part = difflib.get_close_matches(tail, tails, n=1)
    near = namesakes or whole or [leaf for leaf in leaves if leaf.rpartition(".")[2] in part]
    return f"{key} is not a field{_mean(near)}"


# ---- values by type ----------------------------------------------------------------------------


def _parse_field(given: Any, group: ConfigDict, name: str) -> Any:
    """Parse for one field; `config_dict.placeholder(int)` takes an int or none."""
    default, declared = group[name], group.get_type(name)
    if default is None and declared in _EXAMPLES:
        return None if _is_none(given) else _parse(given, _EXAMPLES[declared])
    return _parse(given, default)


def _example(like: Any) -> Any:
    return _EXAMPLES[like] if isinstance(like, type) else _leaf(like)


def _parse(given: Any, like: Any) -> Any:
    """Convert `given` (text or a Python value) to the type of `like`, or raise `InputError`."""
    if isinstance(given, np.generic):
        given = given.item()
    if like is None:
        return None if _is_none(given) else _literal(given)
    parser = _PARSERS[type(like)]
    return parser(given, like) if parser is _tuple else parser(given)


def _is_none(given: Any) -> bool:
    return given is None or (isinstance(given, str) and given.strip().lower() in _NONES)


def _bool(given: Any) -> bool:
    if isinstance(given, bool):
        return given
    if isinstance(given, str) and given.strip().lower() in _BOOLS:
        return _BOOLS[given.strip().lower()]
    raise _wants("true or false", given)


def _int(given: Any) -> int:
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    if isinstance(given, str):
        try:
            return int(given)
        except ValueError:
            pass
    try:
        number = _float(given)
    except InputError:
        raise _wants("an int", given) from None
    # Above 2**53 a float no longer names one int: write such a number in digits.
    if number.is_integer() and abs(number) <= 2**53:
        return int(number)
    raise _wants("an int", given)


def _float(given: Any) -> float:
    if isinstance(given, (int, float, str)) and not isinstance(given, bool):
        try:
            number = float(given)
        except (ValueError, OverflowError):
            raise _wants("a float", given) from None
        if math.isfinite(number):
            return number
    raise _wants("a finite float", given)


def _str(given: Any) -> str:
    if isinstance(given, str):
        return given
    raise _wants("a string", given)


def _tuple(given: Any, like: tuple[Any, ...]) -> tuple[Any, ...]:
    """Parse elements like the default's: a mix of ints and floats as floats, others as literals."""
    kinds = {type(element) for element in like}
    element = like[0] if len(kinds) == 1 else 0.0 if kinds == {int, float} else None
    if isinstance(given, str):
        given = _split(given)
    if not isinstance(given, (tuple, list)):
        raise _wants("a tuple such as 1,2,3", given)
    try:
        return tuple(_parse(item, element) for item in given)
    except InputError as error:
        raise InputError(f"wants a tuple in which each element {error}") from None


def _split(text: str) -> Sequence[Any]:
    """Split `(1, 2)`, `[1, 2]`, `("a", "b")`, `1,2` or `a,b` into elements; empty text has none."""
    text = text.strip()
    if text[:1] + text[-1:] in ("()", "[]"):
        literal = _literal_or_text(text)
        if isinstance(literal, (tuple, list)):
            return literal
        text = text[1:-1].strip()
    return [item.strip() for item in text.removesuffix(",").split(",")] if text else []


def _literal(given: Any) -> Any:
    """Read text as a Python or JSON literal, and failing that as itself; return it as a leaf."""
    if isinstance(given, str):
        if given.strip().lower() in ("true", "false"):
            return _bool(given)
        given = _literal_or_text(given)
    try:
        return _leaf(given)
    except InputError:
        raise _wants(
            "none, true, false, a finite number, a string or a tuple of these", given
        ) from None


def _literal_or_text(text: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # "\d" is somebody's text, not code
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _leaf(value: Any) -> Any:
    """Return `value` with tuples for lists; what a configuration cannot hold is an `InputError`."""
    if isinstance(value, (tuple, list)):
        return tuple(_leaf(item) for item in value)
    finite = not isinstance(value, float) or math.isfinite(value)
    if value is None or (type(value) in (bool, int, float, str) and finite):
        return value
    raise InputError(f"{value!r} is none of: None, bool, int, finite float, str, tuple of these")


def _wants(wanted: str, given: Any) -> InputError:
    text = repr(given)
    return InputError(f"wants {wanted}, was given {text if len(text) <= 80 else text[:77] + '...'}")


_PARSERS: dict[type, Callable[..., Any]] = {
    bool: _bool,
    int: _int,
    float: _float,
    str: _str,
    tuple: _tuple,
}


# ---- command lines -----------------------------------------------------------------------------


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
    likes = {name: _example(like) for name, like in known.items()}
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
            faults.append(f"there is no flag --{name}{_did_you_mean(name, likes, '--')}")
        elif given is True and not isinstance(likes[name], bool):
            faults.append(f"--{name} has no value: write --{name}=VALUE")
        else:
            try:
                flags[name] = _parse(given, likes[name])
            except InputError as error:
                faults.append(f"--{name} {error}")
        seen.update([name] if name else [])
    _raise(faults, "command line")
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


# ---- storing and comparing ---------------------------------------------------------------------


def flatten(config: ConfigDict) -> dict[str, Any]:
    """Return dotted key to leaf, references resolved; a group with no fields leaves no trace."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= {f"{name}.{key}": leaf for key, leaf in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def to_json(config: ConfigDict) -> dict[str, Any]:
    """Return nested plain dicts for `files.write_json`: references resolved, tuples as lists."""
    return {
        name: to_json(value) if isinstance(value, ConfigDict) else _to_lists(value)
        for name, value in _with_tuples(config).items()
    }


def from_json(value: Any) -> ConfigDict:
    """Return the locked configuration that `to_json` wrote, equal but for references."""
    if not isinstance(value, dict):
        raise InputError(
            f"a stored configuration is a JSON object, this is a {type(value).__name__}"
        )
    try:
        config = ConfigDict(value)
    except ValueError as error:  # a dot in a name
        raise InputError(f"not a stored configuration: {error}") from None
    return _with_tuples(config).lock()


def changed_keys(
    old: ConfigDict,
    new: ConfigDict,
    ignore: Sequence[str] = ("writers", "profile", "mesh", "distributed"),
) -> list[Change]:
    """Return the leaves that differ, sorted by key, without the fields or groups in `ignore`.

    The default ignores what may change between two starts of a run without making it another run.
    """
    before, after = flatten(_with_tuples(old)), flatten(_with_tuples(new))
    differ = (
        Change(key, before.get(key, ABSENT), after.get(key, ABSENT))
        for key in sorted({*before, *after})
    )
    return [
        change
        for change in differ
        if change.old != change.new
        and not any(change.key == name or change.key.startswith(f"{name}.") for name in ignore)
    ]


def _to_lists(value: Any) -> Any:
    return [_to_lists(item) for item in value] if isinstance(value, tuple) else value


def _with_tuples(config: ConfigDict) -> ConfigDict:
    """Return a deep copy with tuples for lists, references kept; all bad leaves in one error."""
    config = copy.deepcopy(config)
    faults: list[str] = []
    _freeze_lists(config, "", faults)
    _raise(faults, "configuration")
    return config


def _freeze_lists(config: ConfigDict, prefix: str, faults: list[str]) -> None:
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            _freeze_lists(value, f"{prefix}{name}.", faults)
            continue
        try:
            leaf = _leaf(value)
        except InputError as error:
            faults.append(f"{prefix}{name}: {error}")
            continue
        if isinstance(value, list):
            # Assigning would cast the tuple back to the list's type, even under ignore_type().
            with config.unlocked():
                del config[name]
                config[name] = leaf


# ---- messages ----------------------------------------------------------------------------------


def _did_you_mean(word: str, options: Iterable[str], mark: str = "") -> str:
    return _mean([f"{mark}{near}" for near in difflib.get_close_matches(word, list(options), n=1)])


def _mean(near: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(near[:3])}?" if near else ""


def _raise(faults: Sequence[str], what: str) -> None:
    if len(faults) == 1:
        raise InputError(f"{what}: {faults[0]}")
    if faults:
        raise InputError(
            f"{what}: {len(faults)} faults" + "".join(f"\n  - {fault}" for fault in faults)
        )
