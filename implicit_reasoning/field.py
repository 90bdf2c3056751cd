"""`Field`: the type, meaning, default and allowed values of one configuration field.

Each package that reads a group of fields has a table of them: `worlds/tasks/fields.py`,
`model/fields.py`, `runs/fields.py`, `dictionaries/fields.py`. `config/fields.py` checks a
configuration against such a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

INFINITE = float("inf")
MAX_INT = 2**31 - 1
"""Largest allowed count or seed; both are int32 on the device."""


class _Always:
    """Marker for a field that every configuration file contains."""

    def __repr__(self) -> str:
        return "ALWAYS"


ALWAYS = _Always()


@dataclass(frozen=True)
class Field:
    """A field of a configuration.

    Attributes:
      kind: type of the value: bool, int, float (ints are accepted too), str or tuple.
      doc: meaning of the field.
      default: value in a new configuration. If it is None, None is an allowed value, and the code
        that reads the field chooses its own default.
      low, high: inclusive bounds of a number.
      choices: allowed values; empty if the values are not enumerated.
      before: value that reproduces the behavior from before the field existed. A file without the
        field gets this value. `ALWAYS` means that every file has the field, so that a missing field
        is an error.
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
        """Whether the field has bounds."""
        return (self.low, self.high) != (-INFINITE, INFINITE)

    @property
    def required(self) -> bool:
        """Whether a file without the field is incomplete."""
        return self.before is ALWAYS

    def fault(self, value: Any) -> str:
        """Describe what is wrong with a value; the text is empty if the value is valid.

        The text completes a sentence that begins with `NAME is VALUE; `.
        """
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
