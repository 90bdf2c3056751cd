"""Ground truth of a planted model: which claims hold at which layer and position.

A claim is `(kind, variable, unit)`, with the kinds of `analysis.claims`. In this module, the unit
is a state. The layer of a state is the number of blocks before it, so layer 0 is the embeddings. A
mechanism marks the states that have a code of a variable, the states whose code is read, and the
states through which information about a variable flows. This module derives the claims from these
marks. Claims about heads, neurons and edges are in `circuit.py`.
"""

from __future__ import annotations

from typing import Literal

from implicit_reasoning.model.planted.draft import POSITIONS
from implicit_reasoning.model.units import State, Unit

Claims = frozenset[tuple[str, str, Unit]]
Cell = tuple[str, int, str]
CellMark = Literal["code", "used", "carried", "maybe used", "maybe carried", "not carried"]


class MechanismMarks:
    """The marks of all cells `(variable, layer, pos)`, collected while a model is built.

    `code`: the state has a code of the variable. `used`: an answer depends on this code. `carried`:
    an answer depends on the variable through this state. `maybe ...`: this is open. `not carried`:
    the state does not carry the variable, although it carries variables that determine it.
    """

    def __init__(self, depth: int):
        self.depth = depth
        self._marks: dict[str, set[Cell]] = {}
        for variable in POSITIONS:  # The name of a position is the name of its variable.
            self.mark("code", variable, variable, 0)
        # The answer depends on r2 through the position r2 only, up to the last layer.
        self.mark("carried", "r2", "r2", 0)

    def mark(
        self, mark: CellMark, variable: str, pos: str, first: int, last: int | None = None
    ) -> None:
        """Mark the layers `first` to `last`, both included; by default up to the last layer."""
        last = self.depth if last is None else last
        cells = {(variable, layer, pos) for layer in range(first, last + 1)}
        self._marks.setdefault(mark, set()).update(cells)

    def claims(self) -> tuple[Claims, Claims]:
        """Return the true claims and the open claims.

        An open claim counts neither as true nor as false. A variable is decodable from a state if
        the state has a code of the variable. `decodable` means that a linear probe decodes the
        variable for prefixes that the probe has not seen. (From the index of a prefix, a probe
        cannot decode variables of an unseen prefix.) The open claims are:

        - that e2 is decodable or unused at r2, if the state has a code of the answer but none of
          e2; and that the answer is decodable or unused at r2, if the state has a code of e2 but
          none of the answer. Given r2, e2 nearly determines the answer and the answer nearly
          determines e2, so a linear probe often finds one in the code of the other.
        - that e2 is carried, if both e1 and r1 are carried: patching both is equivalent to patching
          e2.
        - that the answer is carried. Before the answer is computed, this is a matter of definition.
        - claims about the cells that the mechanism marks as `maybe used` or `maybe carried`.
        """
        code, used = self._all("code"), self._all("used")
        carried, maybe = self._all("carried"), self._all("maybe carried")
        maybe_used = self._all("maybe used") - used
        unused = code - used - maybe_used
        true = _claims(decodable=code, used=used, carried=carried, unused=unused)

        layers = range(self.depth + 1)
        coded = {name: {c[1] for c in code if c[0] == name and c[2] == "r2"} for name in _TIED}
        implied = {
            (name, layer, "r2") for name, other in _TIED.items() for layer in coded[other]
        } - code
        through = carried | maybe
        both = {
            ("e2", layer, pos)
            for layer in layers
            for pos in POSITIONS
            if {("e1", layer, pos), ("r1", layer, pos)} <= through
        }
        answer = {("answer", layer, pos) for layer in layers for pos in POSITIONS}
        possible = _claims(
            decodable=implied,
            used=maybe_used,
            unused=maybe_used | implied,
            carried=maybe | answer | (both - self._all("not carried")),
        )
        return true, possible - true

    def _all(self, mark: CellMark) -> set[Cell]:
        return self._marks.get(mark, set())


_TIED = {"e2": "answer", "answer": "e2"}


def _claims(**cells: set[Cell]) -> Claims:
    """Return, for each kind, one claim about each of its cells."""
    return frozenset(
        (kind, variable, State(layer, pos))
        for kind, those in cells.items()
        for variable, layer, pos in those
    )
