"""Chains: facts in a row, each starting where the one before it ends.

A chain is a row of fact numbers; its entities, relations and roles are look-ups in the world. An
atomic fact is the chain of one hop, so that one set of tools serves both.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int

from implicit_reasoning.worlds.world import ROLES, World


@dataclass(frozen=True, eq=False)
class Chains:
    """Some chains of one world, all of the same number of hops.

    Attributes:
      world: the world whose facts they use.
      facts: int32 [chain, hop], the fact used at each hop.
    """

    world: World
    facts: Int[np.ndarray, "chain hop"]

    def __len__(self) -> int:
        return len(self.facts)

    def __getitem__(
        self, rows: slice | Int[np.ndarray, " row"] | Bool[np.ndarray, " row"]
    ) -> Chains:
        if isinstance(rows, slice):
            return Chains(self.world, self.facts[rows])
        # Whole rows by their numbers: `take` is several times as fast as an index here.
        numbers = np.flatnonzero(rows) if rows.dtype == bool else rows
        return Chains(self.world, np.take(self.facts, numbers, axis=0))

    @property
    def hops(self) -> int:
        """Number of hops."""
        return self.facts.shape[1]

    @cached_property
    def entities(self) -> Int[np.ndarray, "chain entity"]:
        """int32 [chain, hops + 1]: e1, then where each hop leads; the last is the answer."""
        facts = self.world.facts
        return np.concatenate([facts.head[self.facts[:, :1]], facts.tail[self.facts]], axis=1)

    @cached_property
    def relations(self) -> Int[np.ndarray, "chain hop"]:
        """int32 [chain, hop]: the relation of each hop."""
        return self.world.facts.relation[self.facts]

    @cached_property
    def roles(self) -> Int[np.ndarray, "chain hop"]:
        """int8 [chain, hop]: the role of each hop's fact, an index into `ROLES`."""
        return self.world.facts.role[self.facts]

    def allows(self, *roles: str) -> Bool[np.ndarray, " chain"]:
        """Which chains have facts of the given roles, hop by hop: `allows("IR", "I")`."""
        keep = np.ones(len(self), bool)
        for hop, letters in enumerate(roles):
            fits = np.isin(self.world.facts.role, [ROLES.index(letter) for letter in letters])
            keep &= fits[self.facts[:, hop]]
        return keep

    def matches(self, pattern: str) -> Bool[np.ndarray, " chain"]:
        """Which chains are of a pattern, such as `"io"`.

        `o` is an `O` fact, `i` any other that training allows at that hop; see `inside`.
        """
        return self.allows(
            *("O" if letter == "o" else training_roles(hop) for hop, letter in enumerate(pattern))
        )

    def where(self, pattern: str) -> Chains:
        """The chains of one pattern, in the order they stand here."""
        return self[self.matches(pattern)]

    def shuffled(self, random: np.random.Generator) -> Chains:
        """The same chains in random order."""
        return self[random_order(len(self), random)]


def random_order(count: int, random: np.random.Generator) -> Int[np.ndarray, " row"]:
    """int32: the numbers below `count` in random order, the same as `random.permutation`'s."""
    order = np.arange(count, dtype=np.int32)  # half the memory of theirs
    random.shuffle(order)
    return order


def training_roles(hop: int) -> str:
    """The roles that training chains may have at a hop, counted from 0: `i` in a pattern's name."""
    return "IHR" if hop == 0 else "IH"


def patterns(hops: int) -> list[str]:
    """Names of all role patterns, first letter = first hop: ii, io, oi, oo for two hops."""
    return ["".join(pattern) for pattern in itertools.product("io", repeat=hops)]


def enumerate_chains(world: World, hops: int) -> Chains:
    """All chains of `hops` hops, ordered by their fact numbers.

    The number of chains is `n_facts * out_degree ** (hops - 1)`: 800,000 for two hops at the
    published size 2000/200/20, in a few hundredths of a second.
    """
    head, tail = world.facts.head, world.facts.tail
    entities = np.arange(world.n_entities, dtype=np.int32)
    first_fact = np.searchsorted(head, entities).astype(np.int32)
    degree = np.bincount(head, minlength=world.n_entities)
    facts = np.arange(world.n_facts, dtype=np.int32)[:, None]
    for _ in range(1, hops):
        end = tail[facts[:, -1]]
        chain, following = expand(first_fact[end], degree[end])
        facts = np.column_stack([facts[chain], following])
    return Chains(world, facts)


def expand(
    start: Int[np.ndarray, "range"], length: Int[np.ndarray, "range"]
) -> tuple[Int[np.ndarray, " item"], Int[np.ndarray, " item"]]:
    """Write out ranges: `start = [7, 3], length = [2, 1]` gives owners [0, 0, 1], items [7, 8, 3].

    The one primitive behind every join in this room. Both results have the dtype of `start`.
    """
    owner = np.repeat(np.arange(len(length), dtype=start.dtype), length)
    # An item's place in its own range = its place among all items - the items before its range.
    before = (np.cumsum(length) - length).astype(start.dtype)
    item = np.arange(len(owner), dtype=start.dtype)
    item += np.repeat(start - before, length)
    return owner, item


def exposure(facts: Int[np.ndarray, "chain hop"], n_facts: int) -> Int[np.ndarray, "fact hop"]:
    """How often each fact is used at each hop of the given chains: int32 [fact, hop]."""
    counts = [np.bincount(column, minlength=n_facts) for column in facts.T]
    return np.column_stack(counts).astype(np.int32)
