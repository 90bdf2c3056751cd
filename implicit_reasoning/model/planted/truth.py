"""What is true of a planted model: which claims hold at which layer and position.

A claim is `(kind, variable, unit)`, with the kinds and the words of `analysis.claims`; the unit is
a state, whose layer is a number of blocks, so 0 is the embeddings. Mechanisms say where a code is,
where it is read and what flows through; what follows from that for all of them is here. Claims
about heads, neurons and edges are in `circuit.py`.
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
        for variable in POSITIONS:  # each is also the name of the token that stands there
            self.mark("code", variable, variable, 0)
        # All that r2 does for the answer it does at its own position, up to the last layer.
        self.mark("carried", "r2", "r2", 0)

    def mark(
        self, mark: CellMark, variable: str, pos: str, first: int, last: int | None = None
    ) -> None:
        """Mark the layers `first` to `last` (both included; None: the last there is)."""
        last = self.depth if last is None else last
        cells = {(variable, layer, pos) for layer in range(first, last + 1)}
        self._marks.setdefault(mark, set()).update(cells)

    def claims(self) -> tuple[Claims, Claims]:
        """`(true, open)`.

        `decodable` means linearly so, for prefixes that were not seen: a one-hot code of the prefix
        says nothing of another prefix, and a variable is decodable where it has a code. Open are

        - e2 where the answer has a code at r2 and e2 has none, and the answer where e2 has one and
          it has none itself: with r2 beside it, the one nearly follows from the other, and a
          linear map of the two codes together finds many;
        - whether e2 is carried where e1 and r1 both are: moving both is moving e2;
        - where the answer is "carried", which is a matter of words before there is one.
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
    """Of each kind, the claims about some cells."""
    return frozenset(
        (kind, variable, State(layer, pos))
        for kind, those in cells.items()
        for variable, layer, pos in those
    )
