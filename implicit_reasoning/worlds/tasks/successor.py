"""The task `successor`: continue one of two series of ordered tokens that are mixed in a prompt."""

from __future__ import annotations

from itertools import combinations
from math import comb
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from implicit_reasoning.errors import InputError
from implicit_reasoning.worlds.dataset import Dataset, Rows, assemble, make_rows
from implicit_reasoning.worlds.tasks.held_out import check_answers_are_trained, hold_out
from implicit_reasoning.worlds.world import Stream, check_count, check_range, stream


def successor(task: Any) -> Dataset:
    """Build the task of the next token: `[a3, b9, a4, b0, b1, a5, next_a] -> a6`.

    An *alphabet* is a cyclic order of tokens, such as the days of the week: the first token follows
    the last one. A prompt has two *runs* of `run_length` consecutive tokens of different alphabets.
    The runs are mixed at random, and each keeps its order. The last token of the prompt asks for
    the next token of one of the two runs. A model therefore has to find the last token of the asked
    alphabet, whose position varies, and to answer the token that follows it.

    A *pair of runs* is the two alphabets and the first token of each run. A random fraction
    `holdout` of the pairs is held out: the test rows have pairs that no training row has. The order
    of an alphabet cannot be known without training, so every answer of a test row is also the
    answer of training rows.

    Truth columns: `alphabet` and `value`, the asked alphabet and the place in it of the last token
    of its run; `source_position` and `source_token` of this token; `other_alphabet`, `other_value`
    and `other_position`, the same for the run that is not asked.

    Args:
      task: settings with attributes world_seed; alphabets (number of tokens of each alphabet);
        run_length (tokens of a run); n_train (number of training rows); holdout; probes (number of
        test rows).

    Raises:
      InputError: a setting is out of bounds, there are too few different rows, or an answer of a
        test row is not trained on.

    Source: Gould et al. 2023 (successor heads; ordered tokens such as days, months and numbers).
    """
    sizes = _sizes(task)
    check_range("n_train", task.n_train, 1)
    check_range("holdout", task.holdout, 0, 1)
    check_range("probes", task.probes, 1)
    check_range("world_seed", task.world_seed, 0)
    pairs = _pairs(sizes)
    forms = 2 * comb(2 * task.run_length, task.run_length)  # ways to mix and to ask a pair
    check_count("number of different rows", len(pairs.first) * forms)
    held_out = hold_out(task.world_seed, len(pairs.first), task.holdout)
    chosen = []
    for kind, (of_kind, wanted) in enumerate([(~held_out, task.n_train), (held_out, task.probes)]):
        numbers = np.flatnonzero(of_kind)
        random = stream(task.world_seed, Stream.PAIRS, kind)
        order = random.permutation(len(numbers) * forms)[:wanted]
        chosen.append((numbers[order // forms], order % forms))
    if len(chosen[0][0]) < task.n_train:
        raise InputError(
            f"n_train = {task.n_train} is larger than the number of different training rows, "
            f"{len(chosen[0][0])}: lower n_train or holdout, or add tokens to the alphabets"
        )
    train, test = (_rows(sizes, task.run_length, pairs, *rows) for rows in chosen)
    vocab = (
        *(f"<{alphabet}_{i}>" for alphabet, size in enumerate(sizes) for i in range(size)),
        *(f"<next_{alphabet}>" for alphabet in range(len(sizes))),
    )
    check_answers_are_trained(train.truth["answer"], test.truth["answer"], vocab)
    return assemble(
        {"train_runs": train},
        {"test_runs": test},
        vocab=vocab,
        positions=(*(f"x{i + 1}" for i in range(2 * task.run_length)), "next"),
        probes=task.probes,
    )


def _sizes(task: Any) -> Int[np.ndarray, " alphabet"]:
    sizes = np.array(task.alphabets, np.int64)
    if len(sizes) < 2:
        raise InputError(f"alphabets = {tuple(task.alphabets)} must be at least two sizes")
    # In a shorter cycle, the next token would already be in the run.
    check_range("run_length", task.run_length, 1, int(sizes.min()) - 1, " (smallest alphabet - 1)")
    check_range("run_length", task.run_length, 1, 8)
    return sizes


class _Pairs(NamedTuple):
    """Pairs of runs: two alphabets, and the place of the first token of each run."""

    first: Int[np.ndarray, "pair 2"]
    alphabet: Int[np.ndarray, "pair 2"]


def _pairs(sizes: np.ndarray) -> _Pairs:
    check_count("number of pairs of runs", int(sizes.sum()) ** 2)
    first, alphabet = [], []
    for two in combinations(range(len(sizes)), 2):
        a, b = np.indices(sizes[list(two)]).reshape(2, -1)
        first.append(np.column_stack([a, b]))
        alphabet.append(np.broadcast_to(np.array(two), (len(a), 2)))
    return _Pairs(np.concatenate(first), np.concatenate(alphabet))


def _rows(
    sizes: np.ndarray, length: int, pairs: _Pairs, pair: np.ndarray, form: np.ndarray
) -> Rows:
    """Return the rows of pairs of runs.

    A form is the number of a way to mix the runs, times two, plus the number of the asked run.
    """
    mixtures = np.array(list(combinations(range(2 * length), length)))
    mixture, asked = np.divmod(form, 2)
    places = np.empty((len(pair), 2, length), np.int64)  # the positions of the tokens of each run
    places[:, 0] = mixtures[mixture]
    is_first = np.zeros((len(pair), 2 * length), bool)
    np.put_along_axis(is_first, places[:, 0], True, axis=1)
    places[:, 1] = np.nonzero(~is_first)[1].reshape(len(pair), length)

    alphabet, offset = pairs.alphabet[pair], np.cumsum(sizes) - sizes
    size = sizes[alphabet]
    value = (pairs.first[pair][..., None] + np.arange(length)) % size[..., None]
    prompt = np.empty((len(pair), 2 * length), np.int64)
    tokens = offset[alphabet][..., None] + value
    np.put_along_axis(prompt, places.reshape(prompt.shape), tokens.reshape(prompt.shape), axis=1)

    def of(table: np.ndarray, which: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.take_along_axis(table, which[:, None], axis=1)[:, 0]
        return found

    last, last_place = value[..., -1], places[..., -1]
    mine, other = of(alphabet, asked), of(alphabet, 1 - asked)
    answer = offset[mine] + (of(last, asked) + 1) % sizes[mine]
    truth = {
        "alphabet": mine,
        "value": of(last, asked),
        "source_position": of(last_place, asked),
        "source_token": offset[mine] + of(last, asked),
        "other_alphabet": other,
        "other_value": of(last, 1 - asked),
        "other_position": of(last_place, 1 - asked),
    }
    return make_rows([*prompt.T, sizes.sum() + mine], [answer], truth)
