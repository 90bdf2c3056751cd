"""What a configuration may hold: its fields by name, with their types, bounds and meaning.

The packages that read a group of fields declare them (`training/fields.py`,
`dictionaries/fields.py`); this module checks a configuration against such a table.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from implicit_reasoning.config.messages import meant

INFINITE = float("inf")


@dataclass(frozen=True)
class Field:
    """A field of a configuration.

    Attributes:
      kind: the type of its value: bool, int, float (an int is one too), str or tuple.
      doc: what it means.
      low, high: bounds of a number, both included.
      optional: whether it may be missing. What reads it has a default for that.
    """

    kind: type
    doc: str
    low: int | float = -INFINITE
    high: int | float = INFINITE
    optional: bool = False

    @property
    def bounded(self) -> bool:
        """Whether it has bounds."""
        return (self.low, self.high) != (-INFINITE, INFINITE)

    def fault(self, value: Any) -> str:
        """What is wrong with a value, in words that follow `is VALUE; `; empty if nothing is."""
        types = (int, float) if self.kind is float else (self.kind,)
        right = isinstance(value, types) and not (isinstance(value, bool) and self.kind is not bool)
        if right and (not self.bounded or self.low <= value <= self.high):
            return ""
        if self.bounded and not (isinstance(value, float) and self.kind is int):
            return f"it must be between {self.low:g} and {self.high:g}"
        names = {bool: "true or false", int: "an int", float: "a number", str: "a string"}
        return f"it must be {names.get(self.kind, 'a tuple')}"


def schema_faults(
    values: Mapping[str, Any], schema: Mapping[str, Field], others: Sequence[str] = ()
) -> list[str]:
    """All that is wrong with the fields of a configuration, in words.

    Args:
      values: dotted name to value, as `flatten` makes them.
      schema: the fields that there are.
      others: groups (`task`) that may have further fields, whatever they are.
    """
    needed = [key for key, field in schema.items() if not field.optional]
    faults = [f"{key} is missing" for key in needed if key not in values]
    for key in values:
        if key not in schema and key.partition(".")[0] not in others:
            faults.append(f"{key} is not a field{meant(nearest_fields(key, schema))}")
    return faults + value_faults(values, schema)


def value_faults(values: Mapping[str, Any], schema: Mapping[str, Field]) -> list[str]:
    """The values that have the wrong type or are out of bounds, in words."""
    found = {key: schema[key].fault(value) for key, value in values.items() if key in schema}
    return [f"{key} is {values[key]!r}; {fault}" for key, fault in found.items() if fault]


def nearest_fields(key: str, names: Mapping[str, Any]) -> list[str]:
    """Fields that may have been meant by a name that is none: namesakes, or the most similar."""
    # A leaf's own name without its group is the commonest slip: it goes before overall likeness.
    tail = key.rpartition(".")[2]
    tails = {name.rpartition(".")[2] for name in names}
    namesakes = [name for name in names if name.rpartition(".")[2] == tail]
    whole = difflib.get_close_matches(key, names, n=1)
    part = difflib.get_close_matches(tail, tails, n=1)
    return namesakes or whole or [name for name in names if name.rpartition(".")[2] in part]
