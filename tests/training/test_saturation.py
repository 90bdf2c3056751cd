"""Rows whose answer has a probability that float32 rounds to 1 are counted and drawn."""

import warnings

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from implicit_reasoning.training.evaluation import Outcome, ProbeMetrics
from implicit_reasoning.training.figures import figures
from implicit_reasoning.worlds import build
from tests.training.test_figures import MadeRun, axes_of, grokking, named, texts
from tests.training.tiny import tiny


@pytest.fixture(scope="module")
def dataset():
    return build(tiny().task)


def loss_of(margin):
    """Return the float32 loss of an answer whose logit exceeds 15 others by `margin`."""
    logits = jnp.zeros(16).at[3].set(margin)
    return float(optax.softmax_cross_entropy_with_integer_labels(logits, jnp.int32(3)))


@pytest.mark.parametrize(
    ("margin", "saturated"),
    [
        *((5.0, False), (12.0, False), (15.0, False)),
        *((17.0, True), (25.0, True), (60.0, True)),  # in float32, 1 + exp(-17) is 1
    ],
)
def test_a_row_counts_when_its_probability_rounds_to_one(dataset, margin, saturated):
    """The gradient of its logits is the probability minus 1, which is 0 in float32 if the row
    counts.
    """
    scoring = ProbeMetrics(dataset)
    loss = np.full(len(scoring.rows), loss_of(margin), np.float32)
    rank = np.zeros(len(loss), np.int32)
    summary = scoring.summary(Outcome(loss, rank))
    assert {value for name, value in summary.items() if name.startswith("saturated/")} == {
        float(saturated)
    }
    probability = np.exp(-loss[:1], dtype=np.float32)
    assert (probability - np.float32(1) == 0).all() == saturated


def test_the_share_is_by_split(dataset):
    scoring = ProbeMetrics(dataset)
    trained = dataset.split[scoring.rows] == dataset.splits.index("train_ii")
    loss = np.where(trained & (np.cumsum(trained) % 4 == 0), 0.0, 0.5).astype(np.float32)
    summary = scoring.summary(Outcome(loss, np.zeros(len(loss), np.int32)))
    assert summary["saturated/train_ii"] == pytest.approx(trained.sum() // 4 / trained.sum())
    assert summary["saturated/test_ii"] == 0


def test_it_is_drawn_below_the_loss(dataset):
    rows = grokking(dataset)
    for row in rows:
        for split in dataset.splits:
            share = 0.25 if split == "train_ii" and row is rows[-1] else 0.0
            row[f"saturated/{split}"] = share
    loss = named(figures(MadeRun(dataset, rows)))["loss"]
    upper, lower = axes_of(loss)
    assert "rounds to 1" in loss.caption
    assert [text for text in texts(lower) if "%" in text] == ["train_ii  25.0%"]
    assert upper.get_xlim() == lower.get_xlim()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss.drawing.draw_without_rendering()


def test_rows_of_older_runs_are_drawn_without_it(dataset):
    loss = named(figures(MadeRun(dataset, grokking(dataset))))["loss"]
    assert len(axes_of(loss)) == 1 and "rounds to 1" not in loss.caption
