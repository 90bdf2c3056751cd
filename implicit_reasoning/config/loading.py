"""A configuration, by the file or module whose `get_config` makes it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict

from implicit_reasoning import imports
from implicit_reasoning.config.messages import did_you_mean
from implicit_reasoning.config.trees import with_tuples
from implicit_reasoning.errors import InputError
from implicit_reasoning.paths import local_path

T = TypeVar("T")


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
    if "://" in spec:
        local_path(spec, "configuration file")  # an address, which this refuses
    where, _, arg = spec.partition(":")
    get_config = getattr(imports.load(where, "configuration"), "get_config", None)
    if not callable(get_config):
        raise InputError(f"{where} has no function get_config(), so it is no configuration file")
    config = _call(get_config, where, arg)
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"get_config() in {where} returned a {type(config).__name__}, not a ConfigDict"
        )
    return with_tuples(config).lock()


def choose(arg: str, options: Mapping[str, T]) -> T:
    """Pick `options[arg]`; an unknown `arg` is an `InputError` that suggests and lists the options.

    For the argument of `get_config`: `choose(scale, {"pocket": 128, "desk": 256, "paper": 768})`.
    """
    if arg in options:
        return options[arg]
    given = f"unknown choice {arg!r}" if arg else "a choice is missing"
    near = did_you_mean(arg, options)
    raise InputError(f"{given}{near} (there are: {', '.join(options)})")


def _call(get_config: Callable[..., Any], where: str, arg: str) -> Any:
    parameters = list(inspect.signature(get_config).parameters.values())
    if arg and not parameters:
        raise InputError(f"get_config() in {where} takes no argument, was given {arg!r}")
    if arg:
        return get_config(arg)
    needs_one = any(parameter.default is parameter.empty for parameter in parameters[:1])
    return get_config("") if needs_one else get_config()
