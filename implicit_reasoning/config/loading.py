"""Loading of a configuration from a file or module with a function `get_config`."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from ml_collections import ConfigDict

from implicit_reasoning import imports
from implicit_reasoning.config.messages import did_you_mean
from implicit_reasoning.config.trees import with_tuples
from implicit_reasoning.errors import InputError
from implicit_reasoning.paths import local_path

T = TypeVar("T")
PACKAGE = Path(__file__).resolve().parents[1]
"""Folder of the package."""


def load_config(spec: str) -> ConfigDict:
    """Load a configuration by name or path, and lock it.

    The function `get_config(arg)` of the file or module is called. Without `:arg`, `get_config()`
    is called. If the parameter of `get_config` has no default, `get_config("")` is called instead,
    and `choose` then raises an error that lists the options.

    Args:
      spec: `name[:arg]` of a configuration in the package, such as `composition:pocket` (see
        `shipped_configs`), `path/to/file.py[:arg]` or `package.module[:arg]`.

    Returns:
      The locked configuration, with lists converted to tuples.

    Raises:
      InputError: the file, module or `get_config` does not exist, the argument is invalid, or JSON
        cannot represent a leaf. Exceptions raised inside the file propagate unchanged.
    """
    if "://" in spec:
        local_path(spec, "configuration file")  # This raises an error, because `spec` is a URL.
    where, _, arg = spec.partition(":")
    get_config = getattr(config_module(where), "get_config", None)
    if not callable(get_config):
        raise InputError(
            f"{where} does not define a function get_config(), which every configuration needs"
        )
    config = _call(get_config, where, arg)
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"get_config() in {where} returned a {type(config).__name__}; it must return a "
            "ConfigDict"
        )
    return with_tuples(config).lock()


def shipped_configs() -> dict[str, Path]:
    """Return the paths of the configuration files that come with the package, by name.

    In an installed package, the folder `configs` is inside the package. In a checkout, the folder
    is next to the package.
    """
    inside = PACKAGE / "configs"
    folder = inside if inside.is_dir() else PACKAGE.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.py"))}


def config_module(where: str) -> ModuleType:
    """Import the file or module of a configuration.

    Args:
      where: a name in `shipped_configs`, `path/to/file.py` or `package.module`. A name in
        `shipped_configs` has priority over a module with the same name.

    Raises:
      InputError: there is no such file or module.
    """
    shipped = shipped_configs()
    if where in shipped:
        return imports.load(str(shipped[where]), "configuration")
    if where.endswith(".py"):
        name = Path(where).stem
        if name in shipped and not local_path(where, "configuration file").exists():
            raise InputError(
                f"configuration file {where} does not exist; use --config={name} for the "
                f"configuration {name} that comes with the package"
            )
    elif where.isidentifier() and not _is_module(where):
        raise InputError(
            f"there is no configuration {where!r}; use a name ({', '.join(shipped)}), "
            f"path/to/file.py or package.module{did_you_mean(where, shipped)}"
        )
    return imports.load(where, "configuration")


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # `__main__` may have no spec
        return True


def choose(arg: str, options: Mapping[str, T]) -> T:
    """Return `options[arg]`, for the argument of `get_config`.

    Example: `choose(scale, {"pocket": 128, "desk": 256, "paper": 768})` returns 128 if `scale` is
    "pocket".

    Args:
      arg: the argument of `get_config`; empty if it is missing.
      options: values by name.

    Raises:
      InputError: `arg` is not an option. The message lists the options and suggests the most
        similar option.
    """
    if arg in options:
        return options[arg]
    given = f"unknown choice {arg!r}" if arg else "a choice is missing"
    near = did_you_mean(arg, options)
    raise InputError(f"{given}{near} (available: {', '.join(options)})")


def _call(get_config: Callable[..., Any], where: str, arg: str) -> Any:
    parameters = list(inspect.signature(get_config).parameters.values())
    if arg and not parameters:
        raise InputError(
            f"get_config() in {where} takes no argument, but {arg!r} was given; write "
            f"{where} without :{arg}"
        )
    if arg:
        return get_config(arg)
    needs_one = any(parameter.default is parameter.empty for parameter in parameters[:1])
    return get_config("") if needs_one else get_config()
