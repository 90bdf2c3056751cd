"""Labels of comparisons that follow from known comparisons by transitivity.

The comparisons of one attribute form a directed graph. An edge leads from the smaller to the larger
entity of each comparison. Edges in both directions connect equal entities. A label follows by
transitivity if the graph has a path between the two entities in the corresponding direction.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

UNKNOWN = -1
"""Marks a label that does not follow. The labels 0, 1 and 2 mean smaller, equal and larger."""


def from_comparisons(
    value: Int[np.ndarray, " entity"],
    compared: Int[np.ndarray, "pair 2"],
    asked: Int[np.ndarray, " asked"],
) -> Int[np.ndarray, "asked asked"]:
    """Infer the labels of all pairs of entities from comparisons alone.

    Args:
      value: int [entity], the true values. They only determine the results of the comparisons in
        `compared`.
      compared: int [pair, 2], the pairs of entities whose comparison is known.
      asked: int [asked], the entities to label.

    Returns:
      int64 [asked, asked], the label of (row, column): 0 smaller, 1 equal, 2 larger, -1 if no label
      follows.
    """
    first, second = value[compared[:, 0]], value[compared[:, 1]]
    group = _groups(len(value), compared[first == second])
    low, high = np.where((first < second)[:, None], compared, compared[:, ::-1])[first != second].T
    # `below` has, for each group, the asked entities below it as bits of one integer. Edges are
    # processed in ascending order of the larger value, so the bits of the smaller entity of an edge
    # are complete when the edge is processed.
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
    """Infer the labels of all pairs of entities from comparisons and known values.

    Args:
      value: int [entity], the true values.
      known: bool [entity], the entities whose values are known.
      compared: int [pair, 2], the pairs of entities whose comparison is known.
      asked: int [asked], the entities to label. Their values are not known, and `compared` pairs
        them with known entities only.

    Returns:
      int64 [asked, asked], the label of (row, column): 0 smaller, 1 equal, 2 larger, -1 if no label
      follows.
    """
    # A path between two entities in `asked` passes through known entities, which are ordered by
    # their values. Only the nearest known value on either side matters. Values are doubled, so that
    # "just above" has its own integer.
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
    """Return a group number for every entity. Entities that compare as equal share a group."""
    group = np.arange(n_entities)
    while True:
        smaller = group.copy()
        np.minimum.at(smaller, equal[:, 0], group[equal[:, 1]])
        np.minimum.at(smaller, equal[:, 1], group[equal[:, 0]])
        if (smaller == group).all():
            return group
        group = smaller
