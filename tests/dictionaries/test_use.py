"""Editing features changes answers exactly where the model reads them, for every selection rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.dictionaries.architectures import Autoencoder
from implicit_reasoning.dictionaries.dictionary import InferenceDictionary
from implicit_reasoning.dictionaries.instrument import DictionarySubject, EncodedStates
from implicit_reasoning.dictionaries.measures import use
from implicit_reasoning.dictionaries.measures.use import CHANGES, OUTCOMES, RULES, SwapPrompts, Use
from implicit_reasoning.dictionaries.splice import Sites
from tests.analysis.by_hand import composer, dataset


@pytest.fixture(scope="module")
def data():
    # Each bridge has at least six facts for choosing its feature. With fewer, a feature of e1 may
    # predict it equally well.
    return dataset(n_entities=24, n_relations=12, out_degree=12)


@pytest.fixture(scope="module")
def inputs(data):
    return SwapPrompts.choose(data)


def dimensions(width):
    """Return a dictionary whose features are the dimensions of the state, which codes slots."""
    eye, nothing = np.eye(width, dtype=np.float32), np.zeros(width, np.float32)
    params = {"W_enc": eye, "b_enc": nothing, "W_dec": eye, "b_dec": nothing}
    return InferenceDictionary(Autoencoder(width, width, width), "standard"), params


@pytest.fixture(scope="module")
def measured(data, inputs):
    """Return the outcomes of each layer, measured once."""
    return {layer: outcomes(data, inputs, layer) for layer in (1, 2)}


def outcomes(data, inputs, layer):
    """Return shares by rule, change and outcome."""
    model, params = composer(data)
    finished, dictionary = dimensions(model.spec.d_model)
    site = (model.resid_sites[layer],)

    @jax.jit
    def measured(params, dictionary, nothing):
        subject = DictionarySubject(model, params, Sites(site, site), nothing, nothing)
        encoded, instrument = EncodedStates(finished, dictionary, nothing), Use()
        return instrument.measure(subject, instrument.shared(subject, inputs), encoded, inputs)

    found = measured(params, dictionary, np.zeros((1, model.spec.d_model), np.float32))
    named = np.asarray(found["use"]).mean(-1)
    return {
        (rule, change): dict(zip(OUTCOMES, named[r, c], strict=True))
        for r, rule in enumerate(RULES)
        for c, change in enumerate(CHANGES)
    }


def test_answers_follow_the_features_that_a_composer_reads(measured):
    found = measured[1]
    for rule in ("truth", "activation", "attribution", "class means"):
        # If the old bridge has no such fact, the model may give the expected answer without an
        # edit.
        swapped = found[rule, "swap"]
        assert swapped["moved"] > 0.97 and swapped["other"] == 0, rule
    assert found["null", "swap"]["moved"] < 0.2
    assert all(abs(sum(line.values()) - 1) < 1e-6 for line in found.values())


def test_only_the_feature_that_is_there_is_missed(measured):
    found = measured[1]
    assert found["truth", "ablate"]["unchanged"] < 0.2
    assert found["truth", "ablate another"]["unchanged"] == 1
    # With two bridges at once, the model answers from one of them or from both.
    assert found["truth", "clamp"]["moved"] < found["truth", "swap"]["moved"]


def test_after_the_last_block_nothing_is_said(measured):
    """No later component reads the state at r1."""
    for line in measured[2].values():
        assert np.isnan(list(line.values())).all()


@pytest.mark.slow
def test_a_feature_that_is_set_to_nothing_moves_nothing(data, inputs, monkeypatch):
    """Mutation: the new bridge's feature gets size 0, so the old one is only removed."""
    monkeypatch.setattr(use, "_sizes", lambda acts, feature, values: jnp.zeros(len(feature)))
    assert outcomes(data, inputs, layer=1)["truth", "swap"]["moved"] < 0.5


def test_all_relations_of_the_new_bridge_are_asked(data, inputs):
    world, usable, swaps = data.world, {}, inputs.swaps
    for entity in range(world.n_entities):
        facts = [(r, world.tail[entity, r]) for r in range(world.n_relations)]
        usable[entity] = {r: t for r, t in facts if t >= 0 and world.role[entity, r] == 0}
    for pair in np.unique(swaps.pair):
        here = swaps.pair == pair
        (new,), (old,) = (set(getattr(swaps, name)[here].tolist()) for name in ("new", "old"))
        assert new != old
        asked = swaps.tokens[here, 2] - world.n_entities
        wanted = {r for r, t in usable[new].items() if usable[old].get(r) != t}
        assert set(asked.tolist()) == wanted
        for relation, expected in zip(asked, swaps.expected[here], strict=True):
            assert world.tail[new, relation] == expected


def test_features_are_chosen_on_other_facts_than_they_are_swapped_on(inputs):
    fitted = {tuple(prefix) for prefix in inputs.fit_tokens[:, :2]}
    assert not fitted & {tuple(prefix) for prefix in inputs.swaps.tokens[:, :2]}


def test_all_of_a_pair():
    outcome = np.array([[1.0, 1.0, 0.0, 1.0], [np.nan] * 4], np.float32)
    first, every = use.all_of_pair(jnp.asarray(outcome), np.array([3, 3, 5, 5]))
    np.testing.assert_array_equal(first, [True, False, True, False])
    np.testing.assert_array_equal(every, [[1, 1, 0, 0], [np.nan] * 4])
