"""Names that were changed: files and command lines may have the old one, and are told the new."""

from __future__ import annotations

import functools
import sys


@functools.cache
def note(what: str, old: str, new: str) -> None:
    """Say on standard error that a name was changed; once in a process for each name.

    Args:
      what: kind of name, such as "instrument".
      old: the name that was given.
      new: the name that it has now.
    """
    print(f"implicit_reasoning: {what} {old!r} is now called {new!r}", file=sys.stderr)
