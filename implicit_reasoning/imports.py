"""Lookup of built-in objects by name, and of user-defined objects by import path."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from implicit_reasoning import renames
from implicit_reasoning.errors import InputError
from implicit_reasoning.paths import local_path

_MOVED = {"implicit_reasoning.grokked": "implicit_reasoning.grokked_transformer"}
"""The current names of renamed modules, by the old names that old configurations contain."""


def find(name: str, known: Mapping[str, Any], kind: str, form: type | None = None) -> Any:
    """Find a built-in object by name, or a user-defined object by import path.

    Args:
      name: a key of `known`, `package.module:attribute` or `path/to/file.py:attribute`.
      known: the built-in objects by name. A value may also be an import path; its module is
        imported only when the object is needed.
      kind: kind of the object for error messages, such as "task" or "instrument".
      form: a base class. The object must be a subclass of `form`. If `form` is None, the object
        must be callable.

    Raises:
      InputError: the name, file, module or attribute does not exist, or the object is not callable
        or not a subclass of `form`.
    """
    where = known.get(name, name)
    if not isinstance(where, str):
        return where
    source, _, attribute = where.rpartition(":")
    what = "function" if form is None else "Class"
    if not source:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise InputError(
            f"unknown {kind} {name!r}{hint} Known names: {', '.join(known)}. For a user-defined "
            f"{kind}, give package.module:{what} or path/to/file.py:{what}"
        )
    module = load(source, kind)
    found = getattr(module, attribute, None)
    if form is None:
        right, what = callable(found), "function"
    else:
        right = isinstance(found, type) and issubclass(found, form)
        what = f"subclass of {form.__name__}"
    if not right:
        near = difflib.get_close_matches(attribute, vars(module), n=1)
        hint = f"; did you mean {near[0]!r}?" if near and near[0] != attribute else ""
        raise InputError(f"{kind} {name!r}: {source} defines no {what} named {attribute!r}{hint}")
    return found


def load(where: str, kind: str) -> ModuleType:
    """Import a module.

    Args:
      where: `path/to/file.py` (`~` is expanded) or `package.module`. A file is imported under a
        private name that cannot shadow a package.
      kind: kind of the module for error messages, such as "configuration" or "task".

    Raises:
      InputError: the file or module does not exist. Exceptions from code inside the module
        propagate unchanged.
    """
    return _load_file(where, kind) if where.endswith(".py") else _load_module(where, kind)


def _load_file(where: str, kind: str) -> ModuleType:
    path = local_path(where, f"{kind} file")
    if not path.is_file():
        nearby = sorted(str(other) for other in path.parent.glob("*.py"))
        near = difflib.get_close_matches(str(path), nearby, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"{kind} file {where} does not exist{hint}")
    name = f"_{kind}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # the file exists and ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # A dataclass in the file looks up its module in `sys.modules`.
    spec.loader.exec_module(module)
    return module


def _load_module(name: str, kind: str) -> ModuleType:
    if name in _MOVED:
        renames.note("module", name, _MOVED[name])
        name = _MOVED[name]
    missing = InputError(f"there is no {kind} {name!r}; give path/to/file.py or package.module")
    if not all(part.isidentifier() for part in name.split(".")):
        raise missing
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise missing from None
        raise
