"""What follows from comparisons, with and without the values behind them.

For one attribute, draw an arrow from the smaller to the larger entity of every comparison known,
and arrows both ways between equals. Whatever follows by transitivity follows along a path.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

UNKNOWN = -1
"""Stands for a label that does not follow; 0, 1 and 2 are smaller, equal and larger."""


def from_comparisons(
    value: Int[np.ndarray, " entity"],
    compared: Int[np.ndarray, "pair 2"],
    asked: Int[np.ndarray, " asked"],
) -> Int[np.ndarray, "asked asked"]:
    """The labels that follow from comparisons alone, for all pairs of the entities asked.

    Args:
      value: the true values; they say what each comparison said, and nothing else is taken of them.
      compared: the comparisons known.
      asked: entities.

    Returns:
      int64 [asked, asked]: label of (row, column), -1 where none follows.
    """
    first, second = value[compared[:, 0]], value[compared[:, 1]]
    group = _groups(len(value), compared[first == second])
    low, high = np.where((first < second)[:, None], compared, compared[:, ::-1])[first != second].T
    # Who lies below each group, as bits of one number. Arrows lead to larger values only: taken in
    # the order of their heads, all that leads to an arrow's tail is known when its turn comes.
    below = [0] * len(value)
    for bit, entity in enumerate(asked.tolist()):
        below[group[entity]] |= 1 << bit
    upwards = np.argsort(value[high], kind="stable")
    for one, other in zip(group[low[upwards]].tolist(), group[high[upwards]].tolist(), strict=True):
        below[other] |= below[one]

    label = np.full((len(asked), len(asked)), UNKNOWN)
    for column, entity in enumerate(group[asked].tolist()):
        bits = f"{below[entity]:0{len(asked)}b}"[::-1]
        label[np.array(list(bits)) == "1", column] = 0
    label[label.T == 0] = 2
    label[group[asked][:, None] == group[asked]] = 1
    return label


def from_facts_too(
    value: Int[np.ndarray, " entity"],
    known: Bool[np.ndarray, " entity"],
    compared: Int[np.ndarray, "pair 2"],
    asked: Int[np.ndarray, " asked"],
) -> Int[np.ndarray, "asked asked"]:
    """The labels that follow when the values of some entities are known as well.

    Args:
      value: the true values.
      known: the entities whose values are known.
      compared: the comparisons known.
      asked: entities, none of them known, and compared with known ones only.
    """
    # A path between two entities asked passes known ones, which their values put in order: what
    # counts is the nearest known value on either side. Doubled, to have room for "just above".
    lower, upper = np.full(len(value), -1), np.full(len(value), 2 * int(value.max(initial=0)) + 1)
    for entity, other in (compared.T, compared[:, ::-1].T):
        use = known[other]
        entity, other = entity[use], other[use]
        sign = np.sign(value[entity] - value[other])
        np.maximum.at(lower, entity[sign >= 0], (2 * value[other] + sign)[sign >= 0])
        np.minimum.at(upper, entity[sign <= 0], (2 * value[other] + sign)[sign <= 0])
    low, high = lower[asked], upper[asked]
    label = np.full((len(asked), len(asked)), UNKNOWN)
    label[high[:, None] < low] = 0
    label[low[:, None] > high] = 2
    label[(low == high)[:, None] & (low == high) & (low[:, None] == low)] = 1
    return label


def _groups(n_entities: int, equal: Int[np.ndarray, "pair 2"]) -> Int[np.ndarray, " entity"]:
    """A number for every entity, the same for those that comparisons say are equal."""
    group = np.arange(n_entities)
    while True:
        smaller = group.copy()
        np.minimum.at(smaller, equal[:, 0], group[equal[:, 1]])
        np.minimum.at(smaller, equal[:, 1], group[equal[:, 0]])
        if (smaller == group).all():
            return group
        group = smaller
