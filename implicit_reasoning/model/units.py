"""Units: the possible subjects of claims about a model (states, heads, neurons, edges, facts, ...).

A unit is a small immutable value. Units of all types are ordered and hashable, and can be converted
to text and JSON. Claims about units of different types therefore have equal form. The sender and
the receiver of an edge are named as in EAP-IG (Hanna et al. 2024): `input`, `a0.h3`, `m1` or
`logits`. The name of an edge into a head includes the query, key or value input, as in
`m0->a2.h1<q>`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from implicit_reasoning.errors import InputError


@functools.total_ordering
class Unit:
    """The base class of units (subjects of claims). Units are sorted by type, then by fields."""

    # Two type checks below are ignored, because mypy does not know that subclasses are dataclasses.
    def _key(self) -> tuple[Any, ...]:
        return (_TYPES.index(type(self)), *dataclasses.astuple(self))  # type: ignore[call-overload]

    def __lt__(self, other: object) -> bool:
        return self._key() < other._key() if isinstance(other, Unit) else NotImplemented

    def to_json(self) -> dict[str, Any]:
        """Return the unit as a dict `{"type": ..., field: value, ...}` for JSON.

        `unit_from_json` converts the dict back to a unit.
        """
        return {"type": type(self).__name__, **dataclasses.asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True)
class WholeModel(Unit):
    """The model as a whole."""

    def __str__(self) -> str:
        return "the model"


@dataclass(frozen=True)
class State(Unit):
    """The residual stream after `layer` blocks at position `pos`: `S[layer, pos]` in papers."""

    layer: int
    pos: str

    def __str__(self) -> str:
        return f"layer {self.layer}, {self.pos}"


@dataclass(frozen=True)
class Head(Unit):
    """An attention head.

    Attributes:
      layer: the index of the block. In a looped model, each pass through a block has its own index.
      head: the index of the head in the block.
    """

    layer: int
    head: int

    def __str__(self) -> str:
        return f"a{self.layer}.h{self.head}"


@dataclass(frozen=True)
class Neuron(Unit):
    """A neuron of a block's MLP; `index` is its index in `hook_post`."""

    layer: int
    index: int

    def __str__(self) -> str:
        return f"m{self.layer}.n{self.index}"


@dataclass(frozen=True)
class Edge(Unit):
    """The connection from the output of a sender to the input of a receiver.

    Attributes:
      sender: `input` (the embeddings), or a name such as `a0.h3` (a head) or `m1` (an MLP).
      receiver: `logits`, or a name such as `a2.h1<q>` (the query input of a head; `<k>` and `<v>`
        are the key and value inputs) or `m1` (an MLP).

    Raises:
      InputError: a name has an invalid form, or the receiver does not run after the sender.
    """

    sender: str
    receiver: str

    def __post_init__(self) -> None:
        sent = _place(_SENDER, self.sender, "sender", "input, a0.h3 or m1")
        received = _place(_RECEIVER, self.receiver, "receiver", "a2.h1<q>, m1 or logits")
        if received <= sent:
            raise InputError(
                f"{self} is not an edge, because {self.receiver} does not run after {self.sender}"
            )

    def __str__(self) -> str:
        return f"{self.sender}->{self.receiver}"

    @classmethod
    def parse(cls, name: str) -> Edge:
        """Return the edge with a name such as `a0.h3->m1`.

        Raises:
          InputError: the text is not the name of an edge.
        """
        sender, arrow, receiver = name.partition("->")
        if not arrow:
            raise InputError(f"an edge is named sender->receiver, such as a0.h3->m1; got {name!r}")
        return cls(sender, receiver)


@dataclass(frozen=True)
class Feature(Unit):
    """A feature of a sparse dictionary that was trained on the activations at `site`."""

    site: str
    index: int

    def __str__(self) -> str:
        return f"feature {self.index} of {self.site}"


@dataclass(frozen=True)
class Fact(Unit):
    """An atomic fact `(e1, r1) -> e2`; `e1` and `r1` are indices (entity, relation)."""

    e1: int
    r1: int

    def __str__(self) -> str:
        return f"fact ({self.e1}, {self.r1})"


_TYPES: tuple[type[Unit], ...] = (WholeModel, State, Head, Neuron, Edge, Feature, Fact)

_SENDER = re.compile(r"input|a(?P<a>\d+)\.h\d+|m(?P<m>\d+)")
_RECEIVER = re.compile(r"logits|a(?P<a>\d+)\.h\d+<[qkv]>|m(?P<m>\d+)")


def _place(form: re.Pattern[str], name: str, what: str, examples: str) -> tuple[float, int]:
    """Return when a sender or receiver runs, as (block, 0 for attention or 1 for the MLP).

    Raises:
      InputError: the name does not match `form`.
    """
    found = form.fullmatch(name)
    if not found:
        raise InputError(
            f"{name!r} is not a {what} of an edge; a {what} has a name such as {examples}"
        )
    if found["a"]:
        return float(found["a"]), 0
    if found["m"]:
        return float(found["m"]), 1
    return (-1.0 if name == "input" else float("inf")), 0


def unit_from_json(kept: Mapping[str, Any]) -> Unit:
    """Convert a dict from `Unit.to_json` back to a unit.

    Raises:
      InputError: the type is unknown, or a field is missing or unknown.
    """
    types = {kind.__name__: kind for kind in _TYPES}
    fields = {name: value for name, value in kept.items() if name != "type"}
    try:
        return types[kept["type"]](**fields)
    except (KeyError, TypeError):
        raise InputError(
            f"{dict(kept)!r} is not a unit; it must contain a `type` ({', '.join(types)}) and "
            "exactly the fields of this type"
        ) from None
