"""Counts that overflow the narrow integer types of earlier versions."""

import json

import numpy as np
import pytest

from implicit_reasoning.training.evaluation import Outcome, ProbeMetrics
from implicit_reasoning.worlds import Dataset
from implicit_reasoning.worlds.dataset import assemble, make_rows
from implicit_reasoning.worlds.shortcuts import (
    answer_numbers,
    modal_given_first_and_last,
    modal_given_last,
)


def one_row_each(n_splits):
    """Return a dataset with a split for each relation, as of a knowledge graph, with one row in
    each.
    """
    column = np.arange(n_splits, dtype=np.int32)
    train = make_rows([column, column], [column], {})
    tested = {
        f"test_r{n}": make_rows(
            [np.array([n]), np.array([(n + 1) % n_splits])], [np.array([n])], {}
        )
        for n in range(n_splits - 1)
    }
    return assemble(
        {"train": train},
        tested,
        vocab=tuple(f"<{n}>" for n in range(n_splits)),
        positions=("a", "b"),
        probes=1,
    )


@pytest.mark.parametrize(
    ("n_splits", "dtype"),
    [
        (2, "int8"),
        (128, "int8"),
        (129, "int16"),
        (237, "int16"),
        (300, "int16"),
        pytest.param(40_000, "int32", marks=pytest.mark.slow),
    ],
)
def test_every_split_has_its_rows_and_its_metrics(tmp_path, n_splits, dtype):
    dataset = one_row_each(n_splits)
    assert dataset.split.dtype == dtype and dataset.split.min() == 0
    sizes = dataset.sizes()
    assert list(sizes) == list(dataset.splits) and set(list(sizes.values())[1:]) == {1}
    dataset.save(tmp_path / "world.npz")
    assert Dataset.load(tmp_path / "world.npz").sizes() == sizes

    if n_splits > 1000:  # a mean for each split is slow and tests nothing more
        return
    scoring = ProbeMetrics(dataset)
    right = dataset.split[scoring.rows] % 3 == 0
    outcome = Outcome(np.ones(len(right)), np.where(right, 0, 4))
    summary = scoring.summary(outcome)
    for place, name in enumerate(dataset.splits):
        assert summary[f"accuracy/{name}"] == float(place % 3 == 0), name
    assert len(json.dumps(summary)) > 0


def test_fingerprints_of_few_splits_are_what_they_were():
    """The sha256 of the same contents is unchanged since splits were limited to 128."""
    assert one_row_each(5).fingerprint() == FINGERPRINT


FINGERPRINT = "52de635cff19362e2cdbcb56639467902948bded3712d1eea4d378fcc219ac8b"


def test_answers_in_many_tokens_of_a_large_vocabulary():
    """Seven tokens out of 1,000 make 10^21 answers, which exceeds int64."""
    random = np.random.default_rng(0)
    n_vocab, answers = 1000, random.integers(1000, size=(40, 7))
    answers[20:, :6] = answers[:20, :6]  # these answers differ only in the last token
    dataset = many_tokens(answers, n_vocab)
    numbers = answer_numbers(dataset)
    distinct = np.unique(dataset.answers, axis=0)
    assert len(np.unique(numbers)) == len(distinct) and numbers.min() >= 0
    # Numbers have the order of the answers, which decides ties.
    order = np.lexsort(dataset.answers.T[::-1])
    assert (np.diff(numbers[order]) >= 0).all()


def test_the_modal_answer_among_answers_in_many_tokens():
    answers = np.full((6, 6), 1999)
    answers[:2, 0] = 3  # this answer occurs twice, the others once each
    answers[2:, 5] = np.arange(4)
    dataset = many_tokens(answers, 2000)
    found = modal_given_last(dataset, np.arange(6))
    np.testing.assert_array_equal(found, answer_numbers(dataset)[0])


def test_votes_for_answers_in_many_tokens():
    """With many groups, the number of groups times the number of answers exceeds int64."""
    answers = np.random.default_rng(0).integers(1000, size=(40, 6))
    dataset = many_tokens(answers, 1000)
    found = modal_given_first_and_last(dataset, np.arange(40))
    np.testing.assert_array_equal(found, answer_numbers(dataset))  # each answer has its own number


def many_tokens(answers, n_vocab):
    """Return chains [e1, r1, r2] whose answers have several tokens."""
    n = len(answers)
    prompt = [np.arange(n, dtype=np.int32), np.zeros(n, np.int32), np.zeros(n, np.int32)]
    truth = {"e1": prompt[0], "r1": prompt[1], "r2": prompt[2]}
    rows = make_rows(prompt, list(answers.astype(np.int32).T), truth)
    return assemble(
        {"train": rows},
        {},
        vocab=tuple(map(str, range(n_vocab))),
        positions=("e1", "r1", "r2"),
        probes=n,
    )
