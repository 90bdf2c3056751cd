"""Features of a bridge are found on held-out facts, and the bridge share is that of a set."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis.truth.known import planted_model, scored_world
from implicit_reasoning.dictionaries.activations import ReLU
from implicit_reasoning.dictionaries.architectures import CrossLayer
from implicit_reasoning.dictionaries.defaults import get_config
from implicit_reasoning.dictionaries.dictionary import InferenceDictionary
from implicit_reasoning.dictionaries.graphs.bridge import bridge_features, random_active
from implicit_reasoning.dictionaries.graphs.label_prompts import second_half
from implicit_reasoning.dictionaries.graphs.measure import measure_graphs, replacement_groups
from implicit_reasoning.dictionaries.replacement import mlp_sites
from implicit_reasoning.dictionaries.store import Dictionaries, Member
from implicit_reasoning.errors import InputError
from tests.dictionaries.graphs.planted import labeled, neuron_set
from tests.dictionaries.parameters import at_random


def test_features_of_a_bridge_are_found_and_others_are_not():
    random = np.random.default_rng(0)
    bridge, second = random.integers(0, 5, 200), random.random(200) < 0.5
    acts = np.zeros((200, 2, 1, 5), np.float32)
    acts[:, 1, 0, 0] = 2.0 * (bridge == 3)
    acts[:, 1, 0, 1] = np.where(second, bridge == 1, bridge == 2)  # holds on one half only
    acts[:, 1, 0, 2] = random.random(200) < 0.2
    acts[:, 0, 0, 3] = 1.0
    acts[:, 1, 0, 4] = second & (bridge == 0)  # no bridge can be chosen on the first half
    found = bridge_features(jnp.asarray(acts), labeled(bridge, second))
    assert found.value[1, 0, 0] == 3 and found.f1[1, 0, 0] == 1
    assert (np.asarray(found.value) >= 0).sum() == 1
    # F1 of a feature that is always active is that of a constant prediction.
    share = (bridge[second] == int(np.bincount(bridge[~second]).argmax())).mean()
    np.testing.assert_allclose(found.f1[0, 0, 3], 2 * share / (1 + share), rtol=1e-5)


def test_no_feature_stands_for_a_bridge_that_the_prefix_does_not_determine():
    bridge = np.arange(200) % 5
    prompts = labeled(bridge, np.arange(200) % 2 == 1)
    acts = jnp.asarray(np.tile((bridge == 3)[:, None, None, None], (1, 2, 1, 1)), jnp.float32)
    assert bridge_features(acts, prompts).value.ravel().tolist() == [3, 3]
    late = prompts._replace(known=np.array([False, True]))
    assert bridge_features(acts, late).value.ravel().tolist() == [-1, 3]


def test_both_halves_have_every_bridge_equally_often():
    random = np.random.default_rng(0)
    of_fact = random.integers(0, 6, 50)  # the bridge of each fact
    facts = random.integers(0, 50, 400)
    second = second_half(facts, of_fact[facts])
    halves = [{fact for fact in facts[second == half]} for half in (False, True)]
    assert not halves[0] & halves[1]
    first, last = (np.bincount(of_fact[list(half)], minlength=6) for half in halves)
    assert set(first - last) <= {0, 1} and last.sum() > 20


def test_random_features_are_active_at_the_same_places_and_differ_by_key():
    """The null of the bridge share has as many features at every position and layer."""
    random = np.random.default_rng(1)
    place = random.integers(0, 6, 60)
    counts = random.random(60) < 0.8
    chosen = counts & (random.random(60) < 0.3)
    arguments = map(jnp.asarray, (place, counts, chosen))
    keys = jax.random.split(jax.random.key(0), 200)
    draws = np.asarray(jax.vmap(random_active, (0, None, None, None))(keys, *arguments))
    assert not draws[:, ~counts].any()
    for number in range(6):
        here = place == number
        assert (draws[:, here].sum(1) == chosen[here].sum()).all()
        share = chosen[here].sum() / counts[here].sum()
        np.testing.assert_allclose(draws[:, here & counts].mean(0), share, atol=0.15)


@pytest.fixture(scope="module")
def composer():
    dataset = scored_world(0)
    return planted_model("composer", dataset, dataset.splits)


@pytest.mark.slow
def test_neurons_of_facts_explain_all_and_stand_for_no_bridge(composer):
    """A neuron of a single fact says nothing about other facts with the same bridge."""
    made = neuron_set(composer.subject)
    found = measure_graphs(composer.subject, made, splits=("train_ii", "test_ii"), max_features=16)
    assert found.step.values.tolist() == [composer.subject.steps[-1]]
    np.testing.assert_allclose(found.replacement, 1, atol=1e-5)
    np.testing.assert_allclose(found.completeness, 1, atol=1e-5)
    assert (found.n_active == 2).all() and (found.n_active_n >= 20).all()
    np.testing.assert_allclose(found.bridge_share, 0, atol=1e-6)


@pytest.mark.slow
def test_cross_layer_transcoders_are_one_member(composer):
    model, step = composer.subject.model, composer.subject.steps[-1]
    depth, width, n_features = model.spec.depth, model.spec.d_model, 8
    architecture = CrossLayer(depth * width, depth * width, depth * n_features, n_layers=depth)
    _, params, *_ = at_random(architecture, ReLU())
    sites = mlp_sites(model)
    made = Dictionaries(
        InferenceDictionary(architecture, "standard"),
        {name: value[None] for name, value in params.items()},
        (Member((step,), sites.read, sites.write, 1.0, 0),),
        get_config("cross_layer"),
    )
    found = measure_graphs(composer.subject, made, splits=("test_ii",), max_features=64)
    assert (found.n_active > 5).all() and (found.n_active_low < found.n_active_high).all()
    assert ((found.replacement > 0) & (found.replacement < 1)).all()
    assert ((found.completeness > 0) & (found.completeness < 1)).all()


def test_a_set_without_transcoders_of_all_mlps_is_refused(composer):
    made = neuron_set(composer.subject, [0, 2])
    with pytest.raises(InputError, match="the set 'neurons' has no transcoders of all MLPs"):
        replacement_groups(composer.subject.model, made)
