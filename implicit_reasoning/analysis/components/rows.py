"""Choose rows of any task whose answers are all at the same position."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from implicit_reasoning.analysis.instrument import NotApplicable
from implicit_reasoning.analysis.states import chain_splits, choose_rows
from implicit_reasoning.worlds import Dataset


class AnswerRows(NamedTuple):
    """Rows whose prompts have one length, with the answer after the last token.

    Attributes:
      rows: int [row], indices of dataset rows.
      splits: the names of the groups of rows.
      group: int [row], the split of each row, as an index into `splits`.
      positions: the names of the positions of the prompts.
    """

    rows: Int[np.ndarray, " row"]
    splits: tuple[str, ...]
    group: Int[np.ndarray, " row"]
    positions: tuple[str, ...]


def answer_rows(dataset: Dataset, most: int) -> AnswerRows:
    """Choose probe rows of each split whose answers are at the most frequent answer position.

    In chain tasks, prompts are full chains. In tasks whose prompts differ in length, such as
    `in_context`, only the prompts of the most frequent length are chosen. Positions of different
    rows can then be compared.

    Args:
      dataset: the dataset.
      most: the maximum number of rows per split.

    Raises:
      NotApplicable: the task is a chain task whose entities have two tokens, or no row has an
        answer.
    """
    splits = chain_splits(dataset) if "r2" in dataset.truth else dataset.splits
    rows, group = choose_rows(dataset, splits, len(dataset))
    ends = dataset.truth["position"][rows]
    if not (ends >= 0).any():
        raise NotApplicable("this instrument needs rows with an answer, but no row has an answer")
    end = int(np.bincount(ends[ends >= 0]).argmax())
    chosen = np.flatnonzero(ends == end)
    parts = [chosen[group[chosen] == number][:most] for number in range(len(splits))]
    there = [number for number, part in enumerate(parts) if len(part)]
    kept = np.concatenate([parts[number] for number in there])
    groups = np.repeat(np.arange(len(there)), [len(parts[number]) for number in there])
    names = tuple(splits[number] for number in there)
    return AnswerRows(rows[kept], names, groups, tuple(dataset.positions[: end + 1]))
