"""`Field`: the type, meaning, default and allowed values of one configuration field.

Four modules contain tables of fields: `worlds/tasks/fields.py`, `model/fields.py`, `runs/fields.py`
and `dictionaries/fields.py`. `config/fields.py` checks a configuration against a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

INFINITE = float("inf")
MAX_INT = 2**31 - 1
"""The largest allowed count or seed. Counts and seeds are int32 on the device."""


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
      default: value in a new configuration. If the default is None, None is allowed, and the code
        that reads the field then chooses a value.
      low, high: inclusive bounds of a number.
      choices: the allowed values; empty if `choices` does not restrict the value.
      before: value for a configuration file without this field. The value reproduces the behavior
        from before the field existed. `ALWAYS` means that every file must contain the field.
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
        """Whether a configuration file must have the field."""
        return self.before is ALWAYS

    def fault(self, value: Any) -> str:
        """Describe the valid values; return empty text if `value` is valid.

        The text is the end of an error message that begins with `NAME is VALUE; `.
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
