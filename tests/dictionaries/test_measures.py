"""Planted splitting, absorption and sharing between roles are found, and only where present."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis.facts import first_known_position
from implicit_reasoning.dictionaries.architectures import Autoencoder
from implicit_reasoning.dictionaries.dictionary import InferenceDictionary
from implicit_reasoning.dictionaries.instrument import (
    DictionarySubject,
    EncodedStates,
    without_examples,
)
from implicit_reasoning.dictionaries.measures.absorption import Absorption
from implicit_reasoning.dictionaries.measures.bridges import Bridges
from implicit_reasoning.dictionaries.measures.concepts import FACT, choose_concepts
from implicit_reasoning.dictionaries.measures.matching import Half, match
from implicit_reasoning.dictionaries.measures.roles import Roles
from implicit_reasoning.dictionaries.measures.superposition import (
    BridgeSuperposition,
    Superposition,
)
from implicit_reasoning.dictionaries.splice import Sites
from implicit_reasoning.dictionaries.states import split_states
from implicit_reasoning.model import Spec, Transformer
from tests.analysis.by_hand import dataset

N_BRIDGES, N_FACTS = 8, 12  # facts per bridge, each with its own state
WIDTH = N_BRIDGES + N_BRIDGES * N_FACTS


class World(NamedTuple):
    """States that have one dimension for each bridge and one for each fact."""

    bridges: Bridges
    x: np.ndarray


@pytest.fixture(scope="module")
def world():
    value = np.repeat(np.arange(N_BRIDGES), N_FACTS)
    number, n = np.arange(N_FACTS)[None].repeat(N_BRIDGES, 0).ravel(), len(value)
    x = np.zeros((n, WIDTH), np.float32)
    x[np.arange(n), value] = 1.0
    x[np.arange(n), N_BRIDGES + np.arange(n)] = 0.5
    of = Bridges(np.arange(n), value, number % 2 == 1, number < 8, N_BRIDGES)
    return World(of, x)


def found(instrument, examples, world, acts, rows):
    """Return the outputs of an instrument for a dictionary with these activations and rows."""
    spec = Spec(d_vocab=5, n_ctx=3, n_layers=1, d_model=8, n_heads=1, d_mlp=8)
    finished = InferenceDictionary(Autoencoder(WIDTH, WIDTH, len(rows)), "standard")

    @jax.jit
    def measured(x, acts, rows):
        subject = DictionarySubject(Transformer(spec), {}, Sites((), ()), x, x)
        encoded = EncodedStates(finished, {"W_dec": rows, "b_dec": jnp.zeros(WIDTH)}, acts)
        shared = instrument.shared(subject, examples.inputs)
        return instrument.measure(subject, shared, encoded, examples.inputs)

    as_floats = (np.asarray(array, np.float32) for array in (world.x, acts, rows))
    outputs = jax.device_get(measured(*as_floats))
    assert outputs.keys() == instrument.outputs.keys()
    return outputs


def with_absorption(world, absorbed):
    """Features are dimensions. In absorbed states only the fact's feature is active and writes
    both.
    """
    acts, rows = world.x.copy(), np.eye(WIDTH, dtype=np.float32)
    for state in np.flatnonzero(absorbed):
        bridge = world.bridges.values[state]
        acts[state, bridge] = 0
        acts[state, N_BRIDGES + state] = 1.0
        rows[N_BRIDGES + state, bridge] = 1.0
    return acts, rows


def test_absorbed_bridges_are_counted(world):
    of = world.bridges
    absorbed = of.second & (np.arange(len(of.values)) % N_FACTS == 1) & (of.values < 4)
    result = found(Absorption(), without_examples(of), world, *with_absorption(world, absorbed))
    expected = np.where(np.arange(N_BRIDGES) < 4, 1 / (N_FACTS // 2), 0)
    np.testing.assert_allclose(result["silent"], expected, atol=1e-6)
    np.testing.assert_allclose(result["absorbed"], expected, atol=1e-6)
    np.testing.assert_array_equal(result["absorbed_null"], np.zeros(N_BRIDGES))


def test_what_is_merely_silent_is_not_absorbed(world):
    """Mutation: the feature of the fact is active, but does not write the bridge."""
    of = world.bridges
    absorbed = of.second & (np.arange(len(of.values)) % N_FACTS == 1)
    acts, _ = with_absorption(world, absorbed)
    result = found(Absorption(), without_examples(of), world, acts, np.eye(WIDTH))
    assert (result["silent"] > 0).all() and (result["absorbed"] == 0).all()


def roles(world, acts):
    """Return by role the shares of states with the own, and another, bridge's feature."""
    examples = Roles.of(world.bridges)
    active = found(Roles(), examples, world, acts, np.eye(WIDTH))["role_active"]
    return {
        role: active[:, examples.group == number] for number, role in enumerate(examples.groups)
    }


