"""`Field`: what one field of a configuration may hold, what it means and what it is by default.

The packages that read a group of fields keep a table of them: `worlds/tasks/fields.py`,
`model/fields.py`, `runs/fields.py`, `dictionaries/fields.py`. `config/fields.py` checks a
configuration against such a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

INFINITE = float("inf")
MAX_INT = 2**31 - 1
"""Counts and seeds are int32 on the device."""


class _Always:
    """Marks a field that is in every file, however old."""

    def __repr__(self) -> str:
        return "ALWAYS"


ALWAYS = _Always()


@dataclass(frozen=True)
class Field:
    """A field of a configuration.

    Attributes:
      kind: the type of its value: bool, int, float (an int is accepted too), str or tuple.
      doc: what it means.
      default: its value in a new configuration; None where what reads the field has its own
        default, and None is then allowed.
      low, high: bounds of a number, both included.
      choices: the values that it may have; empty if there are others.
      before: the value that reproduces what was done before the field existed. Files without the
        field get it. `ALWAYS` where every file has the field, so that a missing one is an error.
    """

    kind: type
    doc: str
    default: Any
    low: int | float = -INFINITE
    high: int | float = INFINITE
    choices: tuple[Any, ...] = ()
    before: Any = ALWAYS

    @property
    def bounded(self) -> bool:
        """Whether it has bounds."""
        return (self.low, self.high) != (-INFINITE, INFINITE)

    @property
    def required(self) -> bool:
        """Whether a file without it is incomplete."""
        return self.before is ALWAYS

    def fault(self, value: Any) -> str:
        """What is wrong with a value, in words that follow `is VALUE; `; empty if nothing is."""
        if value is None and self.default is None:
            return ""
        types = (int, float) if self.kind is float else (self.kind,)
        right = isinstance(value, types) and not (isinstance(value, bool) and self.kind is not bool)
        if right and self.choices and value not in self.choices:
            return f"it must be one of {', '.join(map(repr, self.choices))}"
        if right and (not self.bounded or self.low <= value <= self.high):
            return ""
        if self.bounded and not (isinstance(value, float) and self.kind is int):
            return f"it must be between {self.low:g} and {self.high:g}"
        names = {bool: "true or false", int: "an int", float: "a number", str: "a string"}
        return f"it must be {names.get(self.kind, 'a tuple')}"
