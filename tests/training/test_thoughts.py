"""The parts of answers with a chain of thought agree with greedy decoding, row by row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.model import Spec, Transformer
from implicit_reasoning.training.evaluation import Evaluation
from implicit_reasoning.training.task_figures import thought_figure
from implicit_reasoning.worlds import build
from tests.training.tiny import tiny

SIZES = {
    "task__n_entities": 12,
    "task__n_relations": 4,
    "task__out_degree": 3,
    "task__phi": 1.5,
    "task__chain_of_thought": True,
}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(0, id="one token", marks=pytest.mark.slow),
        pytest.param(4, id="two tokens"),
    ],
)
def case(request):
    """Return dataset, outcome, summary, and what plain greedy decoding says about each row."""
    dataset = build(tiny(**SIZES, task__names=request.param).task)
    shape = {"d_vocab": dataset.n_vocab, "n_ctx": dataset.n_ctx}
    model = Transformer(Spec(n_layers=1, d_model=16, n_heads=2, d_mlp=16, **shape))
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.float32(rng.normal(size=x.shape)), shapes)
    evaluation = Evaluation(model, dataset)
    outcome = evaluation.launch(params)
    n_rows = len(evaluation.rows)
    forward = jax.jit(lambda tokens: model.forward(params, tokens)[0])
    by_row = np.array([decoded(forward, dataset, row) for row in evaluation.rows])
    found = {name: np.asarray(part)[:n_rows] for name, part in outcome.thought._asdict().items()}
    return dataset, found, evaluation.summary(outcome), evaluation, by_row


def decoded(forward, dataset, row):
    """Return `(bridge, teacher_forced, free_running)` of one row by repeated forward passes."""
    answer = [token for token in dataset.answers[row].tolist() if token >= 0]
    start, n_thought = dataset.truth["position"][row], dataset.truth["thought"][row]
    tokens = np.zeros((1, dataset.n_ctx), np.int32)
    tokens[0, : start + 1] = dataset.tokens[row, : start + 1]
    forced, said = [], []
    for given in (forced, said):
        for place, true in enumerate(answer):
            logits = np.asarray(forward(tokens))
            given.append(int(logits[0, start + place].argmax()))
            if place + 1 < len(answer):
                tokens[0, start + place + 1] = true if given is forced else given[-1]
    return (
        forced[:n_thought] == answer[:n_thought],
        forced[n_thought:] == answer[n_thought:],
        said[n_thought:] == answer[n_thought:],
    )


def test_every_part_agrees_with_greedy_decoding(case):
    _, found, _, _, by_row = case
    for name, plain in zip(("bridge", "teacher_forced", "free_running"), by_row.T, strict=True):
        np.testing.assert_array_equal(found[name], plain, name)
    # The example separates the three parts: no two of them are equal.
    assert len({found[name].tobytes() for name in found}) == 3


def test_columns_are_means_over_chains(case):
    dataset, found, summary, evaluation, _ = case
    for split in dataset.splits:
        chains = dataset.truth["thought"][dataset.probes(split)] > 0
        assert chains.all() or not chains.any()
        members = np.flatnonzero(dataset.split[evaluation.rows] == dataset.splits.index(split))
        for name, right in found.items():
            key = f"{name}/{split}"
            if chains.any():
                assert summary[key] == right[members].mean()
            else:
                assert key not in summary
    whole = found["bridge"] & found["teacher_forced"]
    members = np.flatnonzero(dataset.split[evaluation.rows] == dataset.splits.index("train_ii"))
    assert summary["accuracy/train_ii"] == whole[members].mean()


def test_the_figure_needs_the_columns(case):
    dataset, _, summary, _, _ = case
    rows = [{"step": 0, **summary}, {"step": 10, **summary}]
    assert thought_figure(rows, dataset).name == "chain_of_thought"
    assert thought_figure([{"step": 0}], dataset) is None