def test_roles_of_shared_and_of_separate_features(world):
    of = world.bridges
    own, another = roles(world, world.x)["ood"]
    assert own.all() and not another.any()
    acts = world.x.copy()
    acts[~of.in_distribution, :N_BRIDGES] = 0  # OOD states have only the features of facts
    separate = roles(world, acts)
    assert separate["id"][0].all() and not separate["ood"].any()


def test_states_of_one_bridge_are_one_cluster(world):
    """States of a bridge share a feature, so they are one cluster; roles are counted separately."""
    examples, of = Roles.of(world.bridges), world.bridges
    np.testing.assert_array_equal(examples.clusters, of.values[examples.inputs.group])
    in_distribution = of.in_distribution[examples.inputs.group]
    np.testing.assert_array_equal(examples.group == 0, in_distribution)
    assert not set(examples.inputs.fit) & set(examples.inputs.group)
    assert (examples.inputs.other != examples.clusters).all()


def test_superposition_by_hand(world):
    random = np.random.default_rng(0)
    rows = random.normal(size=(40, WIDTH))
    acts = np.abs(random.normal(size=(len(world.x), 40))).astype(np.float32)
    acts[:, 30:] = 0  # never active, so no feature direction
    result = found(Superposition(), without_examples(None), world, acts, rows)
    unit = rows[:30] / np.linalg.norm(rows[:30], axis=1, keepdims=True)
    cosine = np.abs(unit @ unit.T) - np.eye(30)
    assert result["feature_directions"] == 30
    np.testing.assert_allclose(result["feature_overlap"], cosine.max(1).mean(), rtol=1e-4)
    np.testing.assert_allclose(
        result["feature_dims"], (1 / (1 + (cosine**2).sum(1))).mean(), rtol=1e-4
    )
    values = np.linalg.eigvalsh(np.cov(world.x.T, bias=True))
    np.testing.assert_allclose(
        result["effective_dims"], values.sum() ** 2 / (values**2).sum(), rtol=1e-3
    )
    # Apart from the facts' own dimensions, the centered means of bridges form a simplex, in which
    # the |cosine| of any two is 1 / (n - 1).
    result = found(BridgeSuperposition(), without_examples(world.bridges), world, acts, rows)
    np.testing.assert_allclose(result["bridge_overlap"], 1 / (N_BRIDGES - 1), atol=0.01)


# Concepts ----------------------------------------------------------------------------------------


def test_features_are_chosen_and_scored_on_different_facts(run):
    data = run.dataset
    places = split_states(data).places
    for concept in choose_concepts(data, places):
        facts = data.truth["fact1"][places.rows[places.row[concept.chosen]]]
        values = np.unique(concept.values)
        assert values.min() >= (-1 if concept.variable == FACT else 0)
        assert values.max() < concept.n_values
        assert (places.pos[concept.chosen] == data.positions.index(concept.pos)).all()
        shared = set(facts[concept.second]) & set(facts[~concept.second])
        if concept.variable == FACT:  # its states are assigned to halves one by one
            counts = [
                np.bincount(facts[concept.second == half], minlength=facts.max() + 1)
                for half in (False, True)
            ]
            for value in values[values >= 0]:  # each number is one fact and has all of its states
                (fact,) = set(facts[concept.values == value])
                everywhere = data.truth["fact1"][places.rows[places.row]] == fact
                here = everywhere & (places.pos == data.positions.index(concept.pos))
                assert here.sum() == (concept.values == value).sum()
            assert (np.abs(counts[0] - counts[1]) <= 1).all()
        else:
            assert not shared
            where = first_known_position(concept.variable, data.positions)
            assert data.positions.index(where) <= data.positions.index(concept.pos)
            np.testing.assert_array_equal(
                data.truth[concept.variable][places.rows[places.row[concept.chosen]]],
                concept.values,
            )


def test_an_entity_does_not_pass_for_the_one_fact_of_it_that_is_asked_for():
    data = dataset(n_relations=12, out_degree=12)
    places = split_states(data).places
    (concept,) = (one for one in choose_concepts(data, places) if one.variable == FACT)
    heads = data.truth["e1"][places.rows[places.row[concept.chosen]]]
    acts = (heads[:, None] == np.arange(data.world.n_entities)[None]).astype(np.float32)

    def best(of):
        chosen, scored = (
            Half(acts[of & half], concept.values[of & half])
            for half in (~concept.second, concept.second)
        )
        return np.nanmean(jax.jit(match, static_argnums=2)(chosen, scored, concept.n_values).f1)

    assert best(np.ones(len(acts), bool)) < 0.3
    assert best(concept.values >= 0) > 0.45  # mutation: without states of other facts
