"""Trained masks find the edges of a planted circuit, and gates have their distribution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from implicit_reasoning.analysis import queries
from implicit_reasoning.analysis.circuits import curves, learned_masks, scores
from implicit_reasoning.analysis.circuits.acdc import divergence_from
from implicit_reasoning.analysis.circuits.evaluation import scorable
from implicit_reasoning.analysis.truth.known import planted_model
from implicit_reasoning.model.graph import EdgeGraph
from implicit_reasoning.model.units import Edge
from tests.analysis.planted_subject import dataset

WEIGHTS = np.array([0.0, 0.5], np.float32)


@functools.cache
def composer():
    return planted_model("composer", dataset(), ("train_ii",))


@functools.cache
def trained():
    """Train masks of the planted composer; the corrupt prompts are those of other rows."""
    subject = composer().subject
    rows = dataset().rows("train_ii")[:8]
    clean = queries.prompt_tokens(dataset(), queries.queries_of_rows(dataset(), rows).parts)
    corrupt = np.random.default_rng(0).permutation(dataset().rows("train_ii"))[:8]
    corrupt = queries.prompt_tokens(dataset(), queries.queries_of_rows(dataset(), corrupt).parts)
    model, graph = subject.model, EdgeGraph(subject.model.spec, clean.shape[1])

    def run(params):
        runs = scores.two_runs(model, params, clean, corrupt)
        metric = divergence_from(model.forward(params, clean)[0][:, -1])
        arguments = model, params, graph, runs, metric, WEIGHTS, jax.random.key(0)
        found = learned_masks.learn_masks(
            *arguments, steps=100, learning_rate=0.2, by_position=False
        )
        return found, scorable(graph, runs.change, by_position=False)

    return graph, *jax.device_get(jax.jit(run)(subject.checkpoints[0]))


def test_trained_masks_find_the_planted_edges():
    graph, found, can = trained()
    claims = composer().mechanism.true
    edges = [claim.unit for claim in claims if claim.kind == "part"]
    true = graph.mask(edge for edge in edges if isinstance(edge, Edge)) == 1
    # Queries and keys of planted heads read positions, which are the same in both prompts.
    pattern = [edge.receiver.endswith(("<q>", "<k>")) for edge in graph.edges]
    can = can & ~np.array(pattern)[:, None]
    assert 5 < (true & can).sum() < can.sum() / 2
    none, some = range(len(WEIGHTS))
    assert curves.auroc(found.gate_logits[some][can].astype(float), true[can]) > 0.99
    np.testing.assert_array_equal((found.masks[some] > 0.5) & can, true & can)
    # The circuit answers as the full model does. With random gates at the start, it does not.
    assert found.metric[some, :10].mean() > 1 and np.median(found.metric[some, -10:]) < 0.01
    # Without a penalty, nothing closes the gates of edges that have no effect.
    live = np.asarray(learned_masks.expected_live(jnp.asarray(found.gate_logits))).sum((1, 2))
    assert live[some] < live[none] / 5
    penalty = (found.loss - found.metric)[:, 0]
    start = float(learned_masks.expected_live(jnp.asarray(learned_masks.START)))
    np.testing.assert_allclose(penalty, WEIGHTS * start, atol=1e-4)


def test_gates_have_the_hard_concrete_distribution():
    """The shares of gates at 0 and 1 are those of the logistic distribution."""
    logits = jnp.full(20_000, 0.7)
    drawn = np.asarray(learned_masks.draw_gates(logits, jax.random.key(1)))
    low, high = learned_masks.STRETCH

    def below(gate):
        """Return the probability of a stretched gate below a value."""
        share = (gate - low) / (high - low)
        edge = learned_masks.TEMPERATURE * np.log(share / (1 - share))
        return 1 / (1 + np.exp(0.7 - edge))

    assert abs((drawn == 0).mean() - below(0)) < 0.01
    assert abs((drawn < 1).mean() - below(1)) < 0.01
    assert abs((drawn < 0.5).mean() - below(0.5)) < 0.01
    live = float(learned_masks.expected_live(logits)[0])
    assert abs((drawn > 0).mean() - live) < 0.01
    assert learned_masks.gates(jnp.array([-9.0, 0.0, 9.0])).tolist() == [0, 0.5, 1]
