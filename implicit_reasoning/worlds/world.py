"""A world: all facts `(head, relation) -> tail`, and the role of each fact in training.

A world is a dense table, so looking up a fact is one array access. Source: Wang et al. 2024,
section 3.1 (the generator); Ye et al. 2025 (the roles of single facts).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from implicit_reasoning.errors import InputError

ROLES = ("I", "O", "H", "R", "C", "S", "E")
"""Roles of a fact:

- `I`: in distribution; appears as an atomic triple and in training chains at any hop.
- `O`: out of distribution; appears only as an atomic triple.
- `H`: held out; appears only in training chains, never as an atomic triple.
- `R`: restricted; appears as an atomic triple and as a first hop, never as a later hop.
- `C`: cold; appears as an atomic triple, as a first hop in a few training chains only, and as a
  later hop like `I`.
- `S`: split; the atomic triple and the training chains, a few, contradict each other. It appears
  as a first hop only.
- `E`: identity; leads from an entity to itself by an additional relation, and appears in training
  chains only (see `tasks.identity`).

`World.role` holds indices into this tuple. New roles are appended at the end.
"""

NONE = -1
"""Marks a missing value in every integer table and column of this package."""


class Stream(enum.IntEnum):
    """Numbers of independent random streams, one for each purpose.

    Random choices for one purpose therefore do not depend on the choices for any other purpose.
    """

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
    FEW_CHAINS = 10
    IDENTITY = 11


def stream(seed: int, *purpose: int) -> np.random.Generator:
    """Return the random generator for a seed and a purpose.

    Args:
      seed: random seed of the world.
      *purpose: a member of `Stream`, and optionally further numbers. User-defined tasks use numbers
        from 100.
    """
    return np.random.default_rng([seed, *map(int, purpose)])


class Facts(NamedTuple):
    """The facts of a world as columns [fact].

    The number of a fact is its index. Facts are in row-major order of (head, relation).
    """

    head: Int[np.ndarray, " fact"]
    relation: Int[np.ndarray, " fact"]
    tail: Int[np.ndarray, " fact"]
    role: Int[np.ndarray, " fact"]


@dataclass(frozen=True, eq=False)
class World:
    """All facts of one world.

    Attributes:
      tail: int32 [entity, relation], tail entity of each fact; -1 if there is no fact.
      role: int8 [entity, relation], index into `ROLES`; -1 if there is no fact.
      seed: random seed of the world; 0 if the world was not generated randomly.
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
        """The facts as columns [fact]: int8 for the role, int32 for all other columns."""
        head, relation = np.nonzero(self.tail >= 0)
        return Facts(
            head.astype(np.int32),
            relation.astype(np.int32),
            self.tail[head, relation],
            self.role[head, relation],
        )

    @cached_property
    def fact_id(self) -> Int[np.ndarray, "entity relation"]:
        """Number of each fact, int32 [entity, relation]; -1 if there is no fact."""
        table = np.full(self.tail.shape, NONE, np.int32)
        table[self.facts.head, self.facts.relation] = np.arange(self.n_facts)
        return table


def make_world(
    n_entities: int, n_relations: int, out_degree: int, ood_fraction: int | float, seed: int
) -> World:
    """Generate a random world in which a random fraction of the facts has the role `O`.

    `O` facts are not used in training chains. All other facts have the role `I`. Each head has
    `out_degree` facts with distinct relations. The tail of a fact is drawn uniformly from all
    entities. As in the published generator, a fact may lead back to its head, and two facts of a
    head may share a tail.

    Args:
      n_entities: number of entities, at least 1.
      n_relations: number of relations, at least 1.
      out_degree: number of facts per head, at most `n_relations`.
      ood_fraction: fraction of *facts* with role `O`, 0 to 1; rounded to a count.
      seed: random seed, at least 0.

    Raises:
      InputError: an argument is out of bounds.
    """
    check_range("n_entities", n_entities, 1)
    check_range("n_relations", n_relations, 1)
    check_range("out_degree", out_degree, 1, n_relations, " (n_relations)")
    check_range("ood_fraction", ood_fraction, 0, 1)
    check_range("world_seed", seed, 0)
    check_count("n_entities x n_relations", n_entities * n_relations)
    shape = (n_entities, n_relations)
    # Only the *set* of the smallest draws is used, because their order may differ between CPUs.
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
    """Create a world from a table of tails.

    Args:
      tail: int [entity, relation]; -1 if there is no fact.
      role: index into `ROLES`: one integer for all facts, or one per fact in row-major order.
      seed: recorded as the seed of the world.
    """
    table = np.full(tail.shape, NONE, np.int8)
    table[tail >= 0] = role
    return World(tail.astype(np.int32), table, seed)


def redraw_tails(world: World, purpose: int) -> World:
    """Return a world with new random tails and unchanged (entity, relation) pairs and roles.

    Args:
      world: the world.
      purpose: random stream, a member of `Stream`.
    """
    exists = world.tail >= 0
    tails = stream(world.seed, purpose).integers(
        world.n_entities, size=world.tail.shape, dtype=np.int32
    )
    return World(np.where(exists, tails, np.int32(NONE)), world.role, world.seed)


def with_role(world: World, letter: str, share: int | float) -> World:
    """Give a random fraction of the facts with role `I` the role `letter`.

    For the same seed, the facts chosen for a smaller fraction are a subset of the facts chosen for
    a larger fraction.

    Args:
      world: the world, which is not changed.
      letter: one of `ROLES`.
      share: the fraction, 0 to 1; rounded to a count.
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
    """Check that `low <= value <= high`.

    Args:
      name: name of the value, for the error message.
      value: the value.
      low: smallest allowed value.
      high: largest allowed value.
      what_high_is: text that the error message appends to `high`, such as " (n_relations)".

    Raises:
      InputError: the value is out of bounds. The message states the value and the bounds.
    """
    if not low <= value <= high:
        bound = f"at least {low}" if high == np.inf else f"from {low} to {high}{what_high_is}"
        raise InputError(f"{name} = {value} is out of bounds: it must be {bound}")


MAX_COUNT = 2**31 - 1  # numbers of facts, tokens and rows are int32


def check_count(name: str, count: int) -> None:
    """Check that a count does not exceed the range of int32.

    Raises:
      InputError: the count is too large.
    """
    if count > MAX_COUNT:
        raise InputError(f"{name} = {count:,} is too large: it must be at most {MAX_COUNT:,}")
