"""A planted model under construction: heads that copy codes, and neurons that look them up.

A code represents the value of a variable, such as e1, in the residual stream. In a draft, every
code is a one-hot vector with values 0 and 1, in dimensions that no other code uses. A neuron adds
up its key dimensions and is active if all of them are 1. The module `weights` turns a draft into a
model, whose codes may overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int

from implicit_reasoning.model.units import Head, Neuron

POSITIONS = ("e1", "r1", "r2")


class Move(NamedTuple):
    """A head that copies the code of a variable to a later position.

    Attributes:
      block: the block of the head.
      source, target: the index of the position to copy from, and of the position to copy to.
      read, write: the dimensions of the code at the source, and those of its copy at the target.
      variable: the name of the copied variable.
      once: whether the head subtracts what is in the dimensions `write` at the source. A head of a
        looped model that copies from the first position, where it also copies the code within that
        position, then copies the code in the first loop only.
    """

    block: int
    source: int
    target: int
    read: Int[np.ndarray, " width"]
    write: Int[np.ndarray, " width"]
    variable: str
    once: bool


class LookupTable(NamedTuple):
    """A table in the neurons of one MLP; each neuron stores one entry.

    A neuron is active if all its key dimensions are 1. An active neuron adds `strength` to each of
    its value dimensions.

    Attributes:
      block: the block of the neurons.
      pos: index of the only position where the neurons can be active.
      keys, values: the key dimensions and the value dimensions; one column for each neuron.
      strength: the number that an active neuron adds to each of its value dimensions.
      stores: the fact or chain that each neuron stores, as a row of the entity and the relations
        (e1, r1, ...). None if the neurons only translate one code of an entity into another code of
        the same entity.
      asked: for each neuron, whether the answer of some chain needs the neuron.
      same_as: the index of an earlier table whose neurons this table uses in a later loop; None if
        the table has its own neurons.
    """

    block: int
    pos: int
    keys: Int[np.ndarray, "key neuron"]
    values: Int[np.ndarray, "value neuron"]
    strength: float
    stores: Int[np.ndarray, "neuron part"] | None
    asked: Bool[np.ndarray, " neuron"]
    same_as: int | None


class Draft:
    """A list of moves and look-up tables, which `weights.build` compiles into a model.

    Attributes:
      depth: the number of blocks, each loop counted.
      n_loops: how often the blocks are applied. Blocks whose numbers differ by a multiple of
        `depth / n_loops` have the same weights.
      min_neurons: the minimum number of neurons of a block; unused neurons have zero weights.
      spaces: the dimensions of every space that was allocated; see `space`.
      moves, tables: the moves and tables that were added so far.
      heads: for the index of each move, its head; filled by `weights.build`.
      neurons: for the index of each table, its neurons; filled by `weights.build`.
      entity, relation, position: dimensions of the codes that the embeddings write.
      output: dimensions that the unembedding reads, one for each entity.
    """

    def __init__(self, n_entities: int, n_relations: int, depth: int, n_loops: int = 1):
        self.depth = depth
        self.n_loops = n_loops
        self.min_neurons = 1
        self.spaces: list[Int[np.ndarray, " size"]] = []
        self.moves: list[Move] = []
        self.tables: list[LookupTable] = []
        self.heads: dict[int, Head] = {}
        self.neurons: dict[int, list[Neuron]] = {}
        self.entity = self.space(n_entities)
        self.relation = self.space(n_relations)
        self.position = self.space(len(POSITIONS))
        self.output = self.space(n_entities)

    def space(self, size: int) -> Int[np.ndarray, " size"]:
        """Allocate dimensions of the residual stream that nothing else uses."""
        self.spaces.append(np.arange(self.width, self.width + size))
        return self.spaces[-1]

    @property
    def width(self) -> int:
        """The number of dimensions that are allocated."""
        return sum(map(len, self.spaces))

    @property
    def n_layers(self) -> int:
        """The number of blocks with their own weights."""
        return self.depth // self.n_loops

    def move(
        self,
        block: int,
        source: str,
        target: str,
        read: Int[np.ndarray, " width"],
        write: Int[np.ndarray, " width"],
        variable: str,
        *,
        once: bool = False,
    ) -> None:
        """Add a head that copies a code from one position to another; see `Move`."""
        places = POSITIONS.index(source), POSITIONS.index(target)
        self.moves.append(Move(block, *places, read, write, variable, once))

    def table(
        self,
        block: int,
        pos: str,
        keys: Sequence[Int[np.ndarray, " neuron"]],
        values: Sequence[Int[np.ndarray, " neuron"]],
        strength: float = 1.0,
        *,
        stores: Int[np.ndarray, "neuron part"] | None = None,
        asked: Bool[np.ndarray, " neuron"] | None = None,
        anywhere: bool = False,
        same_as: int | None = None,
    ) -> None:
        """Add a table of neurons; see `LookupTable`.

        Args:
          block: the block of the neurons.
          pos: the name of the position. Its code becomes an additional key of every neuron, unless
            the table works anywhere.
          keys: for each part of the key, the dimension that each neuron requires to be 1.
          values: for each part of the value, the dimension to which each neuron writes.
          strength: the number that an active neuron adds to each of its value dimensions.
          stores: what each neuron stores.
          asked: for each neuron, whether the answer of some chain needs the neuron; by default true
            for all neurons.
          anywhere: whether the neurons can be active at every position. `pos` is then the position
            where the answer of a chain needs them.
          same_as: the index of an earlier table whose neurons this table uses in a later loop.
        """
        here = np.full_like(keys[0], self.position[POSITIONS.index(pos)])
        asked = np.ones(len(here), bool) if asked is None else asked
        keys = [*keys] if anywhere else [*keys, here]
        together = np.stack(keys), np.stack(values), strength
        self.tables.append(
            LookupTable(block, POSITIONS.index(pos), *together, stores, asked, same_as)
        )

    def states(
        self, entity: int, relations: Sequence[int]
    ) -> tuple[Float[np.ndarray, "layer pos width"], Float[np.ndarray, "block pos width"]]:
        """Return the residual stream of a prompt, in the one-hot dimensions of the draft.

        Args:
          entity: the number of e1.
          relations: the numbers of r1 and r2.

        Returns:
          The states before each block and after the last one, [depth + 1, pos, width], and the
          states between the heads and the MLP of each block, [depth, pos, width].
        """
        state = np.zeros((len(POSITIONS), self.width))
        state[0, self.entity[entity]] = 1
        state[np.arange(1, len(POSITIONS)), self.relation[list(relations)]] = 1
        state[np.arange(len(POSITIONS)), self.position] = 1
        before, between = [state], []
        for block in range(self.depth):
            wrote = state.copy()
            for move in self.in_block(self.moves, block):
                seen = state[[attended(query, move) for query in range(len(POSITIONS))]]
                copied = seen[:, move.read] - move.once * seen[:, move.write]
                wrote[:, move.write] += copied
            between.append(wrote)
            state = wrote.copy()
            for table in self.in_block(self.tables, block):
                active = (wrote[:, table.keys].sum(1) > len(table.keys) - 0.5) * table.strength
                for value in table.values:
                    state += active @ np.eye(self.width)[value]
            before.append(state)
        return np.stack(before), np.stack(between)

    def in_block(self, parts: Sequence[_Part], block: int) -> list[_Part]:
        """Return the moves, or the tables with their own neurons, that a block has in all loops."""
        return [
            part
            for part in parts
            if part.block % self.n_layers == block % self.n_layers
            and getattr(part, "same_as", None) is None
        ]


_Part = TypeVar("_Part", Move, LookupTable)


def attended(query: int, move: Move) -> int:
    """Return the position that a head attends to from the position `query`.

    From its target, a head attends to its source. From any other position, it should attend to a
    position that is not the source, where there is nothing to copy. From its source, a head attends
    to the first position. From all remaining positions, it attends to the same position. (If the
    source is the first position, the head also copies the code within that position.)
    """
    if query == move.target:
        return move.source
    return 0 if query == move.source else query
