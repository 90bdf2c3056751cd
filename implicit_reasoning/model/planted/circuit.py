"""The circuit of a planted model: heads, neurons and edges, derived from its moves and look-ups.

A head or MLP reads dimensions of the residual stream that earlier heads and MLPs, or the
embeddings, have written. The circuit of an answer is found by tracing these reads back from the
neurons that write the answer. This module measures nothing. The tests compare its circuits with
ablations of every head, neuron and edge.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from implicit_reasoning.model.planted.draft import POSITIONS, Draft
from implicit_reasoning.model.planted.truth import Claims
from implicit_reasoning.model.units import Edge, Fact, Head, Neuron, Unit


@dataclass(frozen=True)
class Circuit:
    """One route from the prompt of a chain to its answer.

    In a model with this route only, setting a unit of the circuit to zero makes at least one answer
    wrong, and setting a unit outside the circuit to zero changes no answer. A unit is a head, a
    neuron or an edge. With layer norm, this does not hold for edges to queries and keys; see
    `component_claims`.

    Attributes:
      heads, neurons, edges: the units.
      carried: pairs of an edge and a token of the prompt, by the name of its position, on which the
        values depend that the receiver reads. An edge whose receiver reads only the position
        embedding has no such pair, so exchanging a token does not show that the edge is needed.
    """

    heads: frozenset[Head]
    neurons: frozenset[Neuron]
    edges: frozenset[Edge]
    carried: frozenset[tuple[Edge, str]]

    @property
    def units(self) -> frozenset[Unit]:
        """All heads, neurons and edges of the circuit."""
        return self.heads | self.neurons | self.edges


def trace_circuit(draft: Draft, answer: int) -> Circuit:
    """Return the circuit that ends at one table of a draft.

    Args:
      draft: a draft after `Draft.build`, which chooses the heads and neurons.
      answer: the index in `draft.tables` of a table that writes the answers of chains.
    """
    found = _Trace(draft)
    found.add(Edge(f"m{draft.tables[answer].block}", "logits"), found.table(answer))
    return Circuit(
        frozenset(found.heads),
        frozenset(found.neurons),
        frozenset(found.edges),
        frozenset((edge, token) for edge, tokens in found.edges.items() for token in tokens),
    )


class _Trace:
    """The units that the search has found so far, starting from the answer.

    The methods return the tokens of the prompt, by name of the position, on which a value depends.
    """

    def __init__(self, draft: Draft):
        self._draft = draft
        self.heads: set[Head] = set()
        self.neurons: set[Neuron] = set()
        self.edges: dict[Edge, set[str]] = {}

    def add(self, edge: Edge, tokens: set[str]) -> set[str]:
        """Add an edge that carries values that depend on some tokens."""
        self.edges.setdefault(edge, set()).update(tokens)
        return tokens

    def table(self, number: int) -> set[str]:
        """Add the neurons of a table, and all units from which these neurons read."""
        table = self._draft.tables[number]
        own = np.flatnonzero(table.asked)
        self.neurons.update(self._draft.neurons[number][neuron] for neuron in own)
        return self._read(table.keys[:, own], table.pos, table.block, f"m{table.block}", mlp=True)

    def _move(self, number: int) -> set[str]:
        """Add a head, and all units from which its value input reads.

        Its query and key inputs read the position embeddings only.
        """
        move, head = self._draft.moves[number], self._draft.heads[number]
        self.heads.add(head)
        for part in "qk":
            self.add(Edge("input", f"{head}<{part}>"), set())
        return self._read(move.read, move.source, move.block, f"{head}<v>", mlp=False)

    def _read(
        self,
        dims: Int[np.ndarray, "..."],
        pos: int,
        block: int,
        receiver: str,
        *,
        mlp: bool,
    ) -> set[str]:
        """Add every head and table that writes into `dims` at `pos` before the receiver reads them.

        Args:
          dims: dimensions of the residual stream.
          pos: the index of the position.
          block: the block of the receiver.
          receiver: the name of the receiver, as in `Edge`.
          mlp: whether the receiver is an MLP, which also reads the heads of its own block.
        """
        draft, tokens = self._draft, set()
        of_token = np.isin(dims, draft.entity if pos == 0 else draft.relation).any()
        if of_token or np.isin(dims, draft.position[pos]).any():
            own = {POSITIONS[pos]} if of_token else set()
            tokens |= self.add(Edge("input", receiver), own)
        for number, move in enumerate(draft.moves):
            earlier = move.block < block or (mlp and move.block == block)
            if earlier and move.target == pos and np.isin(dims, move.write).any():
                tokens |= self.add(Edge(str(draft.heads[number]), receiver), self._move(number))
        for number, other in enumerate(draft.tables):
            if other.block < block and other.pos == pos and np.isin(dims, other.values).any():
                tokens |= self.add(Edge(f"m{other.block}", receiver), self.table(number))
        return tokens


def moved_variables(draft: Draft) -> dict[Head, str]:
    """Return the variable that each head copies; call this after `Draft.build`."""
    return {draft.heads[number]: move.variable for number, move in enumerate(draft.moves)}


def stored_facts(draft: Draft) -> dict[Neuron, Fact | tuple[int, int, int]]:
    """Return the fact, or the chain (e1, r1, r2), that each neuron stores.

    Call this after `Draft.build`.
    """
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
    edges: Collection[Edge],
    *,
    rescaled: bool = False,
) -> tuple[Claims, Claims]:
    """Return the true claims and the open claims about heads, neurons and edges.

    An open claim counts neither as true nor as false. If there are two routes, every claim that a
    unit is a part of a circuit, or idle, is open: answers are computed through the unit, but
    ablating the unit alone changes no answer. In a model with layer norm, both claims about every
    query and key edge are open: without the edge, the head copies a mean over positions, which
    contains a weaker code, and layer norm makes the weaker code stronger again.

    Args:
      routes: the circuits through which answers are computed.
      moves: the variable that each head copies.
      stores: the fact or chain that each neuron stores.
      edges: all edges of the model. An edge of no circuit is idle.
      rescaled: whether the model has layer norm.
    """
    true: set[tuple[str, str, Unit]] = {("moves", name, head) for head, name in moves.items()}
    for neuron, what in stores.items():
        true.add(("stores", str(what) if isinstance(what, Fact) else f"chain {what}", neuron))
    used = {unit for route in routes for unit in route.units}
    parts = {("part", "answer", unit) for unit in used}
    idle = {("idle", "answer", edge) for edge in set(edges) - used}
    if len(routes) > 1:
        seen = {("idle", "answer", unit) for unit in used}
        return frozenset(true | idle), frozenset(parts | seen)
    unknown = {edge for edge in edges if rescaled and is_attention_pattern(edge)}
    weak = {(kind, "answer", edge) for kind in ("part", "idle") for edge in unknown}
    return frozenset(true | ((parts | idle) - weak)), frozenset(weak)


def is_attention_pattern(unit: Unit) -> bool:
    """Return whether a unit is an edge to the query or key input of a head."""
    return isinstance(unit, Edge) and unit.receiver.endswith(("<q>", "<k>"))
