"""Pairs of entities to compare, sampled without listing millions of pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from implicit_reasoning.worlds.world import ROLES, Stream, World, stream

PATTERNS = ("ii", "io", "oi", "oo")
"""Role patterns of comparisons: roles of the first and of the second entity."""

_WRITTEN_OUT = 2**20
"""Sets of up to this many pairs are listed and shuffled. From larger sets, pairs are sampled."""

_RARE = 1 / 32
"""A larger set is also listed if less than this fraction of its pairs can be used.

Sampling would reject most pairs of such a set, and be slow.
"""


class ComparisonPairs(NamedTuple):
    """The ordered pairs of entities that can be compared, with a mask of held-out pairs.

    Attributes:
      world: entities and their values. The role of the fact (entity, attribute) is the role of the
        entity for this attribute.
      sides: two arrays int [attribute, entity]: for every attribute, the entities with role `I`
        (used in training comparisons) and the entities with role `O` (not used).
      held_out: bool [attribute, entity, entity], symmetric: the pairs that are never trained on.
    """

    world: World
    sides: tuple[Int[np.ndarray, "attribute inside"], Int[np.ndarray, "attribute outside"]]
    held_out: Bool[np.ndarray, "attribute entity entity"]

    @classmethod
    def of(cls, world: World, n_entities: int, holdout: int | float) -> ComparisonPairs:
        """Create the pairs of the first `n_entities` entities, and hold out a random fraction.

        Args:
          world: entities and their values.
          n_entities: number of entities to compare. The remaining entities of `world` are values.
          holdout: probability that an unordered pair is held out.
        """
        shape = (world.n_relations, n_entities, n_entities)
        draws = stream(world.seed, Stream.HELD_OUT).random(shape, dtype=np.float32)
        above = np.triu(draws < holdout, 1)  # one draw per unordered pair
        role = world.role[:n_entities].T
        inside, outside = (
            np.nonzero(role == ROLES.index(letter))[1].reshape(world.n_relations, -1)
            for letter in "IO"
        )
        return cls(world, (inside, outside), above | above.transpose(0, 2, 1))

    @property
    def n_trainable(self) -> int:
        """Number of ordered pairs of `I` entities that are not held out, over all attributes."""
        members = zip(self.held_out, self.sides[0], strict=True)
        return self.count("ii") - sum(int(table[np.ix_(i, i)].sum()) for table, i in members)

    def count(self, pattern: str) -> int:
        """Return the number of ordered pairs with a role pattern, over all attributes.

        Held-out pairs are counted. Pairs of an entity with itself are not.

        Args:
          pattern: one of `PATTERNS`, such as "io".
        """
        first, second = (self.sides["io".index(letter)] for letter in pattern)
        pairs = first.size * second.shape[1]
        return pairs - first.size if first is second else pairs

    def draw(self, pattern: str, count: int, tested: bool = False) -> Int[np.ndarray, "pair 3"]:
        """Sample distinct comparisons (attribute, entity1, entity2) in random order.

        The comparisons for a smaller `count` are a prefix of the comparisons for a larger `count`.

        Args:
          pattern: one of `PATTERNS`, such as "io".
          count: number of comparisons. If fewer exist, all of them are returned.
          tested: for the pattern "ii", True samples only held-out pairs, and False samples only
            pairs that are not held out. All other patterns ignore it.

        Returns:
          int32 [pair, 3], with the columns attribute, entity1 and entity2.
        """
        first, second = (self.sides["io".index(letter)] for letter in pattern)
        shape = (len(first), first.shape[1], second.shape[1])

        def pairs(codes: np.ndarray) -> np.ndarray:
            attribute, one, two = np.unravel_index(codes, shape)
            return np.column_stack([attribute, first[attribute, one], second[attribute, two]])

        def wanted(codes: np.ndarray) -> np.ndarray:
            attribute, one, two = pairs(codes).T
            held_out = self.held_out[attribute, one, two] == tested
            return (one != two) & (held_out | (pattern != "ii"))

        total, available = int(np.prod(shape)), self.count(pattern)
        if pattern == "ii":
            available = available - self.n_trainable if tested else self.n_trainable
        random = stream(self.world.seed, Stream.PAIRS, PATTERNS.index(pattern), int(tested))
        if total <= _WRITTEN_OUT or available < _RARE * total:
            order = random.permutation(total)
            codes = order[wanted(order)][:count]
        else:
            codes = _distinct(random, total, min(count, available), wanted)
        return pairs(codes).astype(np.int32)


def _distinct(
    random: np.random.Generator,
    total: int,
    count: int,
    wanted: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Return `count` distinct numbers below `total` that are `wanted`; at least `count` must exist.

    These are the first wanted numbers of a random sequence that does not depend on `count`.
    """
    found, n_draws = np.empty(0, np.int64), count
    while len(found) < count:
        draws = random.integers(total, size=n_draws)
        found = np.concatenate([found, draws[wanted(draws)]])
        found = found[np.sort(np.unique(found, return_index=True)[1])]
    return found[:count]
