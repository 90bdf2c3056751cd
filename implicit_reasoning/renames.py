"""Support for renamed objects: their old names still work, and a note states the new name."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any


@functools.cache
def note(what: str, old: str, new: str) -> None:
    """Print a note to stderr, which says that a name has changed.

    Each note is printed only once in a process.

    Args:
      what: kind of the renamed object, such as "instrument".
      old: the name that was given.
      new: the current name.
    """
    print(f"implicit_reasoning: {what} {old!r} is now called {new!r}", file=sys.stderr)


def old_names(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a function `__getattr__` for a module, so that old names can still be imported.

    Args:
      module: `__name__` of the module.
      names: dict from old names of objects in the module to their current names.
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        note(f"in {module}", name, names[name])
        return getattr(sys.modules[module], names[name])

    return get
