"""Ground truth of a planted model: which claims hold at which layer and position.

A claim is `(kind, variable, unit)`, with the kinds of `analysis.claims`. Here the unit is a state.
Its layer is the number of blocks before it, so layer 0 is the embeddings. A mechanism marks where a
code is, where it is read and where information flows. This module derives the claims from these
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
    """Marks on cells `(variable, layer, pos)`, collected while a model is built."""

    def __init__(self, depth: int):
        self.depth = depth
        self._marks: dict[str, set[Cell]] = {}
        for variable in POSITIONS:  # a position has the name of its token
            self.mark("code", variable, variable, 0)
        # The answer depends on r2 through the position r2 only, up to the last layer.
        self.mark("carried", "r2", "r2", 0)

    def mark(
        self, mark: CellMark, variable: str, pos: str, first: int, last: int | None = None
    ) -> None:
        """Mark the layers `first` to `last`, both included; `last` None means the last layer."""
        last = self.depth if last is None else last
        cells = {(variable, layer, pos) for layer in range(first, last + 1)}
        self._marks.setdefault(mark, set()).update(cells)

    def claims(self) -> tuple[Claims, Claims]:
        """Return the claims `(true, open)`.

        `decodable` means linearly decodable for unseen prefixes. A one-hot code of a prefix does
        not generalize to another prefix. A variable is decodable if it has a code. The open claims
        are:

        - that e2 is decodable or unused, if the answer has a code at r2 and e2 has none, and
          the reverse. Given r2, each of the two nearly determines the other, so a linear probe of
          the codes at r2 often finds it.
        - that e2 is carried, if both e1 and r1 are: patching both is equivalent to patching e2.
        - that the answer is carried, a matter of definition before the answer is computed.
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
    """Return the claims of each kind about the given cells."""
    return frozenset(
        (kind, variable, State(layer, pos))
        for kind, those in cells.items()
        for variable, layer, pos in those
    )
