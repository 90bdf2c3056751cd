"""Chains: sequences of facts in which each fact starts at the tail of the fact before it.

A chain is an array of fact numbers. Its entities, relations and roles are read from the world. An
atomic fact is a chain of one hop, so the same functions handle facts and chains.
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
    """Chains of one world that have the same number of hops.

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
        """Entities, int32 [chain, hops + 1]: e1, then the tail of each hop up to the answer."""
        facts = self.world.facts
        return np.concatenate([facts.head[self.facts[:, :1]], facts.tail[self.facts]], axis=1)

    @cached_property
    def relations(self) -> Int[np.ndarray, "chain hop"]:
        """Relation of each hop, int32 [chain, hop]."""
        return self.world.facts.relation[self.facts]

    @cached_property
    def roles(self) -> Int[np.ndarray, "chain hop"]:
        """Role of each hop's fact, int8 [chain, hop], as index into `ROLES`."""
        return self.world.facts.role[self.facts]

    def allows(self, *roles: str) -> Bool[np.ndarray, " chain"]:
        """Return which chains have, at every hop, a fact with one of the roles given for that hop.

        `allows("IR", "I")` selects the chains whose first fact has the role `I` or `R` and whose
        second fact has the role `I`.
        """
        keep = np.ones(len(self), bool)
        for hop, letters in enumerate(roles):
            fits = np.isin(self.world.facts.role, [ROLES.index(letter) for letter in letters])
            keep &= fits[self.facts[:, hop]]
        return keep

    def matches(self, pattern: str) -> Bool[np.ndarray, " chain"]:
        """Return which chains match a role pattern, such as `"io"`.

        `o` matches an `O` fact; `i` matches any role in `training_roles` at that hop.
        """
        return self.allows(
            *("O" if letter == "o" else training_roles(hop) for hop, letter in enumerate(pattern))
        )

    def where(self, pattern: str) -> Chains:
        """Return the chains that match a pattern, in their present order."""
        return self[self.matches(pattern)]

    def shuffled(self, random: np.random.Generator) -> Chains:
        """Return the same chains in random order."""
        return self[random_order(len(self), random)]


def random_order(count: int, random: np.random.Generator) -> Int[np.ndarray, " row"]:
    """Return the numbers below `count` in the order of `random.permutation`, as int32."""
    order = np.arange(count, dtype=np.int32)  # half the memory of `random.permutation`
    random.shuffle(order)
    return order


def training_roles(hop: int) -> str:
    """Return the roles that the fact at a hop (from 0) of a training chain may have.

    In role patterns, `i` stands for these roles. Facts with the roles `C`, `S` and `E` are first
    facts of a few more training chains, which their tasks choose.
    """
    return "IHR" if hop == 0 else "IHC"


def patterns(hops: int) -> list[str]:
    """Return the names of all role patterns, first hop first: ii, io, oi, oo for two hops."""
    return ["".join(pattern) for pattern in itertools.product("io", repeat=hops)]


def enumerate_chains(world: World, hops: int) -> Chains:
    """Return all chains of `hops` hops, ordered by their fact numbers.

    There are `n_facts * out_degree ** (hops - 1)` chains: 800,000 for two hops at the published
    size (2,000 entities, 200 relations, out-degree 20). This takes a few hundredths of a second.
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
    """List the items of ranges of consecutive numbers, and the range that each item belongs to.

    `start = [7, 3], length = [2, 1]` are the ranges 7, 8 and 3: the function returns the range
    numbers [0, 0, 1] and the items [7, 8, 3]. All joins in this package use this function.

    Args:
      start: first item of each range.
      length: number of items of each range.

    Returns:
      The number of the range of each item, and the items. Both have the dtype of `start`.
    """
    owner = np.repeat(np.arange(len(length), dtype=start.dtype), length)
    # Position of an item in its range = its position among all items - number of items before its
    # range.
    before = (np.cumsum(length) - length).astype(start.dtype)
    item = np.arange(len(owner), dtype=start.dtype)
    item += np.repeat(start - before, length)
    return owner, item


def exposure(facts: Int[np.ndarray, "chain hop"], n_facts: int) -> Int[np.ndarray, "fact hop"]:
    """Count how often each fact is used at each hop of the given chains, int32 [fact, hop]."""
    counts = [np.bincount(column, minlength=n_facts) for column in facts.T]
    return np.column_stack(counts).astype(np.int32)
