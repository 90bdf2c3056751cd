"""Evaluation agrees with plain numpy on the logits of the whole forward pass."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.config import load_config
from implicit_reasoning.model import Spec, Transformer
from implicit_reasoning.statistics import clustered_interval
from implicit_reasoning.training.evaluation import Evaluation, Outcome, ProbeMetrics
from implicit_reasoning.training.intervals import (
    AccuracyIntervals,
    accuracy_intervals,
    row_with_intervals,
)
from implicit_reasoning.worlds import build
from tests.training.tiny import tiny

SIZES = {
    "task__n_entities": 40,
    "task__n_relations": 6,
    "task__out_degree": 5,
    "task__phi": 2.0,
    "task__probes": 150,
}


@pytest.fixture(
    scope="module", params=["one token", pytest.param("two tokens", marks=pytest.mark.slow)]
)
def dataset(request):
    """Return a dataset with entities of one token, or of two tokens.

    With two tokens, the answer of an atomic row is at an earlier position than that of a chain.
    """
    names = 7 if request.param == "two tokens" else 0
    return build(tiny(**SIZES, task__names=names, task__end_token=bool(names)).task)


@pytest.fixture(scope="module")
def model(dataset):
    shape = {"d_vocab": dataset.n_vocab, "n_ctx": dataset.n_ctx}
    return Transformer(Spec(n_layers=1, d_model=8, n_heads=2, d_mlp=8, **shape))


@pytest.fixture(scope="module")
def evaluation(model, dataset):
    return Evaluation(model, dataset)


@pytest.fixture(scope="module")
def params(model):
    rng = np.random.default_rng(1)  # some answers are right, in either spelling
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    drawn = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    return jax.device_put(drawn)


def brute_force(model, params, dataset):
    """Return `(loss, rank)` of every row of the dataset, computed one row at a time in float64."""
    logits = jax.jit(model.forward)(params, dataset.tokens)[0]
    losses, ranks = [], []
    for row, of_row in enumerate(np.asarray(logits, np.float64)):
        loss, rank = 0.0, 0
        for suffix in ("", "2"):
            if f"answer{suffix}" in dataset.truth:
                at = of_row[dataset.truth[f"position{suffix}"][row]]
                answer = dataset.truth[f"answer{suffix}"][row]
                loss += np.log(np.exp(at - at.max()).sum()) + at.max() - at[answer]
                rank = max(rank, (np.delete(at, answer) >= at[answer]).sum())
        losses.append(loss)
        ranks.append(rank)
    return np.array(losses), np.array(ranks)


def test_every_split_equals_brute_force(evaluation, model, params, dataset):
    assert len(evaluation.rows) > 512 and len(evaluation.rows) % 512  # the last chunk is incomplete
    outcome = evaluation.launch(params)
    loss, rank = brute_force(model, params, dataset)
    asked = len(evaluation.rows)  # further rows fill the last chunk
    np.testing.assert_allclose(outcome.loss[:asked], loss[evaluation.rows], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(outcome.rank[:asked], rank[evaluation.rows])
    np.testing.assert_array_equal(evaluation.correct(outcome), rank[evaluation.rows] == 0)

    summary = evaluation.summary(outcome)
    for split in dataset.splits:
        rows = dataset.probes(split)
        assert summary[f"accuracy/{split}"] == np.mean(rank[rows] == 0)
        assert summary[f"loss/{split}"] == pytest.approx(loss[rows].mean(), rel=1e-5)
        assert summary[f"reciprocal_rank/{split}"] == pytest.approx((1 / (1 + rank[rows])).mean())
    unanswered = [name for name in summary if "unanswered" in name]  # see test_unanswered.py
    assert len(summary) == 4 * len(dataset.splits) + 1 + len(unanswered)
    assert len({summary[f"loss/{split}"] for split in dataset.splits}) == len(dataset.splits)
    assert any(summary[f"accuracy/{split}"] > 0 for split in dataset.splits)


def test_shorter_answers_stand_beside_longer_ones(model, params, dataset):
    """A column of -1 after an answer changes neither its loss nor its rank."""
    missing = np.full(len(dataset), -1, np.int32)
    extra = f"{dataset.answers.shape[1] + 1}"
    longer = dataset.truth | {f"answer{extra}": missing, f"position{extra}": missing}
    plain = Evaluation(model, dataset).launch(params)
    padded = Evaluation(model, dataclasses.replace(dataset, truth=longer)).launch(params)
    np.testing.assert_array_equal(plain.rank, padded.rank)
    np.testing.assert_allclose(plain.loss, padded.loss, rtol=1e-5, atol=1e-6)


def test_the_lower_bound_is_clustered_by_the_bridge(evaluation, dataset):
    rng = np.random.default_rng(1)
    cross = dataset.probes("test_oi")
    bridge = dataset.truth["e2"]
    # Whether a row is right mostly depends on its bridge, so clusters widen the interval.
    right = rng.random(bridge.max() + 1) < 0.6
    correct = right[bridge] ^ (rng.random(len(dataset)) < 0.1)
    rank = np.where(correct, 0, 3)[evaluation.rows]
    outcome = Outcome(jnp.zeros(len(rank)), jnp.asarray(rank))
    low = evaluation.summary(outcome)["accuracy_low95/test_oi"]
    assert low == clustered_interval(correct[cross], bridge[cross]).low
    assert low < clustered_interval(correct[cross], np.arange(len(cross))).low - 0.02


def test_ties_count_against_the_answer(evaluation, params, dataset):
    """A model with equal logits for all tokens scores zero."""
    same = jax.tree.map(np.zeros_like, params)
    summary = evaluation.summary(evaluation.launch(same))
    for split in dataset.splits:
        assert summary[f"accuracy/{split}"] == 0
        assert summary[f"reciprocal_rank/{split}"] == pytest.approx(1 / dataset.n_vocab)
        n_tokens = dataset.answers.shape[1]
        assert summary[f"loss/{split}"] == pytest.approx(
            n_tokens * np.log(dataset.n_vocab), rel=1e-6
        )


def test_a_broken_model_is_no_good_model(evaluation, params, dataset):
    """Comparisons with nan are false, so counting larger logits would give rank 0."""
    broken = jax.tree.map(lambda x: np.full_like(x, np.nan), params)
    outcome = evaluation.launch(broken)
    assert (np.asarray(outcome.rank) == dataset.n_vocab - 1).all()
    assert not evaluation.correct(outcome).any()


def test_launching_waits_for_nothing(evaluation, params):
    jax.block_until_ready(evaluation.launch(params))
    with jax.transfer_guard("disallow"):
        evaluation.launch(params)


def outcome_of(evaluation):
    n = len(evaluation.rows)
    return Outcome(jnp.zeros(n), jnp.zeros(n, jnp.int32))


def test_splits_without_probes_are_left_out(model, dataset):
    for split, gone in (("test_oo", ["test_oo"]), ("test_oi", ["test_oi", "low95"])):
        of_split = dataset.split == dataset.splits.index(split)
        fewer = dataclasses.replace(dataset, probe=dataset.probe & ~of_split)
        evaluation = Evaluation(model, fewer)
        summary = evaluation.summary(outcome_of(evaluation))
        assert not [key for key in summary if any(name in key for name in gone)]
        assert {f"accuracy/{name}" for name in dataset.splits if name != split} < summary.keys()


def test_a_dataset_without_mixed_chains_has_no_lower_bound():
    scoring = ProbeMetrics(build(tiny(**SIZES, task__mixed_chains=False).task))
    summary = scoring.summary(outcome_of(scoring))
    assert "accuracy/test_oo" in summary and not any("low95" in key for key in summary)


def test_stored_intervals_are_by_bridge_or_by_fact(evaluation, params, dataset):
    outcome = evaluation.launch(params)
    stored = evaluation.summary(outcome)
    stored |= evaluation.intervals.columns(evaluation.correct(outcome))
    correct = np.zeros(len(dataset), bool)
    correct[evaluation.rows] = evaluation.correct(outcome)
    intervals = accuracy_intervals(stored, dataset)
    assert intervals.keys() == set(dataset.splits)
    for split, interval in intervals.items():
        rows = dataset.probes(split)
        unit = "fact1" if split.endswith("triples") else "e2"
        assert interval.mean == correct[rows].mean() and interval.n_examples == len(rows)
        assert interval == clustered_interval(correct[rows], dataset.truth[unit][rows])
    assert row_with_intervals([{"step": 0}, stored, {"step": 9}]) is stored


def test_of_two_clusterings_the_one_with_the_wider_interval_is_stored():
    """Answers depend only on the second fact, so clustering by the first fact makes them look
    certain.
    """
    dataset = build(load_config("configs/comparison.py:pocket").task)
    rows = np.flatnonzero(dataset.probe)
    second = dataset.truth["fact2"]
    right = np.random.default_rng(0).random(second.max() + 1) < 0.5
    columns = AccuracyIntervals(dataset).columns(right[second][rows])
    split = "test_ii"
    asked = dataset.probes(split)
    narrow, wide = (
        clustered_interval(right[second][asked], dataset.truth[fact][asked])
        for fact in ("fact1", "fact2")
    )
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)
    assert columns[f"accuracy_low/{split}"] == wide.low
    assert columns[f"accuracy_high/{split}"] == wide.high
    assert columns[f"accuracy_clusters/{split}"] == wide.n_clusters
