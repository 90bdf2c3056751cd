"""The task `indirect_object`: answer the one of two names that a prompt does not repeat."""

from __future__ import annotations

from itertools import combinations
from math import comb
from typing import Any

import numpy as np

from implicit_reasoning.errors import InputError
from implicit_reasoning.worlds.dataset import Dataset, Rows, assemble, make_rows, prefix_keys
from implicit_reasoning.worlds.tasks.held_out import check_answers_are_trained, hold_out
from implicit_reasoning.worlds.world import Stream, check_count, check_range, stream

ORDERS = ("ABBA", "BABA")
"""Orders of the names; A is the answer and B is repeated. The truth `order` is an index."""


def indirect_object(task: Any) -> Dataset:
    """Build the task of the indirect object: `[., A, ., B, ., B, ., ., to] -> A`.

    A prompt has two names, of which one occurs twice, at three random positions. The third name is
    the repeated one. In the order ABBA, the answer comes first; in the order BABA, the repeated
    name comes first. The other positions, marked by points, have random filler tokens. The last
    position has the token `<to>`.

    A random fraction `holdout` of the unordered pairs of names is held out: the test rows have
    pairs that no training row has.

    Truth columns: `order`, an index into `ORDERS`; `source_position` and `source_token` of the name
    that is answered (in the literature, IO); `repeated_token`, the other name; `repeated_position`,
    the position where it first occurs (S1); `duplicate_position`, the position where it occurs
    again (S2).

    Args:
      task: settings with attributes world_seed; n_names; n_fillers (number of filler tokens);
        prompt_length (tokens of a prompt); n_train (number of training rows); holdout; probes
        (number of test rows).

    Raises:
      InputError: a setting is out of bounds, there are too few different rows, or an answer of a
        test row is not trained on.

    Source: Wang et al. 2022, section 2 (ABBA and BABA templates).
    """
    check_range("n_names", task.n_names, 2)
    check_range("n_fillers", task.n_fillers, 1)
    check_range("prompt_length", task.prompt_length, 4, 64)
    check_range("n_train", task.n_train, 1)
    check_range("holdout", task.holdout, 0, 1)
    check_range("probes", task.probes, 1)
    check_range("world_seed", task.world_seed, 0)
    n_pairs = comb(task.n_names, 2)
    check_count("n_names ** 2", task.n_names**2)
    check_count(
        "(n_train + probes) x prompt_length", (task.n_train + task.probes) * task.prompt_length
    )
    held_out = hold_out(task.world_seed, n_pairs, task.holdout)
    train = _rows(task, np.flatnonzero(~held_out), task.n_train, kind=0)
    test = _rows(task, np.flatnonzero(held_out), task.probes, kind=1)
    vocab = (
        *(f"<name_{i}>" for i in range(task.n_names)),
        *(f"<filler_{i}>" for i in range(task.n_fillers)),
        "<to>",
    )
    check_answers_are_trained(train.truth["answer"], test.truth["answer"], vocab)
    return assemble(
        {"train_names": train},
        {"test_names": test},
        vocab=vocab,
        positions=(*(f"w{i + 1}" for i in range(task.prompt_length - 1)), "to"),
        probes=task.probes,
    )


def _rows(task: Any, pairs: np.ndarray, wanted: int, kind: int) -> Rows:
    """Return `wanted` different rows with names of some pairs; `kind` selects the random stream."""
    random, last = stream(task.world_seed, Stream.PAIRS, kind), task.prompt_length - 1
    count = (wanted + wanted // 8 + 100) if len(pairs) else 0
    names = np.column_stack(np.triu_indices(task.n_names, k=1))
    pair = names[pairs[random.integers(max(len(pairs), 1), size=count)]]
    name = np.where(random.integers(2, size=count)[:, None] == 1, pair[:, ::-1], pair)
    answer, repeated = name.T
    order = random.integers(len(ORDERS), size=count)
    # Sorted samples of three positions; all sets are equally likely.
    places = np.array(list(combinations(range(last), 3)))
    place = places[random.integers(len(places), size=count)]
    source, first = np.where(order == 0, place[:, :2].T, place[:, 1::-1].T)
    tokens = task.n_names + random.integers(task.n_fillers, size=(count, last))
    columns = [(source, answer), (first, repeated), (place[:, 2], repeated)]
    for position, token in columns:
        np.put_along_axis(tokens, position[:, None], token[:, None], axis=1)
    truth = {
        "order": order,
        "source_position": source,
        "source_token": answer,
        "repeated_token": repeated,
        "repeated_position": first,
        "duplicate_position": place[:, 2],
    }
    keys = prefix_keys(tokens, task.n_names + task.n_fillers)[:, -1]
    kept = np.sort(np.unique(keys, return_index=True)[1])[:wanted]
    if len(kept) < wanted and kind == 0:
        raise InputError(
            f"only {len(kept)} different training rows were found, fewer than n_train = {wanted}: "
            f"lower n_train or holdout, or raise n_names, n_fillers or prompt_length"
        )
    to = np.full(len(kept), task.n_names + task.n_fillers)
    truth = {name: column[kept] for name, column in truth.items()}
    return make_rows([*tokens[kept].T, to], [answer[kept]], truth)
