"""The task `in_context`: continue a random sequence that repeats, from the context alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from implicit_reasoning.errors import InputError
from implicit_reasoning.worlds.dataset import Dataset, Rows, assemble, prefix_keys
from implicit_reasoning.worlds.world import NONE, Stream, check_count, check_range, stream


def in_context(task: Any) -> Dataset:
    """Build the induction task: random sequences repeated once, `x1 x2 ... xn x1 x2 ... -> xn`.

    The tokens of a sequence are distinct. The only correct answer is therefore the token that
    followed the current token in the first copy. The length n varies between rows, so attention to
    a fixed distance is not sufficient. Every position from the second x1 on is supervised; these
    positions predict x2, ..., xn. The truth columns `answer` and `position` refer to the last
    supervised position; `period` is n. Test sequences do not occur in training, so knowledge stored
    in the weights does not help.

    Args:
      task: settings with attributes world_seed; n_tokens (size of the vocabulary); min_length,
        max_length (bounds of n); n_train (number of training rows); probes (number of test rows).

    Raises:
      InputError: a setting is out of bounds, or there are not enough different sequences.

    Source: Elhage et al. 2021 and Olsson et al. 2022 (repeated random tokens, with fixed n).
    """
    check_range("max_length", task.max_length, 2, task.n_tokens, " (n_tokens)")
    check_range("min_length", task.min_length, 2, task.max_length, " (max_length)")
    check_range("n_train", task.n_train, 1)
    check_range("probes", task.probes, 1)
    check_range("world_seed", task.world_seed, 0)
    wanted = task.n_train + task.probes
    order, period = _sequences(task, wanted + wanted // 8 + 100)
    keys = prefix_keys(order + 1, task.n_tokens + 1)[:, -1]
    different = np.sort(np.unique(keys, return_index=True)[1])[:wanted]
    if len(different) < wanted:
        raise InputError(
            f"{task.n_tokens} tokens give too few sequences of length {task.min_length} to"
            f" {task.max_length} for n_train + probes = {wanted}: raise n_tokens or max_length"
        )
    order, period = order[different], period[different]
    return assemble(
        {"train_repeated": _rows(order[: task.n_train], period[: task.n_train])},
        {"test_repeated": _rows(order[task.n_train :], period[task.n_train :])},
        vocab=tuple(f"<x_{i}>" for i in range(task.n_tokens)),
        positions=tuple(
            f"x{i + 1}{again}"
            for again in ("", "'")
            for i in range(task.max_length - (again == "'"))
        ),
        probes=task.probes,
    )


def _sequences(task: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return sequences of distinct tokens [row, place], padded with -1, and their lengths."""
    check_count("n_tokens", task.n_tokens)
    check_count("(n_train + probes) x max_length", count * task.max_length)
    random = stream(task.world_seed, Stream.CHAIN_ORDER)
    period = random.integers(task.min_length, task.max_length + 1, size=count)
    order = random.integers(task.n_tokens, size=(count, task.max_length), dtype=np.int32)
    for place in range(1, task.max_length):
        again = np.arange(count)
        while len(again):  # redraw tokens that already occur earlier in the sequence
            taken = (order[again, :place] == order[again, place, None]).any(1)
            again = again[taken]
            order[again, place] = random.integers(task.n_tokens, size=len(again), dtype=np.int32)
    order[np.arange(task.max_length) >= period[:, None]] = NONE
    return order, period


def _rows(order: np.ndarray, period: np.ndarray) -> Rows:
    width = 2 * order.shape[1] - 1
    place, n = np.arange(width + 1), period[:, None]
    twice = np.take_along_axis(order, place % n, axis=1)  # the periodic continuation of every row
    tokens = np.where(place < 2 * n - 1, twice, 0)[:, :-1].astype(np.int32)
    supervised = (place[:-1] >= n) & (place[:-1] < 2 * n - 1)
    targets = np.where(supervised, twice[:, 1:], NONE).astype(np.int32)
    last = np.take_along_axis(order, n - 1, axis=1)[:, 0]
    truth = {"period": period, "answer": last, "position": 2 * period - 2}
    return Rows(tokens, targets, {name: c.astype(np.int32) for name, c in truth.items()})
