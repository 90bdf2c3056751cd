"""Chains: sequences of facts in which each fact starts at the tail of the previous fact.

A chain is an array of fact numbers. Its entities, relations and roles are read from the world. An
atomic fact is a chain with one hop, so the same functions handle facts and chains.
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
    """Chains of one world, all with the same number of hops.

    Attributes:
      world: the world of the facts.
      facts: int32 [chain, hop], the fact number at each hop.
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
        # `take` with row numbers is several times as fast as indexing with `[]`.
        numbers = np.flatnonzero(rows) if rows.dtype == bool else rows
        return Chains(self.world, np.take(self.facts, numbers, axis=0))

    @property
    def hops(self) -> int:
        """Number of hops."""
        return self.facts.shape[1]

    @cached_property
    def entities(self) -> Int[np.ndarray, "chain entity"]:
        """Entities of each chain, int32 [chain, hops + 1]: the head e1, then one tail per hop."""
        facts = self.world.facts
        return np.concatenate([facts.head[self.facts[:, :1]], facts.tail[self.facts]], axis=1)

    @cached_property
    def relations(self) -> Int[np.ndarray, "chain hop"]:
        """Relation at each hop, int32 [chain, hop]."""
        return self.world.facts.relation[self.facts]

    @cached_property
    def roles(self) -> Int[np.ndarray, "chain hop"]:
        """Role of the fact at each hop, int8 [chain, hop], as an index into `ROLES`."""
        return self.world.facts.role[self.facts]

    def allows(self, *roles: str) -> Bool[np.ndarray, " chain"]:
        """Return which chains have facts with the given roles, bool [chain].

        `allows("IR", "I")` selects the chains whose first fact has the role `I` or `R` and whose
        second fact has the role `I`.

        Args:
          *roles: for each hop, the allowed letters of `ROLES`.
        """
        keep = np.ones(len(self), bool)
        for hop, letters in enumerate(roles):
            fits = np.isin(self.world.facts.role, [ROLES.index(letter) for letter in letters])
            keep &= fits[self.facts[:, hop]]
        return keep

    def matches(self, pattern: str) -> Bool[np.ndarray, " chain"]:
        """Return which chains match a pattern of roles, bool [chain].

        Args:
          pattern: one letter for each hop, such as "io". `o` matches a fact with the role `O`. `i`
            matches a fact with any role in `training_roles` at that hop.
        """
        return self.allows(
            *("O" if letter == "o" else training_roles(hop) for hop, letter in enumerate(pattern))
        )

    def where(self, pattern: str) -> Chains:
        """Return the chains that match a pattern of roles, in unchanged order.

        Args:
          pattern: a pattern as for `matches`, such as "io".
        """
        return self[self.matches(pattern)]

    def shuffled(self, random: np.random.Generator) -> Chains:
        """Return the same chains in random order."""
        return self[random_order(len(self), random)]


def random_order(count: int, random: np.random.Generator) -> Int[np.ndarray, " row"]:
    """Return the integers 0 to `count - 1` in random order, as int32.

    The result equals `random.permutation(count)`, but takes half the memory.
    """
    order = np.arange(count, dtype=np.int32)  # half the memory of `random.permutation`
    random.shuffle(order)
    return order


def training_roles(hop: int) -> str:
    """Return the roles that facts at a hop may have if the pattern of the chain has the letter i.

    For example, both facts of the chains in the split `test_ii` have this letter.

    All training chains use facts with these roles, except for a few chains that some tasks add. The
    first facts of these added chains have the role `C`, `S` or `E`.

    Args:
      hop: hop of the chain, from 0.
    """
    return "IHR" if hop == 0 else "IHC"


def patterns(hops: int) -> list[str]:
    """Return all role patterns, such as ii, io, oi and oo for two hops.

    The first letter is the first hop.
    """
    return ["".join(pattern) for pattern in itertools.product("io", repeat=hops)]


def enumerate_chains(world: World, hops: int) -> Chains:
    """Return all chains of `hops` hops, ordered by their fact numbers.

    There are `n_facts * out_degree ** (hops - 1)` chains. At the published size (2,000 entities,
    200 relations, out-degree 20), the 800,000 two-hop chains take a few hundredths of a second.
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
    """List the items of ranges of consecutive integers, with the index of each item's range.

    `start = [7, 3], length = [2, 1]` describe the ranges (7, 8) and (3). The function returns the
    indices [0, 0, 1] and the items [7, 8, 3]. All joins in this package use this function.

    Args:
      start: first item of each range.
      length: number of items of each range.

    Returns:
      The index of the range of each item, and the items. Both arrays have the dtype of `start`.
    """
    owner = np.repeat(np.arange(len(length), dtype=start.dtype), length)
    # Position of an item in its range = its position among all items - number of items before its
    # range.
    before = (np.cumsum(length) - length).astype(start.dtype)
    item = np.arange(len(owner), dtype=start.dtype)
    item += np.repeat(start - before, length)
    return owner, item


def exposure(facts: Int[np.ndarray, "chain hop"], n_facts: int) -> Int[np.ndarray, "fact hop"]:
    """Count how often the given chains use each fact at each hop.

    Args:
      facts: the fact number at each hop of each chain.
      n_facts: number of facts in the world.

    Returns:
      int32 [fact, hop], number of chains.
    """
    counts = [np.bincount(column, minlength=n_facts) for column in facts.T]
    return np.column_stack(counts).astype(np.int32)
