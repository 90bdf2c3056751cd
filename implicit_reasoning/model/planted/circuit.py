"""The heads, neurons and edges of a planted model, read off its moves and look-ups.

A node reads what an earlier node, or the embeddings, wrote into the dimensions and at the position
that it reads. So the part of a model that an answer depends on follows from the draft alone, by
going back from the neurons that write the answer. Nothing is measured here; the tests ablate every
head, neuron and edge to compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from implicit_reasoning.model.planted.draft import Draft
from implicit_reasoning.model.planted.truth import Claims
from implicit_reasoning.model.units import Edge, Fact, Head, Neuron, Unit


@dataclass(frozen=True)
class Circuit:
    """One way from a prompt of a chain to its answer.

    Without any of these units, set to zero, some chain is not answered; without any other unit all
    are.
    """

    heads: frozenset[Head]
    neurons: frozenset[Neuron]
    edges: frozenset[Edge]

    @property
    def units(self) -> frozenset[Unit]:
        """All of them."""
        return self.heads | self.neurons | self.edges


def trace_circuit(draft: Draft, answer: int) -> Circuit:
    """The circuit of the table of that number, which writes answers of chains; of a built draft."""
    found = _Trace(draft)
    found.edges.add(Edge(f"m{draft.tables[answer].block}", "logits"))
    found.table(answer)
    return Circuit(frozenset(found.heads), frozenset(found.neurons), frozenset(found.edges))


class _Trace:
    """Units found so far, from the answer back."""

    def __init__(self, draft: Draft):
        self._draft = draft
        self.heads: set[Head] = set()
        self.neurons: set[Neuron] = set()
        self.edges: set[Edge] = set()

    def table(self, number: int) -> None:
        """Add the neurons of a table, and what they read."""
        table = self._draft.tables[number]
        own = np.flatnonzero(table.asked)
        self.neurons.update(self._draft.neurons[number][neuron] for neuron in own)
        self._read(table.keys[:, own], table.pos, table.block, f"m{table.block}", mlp=True)

    def _move(self, number: int) -> None:
        """Add a head, and what its value reads; its query and key read the position alone."""
        move, head = self._draft.moves[number], self._draft.heads[number]
        self.heads.add(head)
        self.edges.update(Edge("input", f"{head}<{part}>") for part in "qk")
        self._read(move.read, move.source, move.block, f"{head}<v>", mlp=False)

    def _read(
        self,
        dims: Int[np.ndarray, "..."],
        pos: int,
        block: int,
        receiver: str,
        *,
        mlp: bool,
    ) -> None:
        """Add whatever writes into `dims` at a position before a receiver of a block reads it.

        An MLP also reads what the attention of its own block writes.
        """
        draft = self._draft
        embedded = [draft.entity if pos == 0 else draft.relation, draft.position[pos]]
        if np.isin(dims, np.hstack(embedded)).any():
            self.edges.add(Edge("input", receiver))
        for number, move in enumerate(draft.moves):
            earlier = move.block < block or (mlp and move.block == block)
            if earlier and move.target == pos and np.isin(dims, move.write).any():
                self.edges.add(Edge(str(draft.heads[number]), receiver))
                self._move(number)
        for number, other in enumerate(draft.tables):
            if other.block < block and other.pos == pos and np.isin(dims, other.values).any():
                self.edges.add(Edge(f"m{other.block}", receiver))
                self.table(number)


def moved_variables(draft: Draft) -> dict[Head, str]:
    """Which head copies which variable, of a built draft."""
    return {draft.heads[number]: move.variable for number, move in enumerate(draft.moves)}


def stored_facts(draft: Draft) -> dict[Neuron, Fact | tuple[int, int, int]]:
    """Which neuron stores which fact, or which chain (e1, r1, r2); of a built draft."""
    found: dict[Neuron, Fact | tuple[int, int, int]] = {}
    for number, table in enumerate(draft.tables):
        if table.stores is None:
            continue
        for neuron, row in zip(draft.neurons[number], table.stores.tolist(), strict=True):
            found[neuron] = Fact(*row) if len(row) == 2 else (row[0], row[1], row[2])
    return found


def component_claims(
    routes: Sequence[Circuit],
    moves: Mapping[Head, str],
    stores: Mapping[Neuron, Fact | tuple[int, int, int]],
) -> tuple[Claims, Claims]:
    """Claims about heads, neurons and edges: `(true, open)`.

    Where there are two routes, a unit of one of them is open: answers are computed through it, and
    ablating it alone changes none.
    """
    true: set[tuple[str, str, Unit]] = {("moves", name, head) for head, name in moves.items()}
    for neuron, what in stores.items():
        true.add(("stores", str(what) if isinstance(what, Fact) else f"chain {what}", neuron))
    parts = {("part", "answer", unit) for route in routes for unit in route.units}
    if len(routes) == 1:
        return frozenset(true | parts), frozenset()
    return frozenset(true), frozenset(parts)
