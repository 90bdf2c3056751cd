"""Names that were changed: files and command lines may have the old one, and are told the new."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any


@functools.cache
def note(what: str, old: str, new: str) -> None:
    """Say on standard error that a name was changed; once in a process for each name.

    Args:
      what: kind of name, such as "instrument".
      old: the name that was given.
      new: the name that it has now.
    """
    print(f"implicit_reasoning: {what} {old!r} is now called {new!r}", file=sys.stderr)


def old_names(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__`, so that files of users may still import old names.

    Args:
      module: its `__name__`.
      names: current names by old ones.
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        note(f"in {module}", name, names[name])
        return getattr(sys.modules[module], names[name])

    return get
