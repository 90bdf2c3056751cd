"""Swapping features moves answers exactly where the model reads them, for every relation."""

import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.dictionaries import use
from implicit_reasoning.dictionaries.dictionary import Finished
from implicit_reasoning.dictionaries.kinds import Autoencoder
from implicit_reasoning.dictionaries.use import OUTCOMES, RULES, swap_bridges, use_inputs
from tests.analysis.by_hand import composer, dataset


@pytest.fixture(scope="module")
def data():
    # Six facts and more of each bridge to choose its feature on: with fewer, e1 may tell as much.
    return dataset(n_relations=12, out_degree=12)


@pytest.fixture(scope="module")
def inputs(data):
    return use_inputs(data)


def dimensions(width):
    """A dictionary whose features are the dimensions of the state: a code of slots is its truth."""
    params = {"W_enc": jnp.eye(width), "b_enc": jnp.full(width, -0.1), "W_dec": jnp.eye(width)}
    kind = Autoencoder(width, width, width)
    return Finished(kind, "standard"), params | {"b_dec": jnp.zeros(width)}


def outcomes(data, inputs, layer):
    model, params = composer(data)
    finished, dictionary = dimensions(model.spec.d_model)
    where = {"layer": layer, "pos": use.bridge_position(data), "n_values": data.world.n_entities}
    found = swap_bridges(model, params, finished, dictionary, inputs, **where)
    shares = np.asarray(found["outcome"]).mean(-1)
    lines = [dict(zip(OUTCOMES, line, strict=True)) for line in shares]
    return dict(zip(RULES, lines, strict=True))


def test_answers_follow_the_features_that_a_composer_reads(data, inputs):
    found = outcomes(data, inputs, layer=1)
    for rule in ("truth", "activation", "attribution", "class means"):
        # Where the old bridge has no such fact, the model may say what is expected all along.
        assert found[rule]["moved"] > 0.97 and found[rule]["other"] == 0, rule
    assert found["null"]["moved"] < 0.2
    assert all(abs(sum(line.values()) - 1) < 1e-6 for line in found.values())


def test_where_nobody_reads_nothing_moves(data, inputs):
    """After the second block the state at r1 is of no use to anyone."""
    for line in outcomes(data, inputs, layer=2).values():
        assert line["unchanged"] == 1


def test_a_feature_that_is_set_to_nothing_moves_nothing(data, inputs, monkeypatch):
    """The mutation: the new bridge's feature gets no size, so that it is only taken away."""
    monkeypatch.setattr(use, "_sizes", lambda acts, feature, values: jnp.zeros(len(feature)))
    assert outcomes(data, inputs, layer=1)["truth"]["moved"] < 0.5


def test_all_relations_of_the_new_bridge_are_asked(data, inputs):
    world, usable = data.world, {}
    for entity in range(world.n_entities):
        facts = [(r, world.tail[entity, r]) for r in range(world.n_relations)]
        usable[entity] = {r: t for r, t in facts if t >= 0 and world.role[entity, r] == 0}
    for pair in np.unique(inputs["pair"]):
        here = inputs["pair"] == pair
        (new,), (old,) = (set(inputs[name][here].tolist()) for name in ("new", "old"))
        assert new != old
        asked = inputs["tokens"][here, 2] - world.n_entities
        wanted = {r for r, t in usable[new].items() if usable[old].get(r) != t}
        assert set(asked.tolist()) == wanted
        for relation, expected in zip(asked, inputs["expected"][here], strict=True):
            assert world.tail[new, relation] == expected


def test_features_are_chosen_on_other_facts_than_they_are_swapped_on(inputs):
    fitted = {tuple(prefix) for prefix in inputs["fit_tokens"][:, :2]}
    assert not fitted & {tuple(prefix) for prefix in inputs["tokens"][:, :2]}


def test_all_of_a_pair():
    outcome = np.array([[True, True, False, True]])
    found = use.all_of_pair(outcome, np.array([0, 0, 1, 1]))
    np.testing.assert_array_equal(found, [[True, False]])
