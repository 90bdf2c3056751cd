"""A configuration, by the file or module whose `get_config` makes it."""

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
"""The folder of the package."""


def load_config(spec: str) -> ConfigDict:
    """Load the configuration that `spec` names, and lock it.

    Args:
      spec: `name[:arg]` of a configuration that comes with the package (`composition:pocket`, see
        `shipped_configs`), `path/to/file.py[:arg]` or `package.module[:arg]`. `get_config(arg)` of
        that file or module is called. Without `:arg` it is called with its own default, or with
        `""` when it has none (`choose` then lists what there is).

    Returns:
      The locked configuration, with tuples for lists.

    Raises:
      InputError: no such file or module, no `get_config`, an argument it does not take, or a leaf
        that JSON cannot hold. An exception raised inside the file keeps its own traceback.
    """
    if "://" in spec:
        local_path(spec, "configuration file")  # an address, which this refuses
    where, _, arg = spec.partition(":")
    get_config = getattr(config_module(where), "get_config", None)
    if not callable(get_config):
        raise InputError(f"{where} has no function get_config(), so it is no configuration file")
    config = _call(get_config, where, arg)
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"get_config() in {where} returned a {type(config).__name__}, not a ConfigDict"
        )
    return with_tuples(config).lock()


def shipped_configs() -> dict[str, Path]:
    """The configuration files that come with the package, by name.

    A wheel has them in the folder `configs` of the package, a checkout beside the package.
    """
    inside = PACKAGE / "configs"
    folder = inside if inside.is_dir() else PACKAGE.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.py"))}


def config_module(where: str) -> ModuleType:
    """Import the file or module of a configuration, as `load_config` names it.

    A name of `shipped_configs` means that file, also where a module has the same name.

    Raises:
      InputError: there is none.
    """
    shipped = shipped_configs()
    if where in shipped:
        return imports.load(str(shipped[where]), "configuration")
    if where.endswith(".py"):
        name = Path(where).stem
        if name in shipped and not local_path(where, "configuration file").exists():
            raise InputError(
                f"configuration file {where} does not exist; --config={name} is the one that comes "
                "with the package"
            )
    elif where.isidentifier() and not _is_module(where):
        raise InputError(
            f"there is no configuration {where!r}{did_you_mean(where, shipped)}: give a name "
            f"({', '.join(shipped)}), path/to/file.py or package.module"
        )
    return imports.load(where, "configuration")


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # of __main__, which may have no spec
        return True


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
