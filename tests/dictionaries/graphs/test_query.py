"""Features have labels that hold on facts that did not choose them; graphs of all checkpoints."""

import dataclasses

import jax
import numpy as np
import pytest

from implicit_reasoning.analysis.subject import InMemory
from implicit_reasoning.analysis.truth.known import planted_model, scored_world
from implicit_reasoning.dictionaries.graphs.labels import TrueValues, label_features
from implicit_reasoning.dictionaries.graphs.page import make_page
from implicit_reasoning.dictionaries.graphs.query import query_graphs
from implicit_reasoning.errors import InputError
from tests.dictionaries.graphs.planted import labeled, neuron_set
from tests.dictionaries.graphs.test_page import data_of

ENCODER = ("W_enc", "b_enc")


def test_labels_are_values_that_predict_activity_on_other_facts():
    random = np.random.default_rng(0)
    e2, r2 = random.integers(0, 5, (2, 400))
    second = random.random(400) < 0.5
    acts = np.zeros((400, 2, 1, 5), np.float32)
    acts[:, 1, 0, 0] = 2.0 * (e2 == 3)
    acts[:, 1, 0, 1] = r2 == 4
    acts[:, 1, 0, 2] = np.where(second, e2 == 1, e2 == 2)  # holds on one half only
    acts[:, 0, 0, 3] = r2 == 0  # at a position where r2 is not known
    # A value of r2 fits better on the half that chooses, but only that of e2 fits on the other.
    acts[:, 1, 0, 4] = np.where(second, e2 == 0, (r2 == 1) | (e2 == 0) & (random.random(400) < 0.6))
    true = TrueValues(
        ("e2", "r2"), np.stack([e2, r2]).astype(np.int32), np.array([[1, 1], [0, 1]]) > 0, (0, 9), 5
    )
    found = jax.device_get(
        jax.jit(lambda acts: label_features(acts, true, labeled(e2, second)))(acts)
    )
    assert found.variable[1, 0].tolist() == [0, 1, -1, -1, 0]
    assert found.value[1, 0, [0, 1, 4]].tolist() == [3, 4, 0]
    np.testing.assert_allclose(found.f1[1, 0, :2], 1)
    assert (found.variable[0] == -1).all()


@pytest.fixture(scope="module")
def composer():
    """Return the composer with two checkpoints, and its neurons. At the first, MLP 0 is silent."""
    dataset = scored_world(0)
    known = planted_model("composer", dataset, dataset.splits)
    [step], model = known.subject.steps, known.subject.model
    whole = jax.tree.map(lambda leaf: leaf[0], jax.device_get(known.subject.params([step])))
    mlp = whole["blocks"]["0"]["mlp"]
    silent = {"mlp": mlp | {name: np.zeros_like(mlp[name]) for name in ("W_in", "b_in")}}
    before = whole | {"blocks": whole["blocks"] | {"0": whole["blocks"]["0"] | silent}}
    made = neuron_set(known.subject)
    last = jax.device_get(made.params)
    own = last | {name: np.concatenate([0 * last[name][:1], last[name][1:]]) for name in ENCODER}
    both = dataclasses.replace(
        made,
        # The later checkpoint comes first in the set.
        params=jax.tree.map(lambda *parts: np.concatenate(parts), last, own),
        members=tuple(member._replace(steps=(at,)) for at in (1, 0) for member in made.members),
    )
    return InMemory(model, dataset, [before, whole]), both


@pytest.mark.slow
def test_graphs_of_all_checkpoints_are_in_the_order_of_steps(composer):
    subject, made = composer
    dataset = subject.dataset
    row = int(dataset.rows("test_ii")[0])
    found = query_graphs(subject, made, row, max_features=8)
    before, after = found.graphs
    assert (before.step, after.step) == (0, 1) and not found.same_features
    truth = found.query.truth
    assert truth["e2"] == dataset.vocab[dataset.truth["e2"][row]]
    assert found.query.names[found.query.answer] == truth["answer"]
    assert [found.query.names[token] for token in found.query.tokens] == [
        truth[name] for name in ("e1", "r1", "r2")
    ]
    # Without MLP 0 there is no bridge, so the answer is not looked up.
    kept = [
        [
            (int(at.graph.layer[place]), int(at.graph.pos[place]))
            for place in np.flatnonzero(at.kept.node[:8])
        ]
        for at in found.graphs
    ]
    assert (0, 1) not in kept[0] and kept[1] == [(0, 1), (2, 2)]
    # Each neuron reads the relation at its own position.
    [first, second] = np.flatnonzero(after.kept.node[:8])
    names = [found.query.names[after.tokens[place, 0]] for place in (first, second)]
    assert names == [truth["r1"], truth["r2"]]
    assert after.graph.token[0] == found.query.answer != before.graph.token[0]
    np.testing.assert_allclose(after.scores, 1, atol=1e-5)
    # A neuron of one fact says nothing about other facts with the same bridge.
    assert after.bridge_share == pytest.approx(0, abs=1e-6)
    data = data_of(make_page(found))
    assert [graph["step"] for graph in data["graphs"]] == [0, 1]


def test_what_is_no_query_is_refused(composer):
    subject, made = composer
    dataset = subject.dataset
    with pytest.raises(InputError, match="is no chain; it has no value of r2"):
        query_graphs(subject, made, int(dataset.rows("id_triples")[0]))
    row = int(dataset.rows("test_ii")[0])
    with pytest.raises(InputError, match=r"sparsity 3 and seed 0; its sparsities are 1"):
        query_graphs(subject, made, row, sparsity=3.0)
