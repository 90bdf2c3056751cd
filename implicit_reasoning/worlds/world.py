"""A world: every fact `(head, relation) -> tail` there is, and the role each plays in training.

A world is a dense table, so that "what is true" is one array look-up everywhere else. Source: Wang
et al. 2024, section 3.1 (the generator); Ye et al. 2025 (the roles of single facts).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from implicit_reasoning.errors import InputError

ROLES = ("I", "O", "H", "R")
"""What a fact may be:

- `I`: seen as an atomic triple, and in training chains at any hop;
- `O`: seen only as an atomic triple;
- `H`: held out, seen only in training chains, never as an atomic triple;
- `R`: restricted, seen as an atomic triple and as a first hop, never as a later one.

`World.role` holds indices into this tuple; a study that needs another role appends one letter here.
"""

NONE = -1
"""Marks "there is none" in every integer table and column of this room."""


class Stream(enum.IntEnum):
    """One independent stream of random numbers a purpose, so that no choice disturbs another."""

    RELATIONS = 0
    TAILS = 1
    ROLES = 2
    FACT_ORDER = 3
    CHAIN_ORDER = 4
    SHADOW_TAILS = 5
    SCRAMBLED_ANSWERS = 6
    OTHER_ROLES = 7
    HELD_OUT = 8
    PAIRS = 9


def stream(seed: int, *purpose: int) -> np.random.Generator:
    """The generator of `seed` for one purpose; a task of your own takes a number from 100 on."""
    return np.random.default_rng([seed, *map(int, purpose)])


class Facts(NamedTuple):
    """The facts of a world as columns, in row-major order of (head, relation): fact 0, 1, 2, ..."""

    head: Int[np.ndarray, " fact"]
    relation: Int[np.ndarray, " fact"]
    tail: Int[np.ndarray, " fact"]
    role: Int[np.ndarray, " fact"]


@dataclass(frozen=True, eq=False)
class World:
    """All facts of one world.

    Attributes:
      tail: int32 [entity, relation], the entity that a fact leads to; -1 where there is no fact.
      role: int8 [entity, relation], index into `ROLES`; -1 where there is no fact.
      seed: the seed it was drawn from (0 for a world that was not drawn).
    """

    tail: Int[np.ndarray, "entity relation"]
    role: Int[np.ndarray, "entity relation"]
    seed: int

    @property
    def n_entities(self) -> int:
        """Number of entities."""
        return self.tail.shape[0]

    @property
    def n_relations(self) -> int:
        """Number of relations."""
        return self.tail.shape[1]

    @property
    def n_facts(self) -> int:
        """Number of facts."""
        return len(self.facts.head)

    @cached_property
    def facts(self) -> Facts:
        """The facts as int32 columns (role: int8), each [fact]."""
        head, relation = np.nonzero(self.tail >= 0)
        return Facts(
            head.astype(np.int32),
            relation.astype(np.int32),
            self.tail[head, relation],
            self.role[head, relation],
        )

    @cached_property
    def fact_id(self) -> Int[np.ndarray, "entity relation"]:
        """int32 [entity, relation]: the number of the fact there, -1 where there is none."""
        table = np.full(self.tail.shape, NONE, np.int32)
        table[self.facts.head, self.facts.relation] = np.arange(self.n_facts)
        return table


def make_world(
    n_entities: int, n_relations: int, out_degree: int, ood_fraction: int | float, seed: int
) -> World:
    """Draw a world: `out_degree` distinct relations a head, tails uniform, a random share of `O`.

    A fact may lead back to its head, and two facts of a head may share a tail, as published.

    Args:
      n_entities: number of entities, at least 1.
      n_relations: number of relations, at least 1.
      out_degree: facts a head, at most `n_relations`.
      ood_fraction: share of *facts* with role `O`, 0 to 1; rounded to a count.
      seed: 0 or more.

    Raises:
      InputError: a size, degree, share or seed out of bounds.
    """
    check_range("n_entities", n_entities, 1)
    check_range("n_relations", n_relations, 1)
    check_range("out_degree", out_degree, 1, n_relations, " (n_relations)")
    check_range("ood_fraction", ood_fraction, 0, 1)
    check_range("world_seed", seed, 0)
    check_count("n_entities x n_relations", n_entities * n_relations)
    shape = (n_entities, n_relations)
    # Only the *set* of the smallest draws is used: their order may differ between processors.
    draws = stream(seed, Stream.RELATIONS).random(shape)
    chosen = np.argpartition(draws, out_degree - 1, axis=1)[:, :out_degree]
    exists = np.zeros(shape, bool)
    np.put_along_axis(exists, chosen, True, axis=1)
    tails = stream(seed, Stream.TAILS).integers(n_entities, size=shape, dtype=np.int32)

    n_facts = n_entities * out_degree
    role = np.full(n_facts, ROLES.index("I"), np.int8)
    order = stream(seed, Stream.ROLES).permutation(n_facts)
    role[order[: round(ood_fraction * n_facts)]] = ROLES.index("O")
    return world_from_table(np.where(exists, tails, np.int32(NONE)), role, seed)


def world_from_table(
    tail: Int[np.ndarray, "entity relation"], role: Int[np.ndarray, " fact"] | int, seed: int = 0
) -> World:
    """A world of a given table (-1: no fact), with a role for every fact in row-major order."""
    table = np.full(tail.shape, NONE, np.int8)
    table[tail >= 0] = role
    return World(tail.astype(np.int32), table, seed)


def redraw_tails(world: World, purpose: int) -> World:
    """Another world over the same (entity, relation) pairs and roles, its tails drawn anew."""
    exists = world.tail >= 0
    tails = stream(world.seed, purpose).integers(
        world.n_entities, size=world.tail.shape, dtype=np.int32
    )
    return World(np.where(exists, tails, np.int32(NONE)), world.role, world.seed)


def with_role(world: World, letter: str, share: int | float) -> World:
    """The same facts, with a random share of the `I` ones (rounded to a count) given another role.

    A larger share only adds to a smaller one.
    """
    role = world.facts.role.copy()
    inside = np.flatnonzero(role == ROLES.index("I"))
    order = stream(world.seed, Stream.OTHER_ROLES).permutation(inside)
    role[order[: round(share * len(inside))]] = ROLES.index(letter)
    return world_from_table(world.tail, role, world.seed)


def check_range(
    name: str,
    value: int | float,
    low: int | float,
    high: int | float = np.inf,
    what_high_is: str = "",
) -> None:
    """Raise an `InputError` that names the value and the bound unless `low <= value <= high`."""
    if not low <= value <= high:
        bound = f"at least {low}" if high == np.inf else f"from {low} to {high}{what_high_is}"
        raise InputError(f"{name} = {value} is out of bounds: it must be {bound}")


MAX_COUNT = 2**31 - 1  # numbers of facts, tokens and rows are int32


def check_count(name: str, count: int) -> None:
    """Raise an `InputError` unless so many things can be numbered, and so be made at all."""
    if count > MAX_COUNT:
        raise InputError(f"{name} = {count:,} is too many: there can be at most {MAX_COUNT:,}")
