"""The task `greater_than`: end a span of years with any year that is greater than its start."""

from __future__ import annotations

from typing import Any

import numpy as np

from implicit_reasoning.worlds.dataset import Dataset, Rows, assemble, make_rows
from implicit_reasoning.worlds.world import Stream, check_count, check_range, stream


def greater_than(task: Any) -> Dataset:
    """Build the task `[century, start, century] -> end`, where `end` is any year after `start`.

    Years are numbers from 0 to `n_years - 1` within a century, and each has a token. Every end year
    that is greater than the start is right, and the target of a row is one of them. The targets of
    the training rows with the same century and start are spread evenly over the right years. For
    each start, a random fraction `holdout` of the centuries is held out. The test split has one row
    for each held-out pair (century, start), with a random right year as its target.

    A model cannot know which of the right years is the target of a row, so its accuracy is low. The
    measure of this task is the probability of the right years minus the probability of the wrong
    ones, the *probability difference*. Training writes it to the columns
    `probability_difference/<split>`.

    Truth columns: `century`; `start` and `end`, numbers of years; `source_position` and
    `source_token` of the start year; `right_first` and `right_last`, the tokens of the smallest and
    the largest right year; `wrong_first` and `wrong_last`, the same for the wrong years. The tokens
    between them are years of the same kind.

    Args:
      task: settings with attributes world_seed; n_years; n_centuries; rows_per_start (training rows
        for each century and start); holdout (rounded to a number of centuries); probes (maximum
        number of probes per split).

    Raises:
      InputError: a setting is out of bounds.

    Source: Hanna et al. 2023 (sentences about GPT-2's years; its sections 2 and 3).
    """
    check_range("n_years", task.n_years, 2)
    check_range("n_centuries", task.n_centuries, 1)
    check_range("rows_per_start", task.rows_per_start, 1)
    check_range("holdout", task.holdout, 0, 1)
    check_range("probes", task.probes, 1)
    check_range("world_seed", task.world_seed, 0)
    n_pairs = task.n_centuries * (task.n_years - 1)
    check_count("n_centuries x n_years x rows_per_start", n_pairs * task.rows_per_start)
    shape = (task.n_centuries, task.n_years - 1)
    rank = stream(task.world_seed, Stream.HELD_OUT).random(shape).argsort(0).argsort(0)
    held_out = rank < round(task.holdout * task.n_centuries)
    random = stream(task.world_seed, Stream.PAIRS)
    return assemble(
        {"train_years": _rows(task, random, ~held_out, task.rows_per_start)},
        {"test_years": _rows(task, random, held_out, 1)},
        vocab=(
            *(f"<{i}>" for i in range(task.n_years)),
            *(f"<century_{i}>" for i in range(task.n_centuries)),
        ),
        positions=("century", "start", "century'"),
        probes=task.probes,
    )


def _rows(task: Any, random: np.random.Generator, chosen: np.ndarray, each: int) -> Rows:
    """Return `each` rows for every chosen pair [century, start], in random order."""
    century, start = (np.repeat(column, each) for column in np.nonzero(chosen))
    n_right = task.n_years - 1 - start
    # Stratified sampling: the rows of a pair divide the right years into `each` equal parts.
    part = (np.tile(np.arange(each), len(start) // each) + random.random(len(start))) / each
    end = start + 1 + np.minimum((part * n_right).astype(np.int64), n_right - 1)
    order = random.permutation(len(start))
    century, start, end = century[order], start[order], end[order]
    ones = np.ones_like(start)
    truth = {
        "century": century,
        "start": start,
        "end": end,
        "source_position": ones,
        "source_token": start,
        "right_first": start + 1,
        "right_last": (task.n_years - 1) * ones,
        "wrong_first": 0 * ones,
        "wrong_last": start,
    }
    return make_rows([task.n_years + century, start, task.n_years + century], [end], truth)
