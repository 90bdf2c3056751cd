"""The probability of right answers minus that of wrong ones, against a loop over tokens."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from implicit_reasoning.model import Spec, Transformer
from implicit_reasoning.training.evaluation import Evaluation
from implicit_reasoning.training.probability_difference import RANGES, answer_ranges
from implicit_reasoning.training.task_figures import difference_figure
from implicit_reasoning.worlds import build
from tests.model.exchange.models import filled

TASK = {"name": "greater_than", "world_seed": 0, "n_years": 12, "n_centuries": 5}
TASK |= {"rows_per_start": 4, "holdout": 0.4, "probes": 60}


@pytest.fixture(scope="module")
def dataset():
    return build(SimpleNamespace(**TASK))


def test_every_split_equals_a_loop_over_tokens(dataset):
    shape = {"d_vocab": dataset.n_vocab, "n_ctx": dataset.n_ctx}
    model = Transformer(Spec(n_layers=1, d_model=8, n_heads=2, d_mlp=8, **shape))
    params = filled(model)
    evaluation = Evaluation(model, dataset)
    outcome = evaluation.launch(params)
    rows = evaluation.rows
    logits = np.asarray(jax.jit(model.forward)(params, dataset.tokens[rows])[0], np.float64)[:, -1]
    expected = []
    for row, of_row in zip(rows, logits, strict=True):
        weights, start = np.exp(of_row), dataset.truth["start"][row]
        years = {year: weights[dataset.vocab.index(f"<{year}>")] for year in range(12)}
        right = sum(weight for year, weight in years.items() if year > start)
        wrong = sum(weight for year, weight in years.items() if year <= start)
        expected.append((right - wrong) / weights.sum())
    np.testing.assert_allclose(outcome.difference[: len(rows)], expected, rtol=1e-4, atol=1e-6)
    assert np.std(expected) > 0.1
    summary = evaluation.summary(outcome)
    for split in dataset.splits:
        members = np.isin(rows, dataset.probes(split))
        mean = np.mean(np.array(expected)[members])
        assert summary[f"probability_difference/{split}"] == pytest.approx(mean, rel=1e-4)
    figure_rows = [{"step": 0, "loss": 1.0}, {"step": 1, **summary}, {"step": 5, **summary}]
    figure = difference_figure(figure_rows, dataset)
    curves = figure.drawing.axes[0].lines[: len(dataset.splits)]
    assert [line.get_ydata()[-1] for line in curves] == [
        summary[f"probability_difference/{split}"] for split in dataset.splits
    ]


def test_other_tasks_have_no_such_column(dataset):
    task = {"name": "modular_addition", "world_seed": 0, "modulus": 5, "train_fraction": 0.5}
    sums = build(SimpleNamespace(**task, probes=9))
    assert answer_ranges(sums, np.arange(3)) is None
    assert answer_ranges(dataset, np.arange(3)).shape == (3, len(RANGES))
    assert difference_figure([{"step": 1}], sums) is None
    assert difference_figure([{"step": 1}], dataset) is None
