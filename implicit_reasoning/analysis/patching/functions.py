"""Find functions by import path, and compute a digest of their source code.

Results of different functions must not be merged. A user can change a function and keep its name.
The options of a result therefore contain the name and the source digest of each function.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from implicit_reasoning import imports
from implicit_reasoning.errors import InputError
from implicit_reasoning.paths import local_path

Function = Callable[..., Any]


class NamedFunction(NamedTuple):
    """A function with its name and a digest of its source code.

    Attributes:
      name: the name of a built-in function, or `file.py:function`, or `package.module:function`.
      source: digest of the source code; empty for a built-in function. If a built-in function
        changes, the version of the instrument is increased.
      call: the function.
    """

    name: str
    source: str
    call: Function

    def identity(self) -> dict[str, str]:
        """Return the name and the digest as a dict, for the options of an instrument."""
        return {"name": self.name, "source": self.source}


def find_function(
    which: str | Function, built_in: Mapping[str, Function], kind: str
) -> NamedFunction:
    """Find a function by name or import path.

    Args:
      which: a key of `built_in`, an import path, or a function. An import path is
        `path/to/file.py:function` or `package.module:function`.
      built_in: the built-in functions by name.
      kind: word for the function in error messages, "pairs" or "metric".

    Raises:
      InputError: the function does not exist, or its source code cannot be read.
    """
    if callable(which):
        return NamedFunction(
            f"{which.__module__}:{_own_name(which)}", _digest_of(which, kind), which
        )
    call = imports.find(which, built_in, kind)
    if which in built_in:
        return NamedFunction(which, "", call)
    where, _, name = which.rpartition(":")
    path = local_path(where) if where.endswith(".py") else Path(inspect.getfile(sys.modules[where]))
    shown = path.name if where.endswith(".py") else where
    return NamedFunction(f"{shown}:{name}", _digest(path.read_bytes()), call)


def _own_name(function: Function) -> str:
    return getattr(function, "__qualname__", type(function).__qualname__)


def _digest_of(function: Function, kind: str) -> str:
    try:
        return _digest(inspect.getsource(function).encode())
    except (OSError, TypeError):
        raise InputError(
            f"the source code of the {kind} function {_own_name(function)} cannot be read, but "
            "results must contain a digest of the source code; define the function with def in a "
            "file or a notebook"
        ) from None


def _digest(source: bytes) -> str:
    return hashlib.sha256(source).hexdigest()[:16]
