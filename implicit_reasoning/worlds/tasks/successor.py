"""The task `successor`: continue one of two series of ordered tokens that are mixed in a prompt."""

from __future__ import annotations

from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from implicit_reasoning.errors import InputError
from implicit_reasoning.worlds.dataset import Dataset, Rows, assemble, make_rows
from implicit_reasoning.worlds.tasks.held_out import check_answers_are_trained, hold_out
from implicit_reasoning.worlds.world import Stream, check_count, check_range, stream


def successor(task: Any) -> Dataset:
    """Build the task of the next token: `[a3, b9, a4, b0, a5, a6, next_a] -> a7`.

    An *alphabet* is a cyclic order of tokens, such as the days of the week: the first token follows
    the last one. A prompt has two *runs*, each of consecutive tokens of one alphabet. The runs are
    mixed at random, and each keeps its order. Their lengths vary, and each has one token at least.
    The last token of the prompt asks for the next token of one of the two runs. A model therefore
    has to find the last token of the asked alphabet, whose position varies, and to answer the token
    that follows it.

    A random fraction `holdout` of the pairs of last tokens of the two runs is held out: the test
    rows have pairs that no training row has. The order of an alphabet cannot be known without
    training, so every answer of a test row is also the answer of training rows.

    Truth columns: `alphabet` and `value`, the asked alphabet and the place in it of the last token
    of its run; `source_position` and `source_token` of this token; `other_alphabet`, `other_value`
    and `other_position`, the same for the run that is not asked.

    Args:
      task: settings with attributes world_seed; alphabets (number of tokens of each alphabet);
        prompt_length (tokens of a prompt, including the last one); n_train (number of training
        rows); holdout; probes (number of test rows).

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
    length = task.prompt_length - 1
    pairs = _pairs(sizes)
    forms = 2 * (2**length - 2)  # ways to mix two runs, and to ask one of them
    check_count("number of different rows", len(pairs.last) * forms)
    held_out = hold_out(task.world_seed, len(pairs.last), task.holdout)
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
    train, test = (_rows(sizes, length, pairs, *rows) for rows in chosen)
    vocab = (
        *(f"<{alphabet}_{i}>" for alphabet, size in enumerate(sizes) for i in range(size)),
        *(f"<next_{alphabet}>" for alphabet in range(len(sizes))),
    )
    check_answers_are_trained(train.truth["answer"], test.truth["answer"], vocab)
    return assemble(
        {"train_runs": train},
        {"test_runs": test},
        vocab=vocab,
        positions=(*(f"x{i + 1}" for i in range(length)), "next"),
        probes=task.probes,
    )


def _sizes(task: Any) -> Int[np.ndarray, " alphabet"]:
    sizes = np.array(task.alphabets, np.int64)
    if len(sizes) < 2:
        raise InputError(f"alphabets = {tuple(task.alphabets)} must be at least two sizes")
    # In a longer run, the next token could already be in the run.
    longest = min(int(sizes.min()) + 1, 16)
    check_range("prompt_length", task.prompt_length, 3, longest, " (smallest alphabet + 1, or 16)")
    return sizes


class _Pairs(NamedTuple):
    """Pairs of runs: two alphabets, and the place of the last token of each run."""

    last: Int[np.ndarray, "pair 2"]
    alphabet: Int[np.ndarray, "pair 2"]


def _pairs(sizes: np.ndarray) -> _Pairs:
    check_count("number of pairs of runs", int(sizes.sum()) ** 2)
    last, alphabet = [], []
    for two in combinations(range(len(sizes)), 2):
        a, b = np.indices([int(sizes[each]) for each in two]).reshape(2, -1)
        last.append(np.column_stack([a, b]))
        alphabet.append(np.broadcast_to(np.array(two), (len(a), 2)))
    return _Pairs(np.concatenate(last), np.concatenate(alphabet))


def _rows(
    sizes: np.ndarray, length: int, pairs: _Pairs, pair: np.ndarray, form: np.ndarray
) -> Rows:
    """Return the rows of pairs of runs.

    A form is the number of a way to mix the runs, times two, plus the number of the asked run. Bit
    n of a way, which is not 0 everywhere and not 1 everywhere, is the run of the token n.
    """
    way, asked = np.divmod(form, 2)
    run = (way[:, None] + 1) >> np.arange(length) & 1
    alphabet, offset = pairs.alphabet[pair], np.cumsum(sizes) - sizes
    is_of = run[:, None] == np.arange(2)[:, None]  # [row, run, token]
    later = is_of[..., ::-1].cumsum(-1)[..., ::-1] - is_of  # later tokens of the same run
    value = (pairs.last[pair][..., None] - later) % sizes[alphabet][..., None]
    tokens = np.where(is_of, offset[alphabet][..., None] + value, 0).sum(1)
    last_place = length - 1 - is_of[..., ::-1].argmax(-1)

    def of(table: np.ndarray, which: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.take_along_axis(table, which[:, None], axis=1)[:, 0]
        return found

    last = pairs.last[pair]
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
    return make_rows([*tokens.T, sizes.sum() + mine], [answer], truth)
