"""The keys of neurons are the facts and chains that are written into planted models."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from implicit_reasoning.analysis import queries
from implicit_reasoning.analysis.claims import describe
from implicit_reasoning.analysis.components.key_scores import active_states, best_keys
from implicit_reasoning.analysis.components.neuron_keys import (
    NeuronKeys,
    _more_than_chance,
    _names,
)
from implicit_reasoning.analysis.components.neuron_weights import embedded_inputs, written_logits
from implicit_reasoning.analysis.components.triggers import position_states
from implicit_reasoning.analysis.instrument import NotApplicable
from implicit_reasoning.analysis.runner import measure
from implicit_reasoning.analysis.subject import InMemory
from implicit_reasoning.analysis.truth.known import small_world
from tests.analysis.planted_subject import planted_model
from tests.model.exchange.models import filled

SMALL = {"n_entities": 16, "n_relations": 6, "out_degree": 5, "phi": 1.5}
N_FACTS = 80


@pytest.fixture(scope="module")
def dataset():
    return small_world(**SMALL)


@pytest.fixture(scope="module")
def states(dataset):
    return position_states(dataset, 10_000)


def test_states_are_the_prefixes_of_all_chains(dataset, states):
    asked = queries.all_queries(dataset)
    assert [len(one.tokens) for one in states.values()] == [16, N_FACTS, len(asked.answer)]
    assert set(states["e1"].alone) == {"e1"} and not states["e1"].shared
    assert set(states["r1"].alone) == {"fact1"} and set(states["r1"].shared) == {"e1", "r1", "e2"}
    assert set(states["r2"].alone) == {"chain"}
    world = dataset.world
    for one, variable, first in ((states["r1"], "fact1", 0), (states["r2"], "fact2", 1)):
        triggers = (one.alone | one.shared)[variable]
        key, target = triggers.key[triggers.values], triggers.target[triggers.values]
        np.testing.assert_array_equal(world.tail[key[:, 0], key[:, 1]], target)
        np.testing.assert_array_equal(one.tokens[:, 1 + first], key[:, 1] + world.n_entities)


def test_halves_share_no_first_fact_and_each_has_about_half_of_each_bridge(states):
    of = states["r2"].shared | states["r2"].alone
    first = of["fact1"].values
    for name in ("e1", "r1", "e2", "r2", "fact2", "answer"):
        second = of[name].second
        assert not np.intersect1d(first[second], first[~second]).size
    fact2 = of["fact2"]
    sizes = [np.bincount(fact2.values[fact2.second == half], minlength=N_FACTS) for half in (0, 1)]
    assert (np.abs(sizes[0] - sizes[1]) <= 1).all()
    np.testing.assert_array_equal(fact2.often, np.minimum(*sizes) >= 2)
    # The states of a first fact would all be in one half, so they are divided themselves.
    own = [np.bincount(first[of["fact1"].second == half], minlength=N_FACTS) for half in (0, 1)]
    assert (np.abs(own[0] - own[1]) <= 1).all()


def test_a_trigger_is_ambiguous_if_another_one_is_present_in_the_same_states(states):
    for one in states.values():
        tables = one.shared | one.alone
        sets = {
            (name, value): frozenset(np.flatnonzero(table.values == value))
            for name, table in tables.items()
            for value in np.unique(table.values)
        }
        for (name, value), here in sets.items():
            twice = sum(here == other for other in sets.values()) > 1
            assert tables[name].ambiguous[value] == twice, (name, value)


def by_loops(acts, active, states):
    """Return the key of one neuron, by counting states one trigger after another."""

    def f1(on, there):
        return 2 * (on & there).sum() / max(on.sum() + there.sum(), 1)

    best = (-1.0, None, None, None)
    order = ["e1", "e2", "r1", "r2", "answer", "fact1", "fact2", "chain"]
    for name in order:
        found = []
        if name in states.shared:
            table = states.shared[name]
            for value in np.unique(table.values):
                there, half = table.values == value, table.second
                if there[half].any() and there[~half].any():
                    scores = [f1(active[part], there[part]) for part in (~half, half)]
                    found.append((scores[0], name, value, scores[1]))
        elif name in states.alone:
            there = states.alone[name].values == states.alone[name].values[acts.argmax()]
            score = f1(active, there)
            found.append((score, name, states.alone[name].values[acts.argmax()], score))
        found = [one for one in found if one[0] == max(score for score, *_ in found)]
        if found and found[0][0] >= best[0] - 1e-6:
            best = found[0]
    return best


@pytest.mark.parametrize("pos", ["r1", "r2"])
def test_keys_are_those_that_loops_find(states, pos):
    here, random = states[pos], np.random.default_rng(1)
    count = len(here.tokens)
    acts = random.normal(size=(count, 12)) - np.linspace(0, 3, 12)
    acts[:, -1] = -1  # never active
    acts[:, 0] = np.where(here.shared["e2"].values == 3, 1.0, -1.0)
    acts[:, 1] = np.where((here.shared | here.alone)["fact1"].values == 7, 1.0, -1.0)
    active = np.asarray(jax.jit(active_states)(jnp.asarray(acts)))
    np.testing.assert_array_equal(active[0], acts > 0)
    np.testing.assert_array_equal(active[1], (acts > 0) & (acts > acts.max(0) / 2))
    names = _names(tuple(states.values()))
    found = jax.jit(lambda acts, on: best_keys(acts, on, here, names))
    for on in active:
        keys = jax.tree.map(np.asarray, found(jnp.asarray(acts), jnp.asarray(on)))
        for neuron in np.flatnonzero(on.any(0)):
            score, name, value, held_out = by_loops(acts[:, neuron], on[:, neuron], here)
            assert names[int(keys.variable[neuron])] == name, neuron
            assert int(keys.value[neuron]) == value
            np.testing.assert_allclose(keys.first_f1[neuron], score, atol=1e-6)
            np.testing.assert_allclose(keys.f1[neuron], held_out, atol=1e-6)
        assert int(keys.variable[-1]) == -1 and int(keys.n_active[-1]) == 0
    assert names[int(keys.variable[0])] == "e2" and names[int(keys.variable[1])] == "fact1"


def result_of(name, dataset):
    """Return the results of a planted model and of random weights, and the planted model."""
    known = planted_model(name, dataset, dataset.splits)
    noise = filled(known.subject.model, seed=1)
    params = jax.tree.map(lambda leaf: leaf[0], known.subject.params())
    subject = InMemory(known.subject.model, dataset, [params, noise])
    return measure(NeuronKeys(), subject, progress=False), known


def at_neuron(result, claim):
    unit: Any = claim.unit
    return result.sel(block=unit.layer, neuron=unit.index)


@pytest.fixture(scope="module")
def composed(dataset):
    return result_of("composer", dataset)


@pytest.mark.slow
def test_every_fact_of_a_composer_is_named_unless_another_trigger_is_the_same(composed):
    result, known = composed
    first, noise = (result.isel(step=step, drop=True) for step in (0, 1))
    claims = NeuronKeys().claims(first)
    assert describe(claims, known.mechanism)["false"] == []
    of = first.sel(activity="positive")
    wanted = {claim for claim in known.mechanism.true if claim.kind == "stores"}
    assert len(wanted) == 2 * N_FACTS and len(claims) > 1.7 * N_FACTS
    for claim in wanted - claims:
        at = at_neuron(of, claim)
        on = at.n_active > 0
        assert not on.any() or (at.ambiguous.where(on) == 1).any(), claim
    for claim in claims:
        at = at_neuron(of, claim)
        on = at.n_active > 0
        np.testing.assert_array_equal(at.f1.values[on], 1)
        np.testing.assert_array_equal(at.value_rank.sel(whose="own").values[on], 0)
        np.testing.assert_array_equal(
            at.input_rank.sel(whose="own", input="relation").values[on], 0
        )
    assert NeuronKeys().claims(noise) == set()


@pytest.mark.slow
def test_a_neuron_whose_key_is_ambiguous_or_does_not_fit_is_not_named(composed):
    first = composed[0].isel(step=0, drop=True)
    assert NeuronKeys().claims(first)
    worse = ({"ambiguous": first.ambiguous * 0 + 1}, {"f1": first.f1 * 0.4})
    for changed in (*worse, {"first_f1": first.first_f1 * 0.4}):
        assert NeuronKeys().claims(first.assign(changed)) == set()


@pytest.mark.slow
def test_a_neuron_that_is_active_in_one_state_by_chance_is_not_named(composed):
    """Random weights have such neurons, and about as many that are active in two states."""
    noise = composed[0].isel(step=1, drop=True).sel(activity="positive")
    once = (noise.n_active == 1) & (noise.f1 == 1)
    assert once.any() and not _more_than_chance(noise.rarely_active).any()
    few = xr.DataArray([[80, 0, 0], [29, 0, 0], [80, 3, 0]], dims=("block", "active_in"))
    few = few.assign_coords(active_in=[1, 2, 3])
    # The upper bound on the mean of two Poisson counts of 0 is -log(.05) / 2 = 1.5.
    np.testing.assert_array_equal(_more_than_chance(few), [True, False, True])
    few[2, 1] = 4
    np.testing.assert_array_equal(_more_than_chance(few)[2], False)


@pytest.mark.slow
def test_the_choice_of_the_best_is_good_by_chance_and_the_null_shows_how_good(composed):
    """On random weights, F1 falls on the other half, to about that of permuted facts."""
    noise = composed[0].isel(step=1).sel(activity="positive", pos="r2")
    shared = noise.where(noise["variable"] < list(noise.trigger.values).index("chain"))
    chosen, held_out = (float(shared[name].mean()) for name in ("first_f1", "f1"))
    assert held_out < chosen
    null = float(noise.null_f1.mean())
    assert 0.05 < null < held_out + 0.05
    highest = noise.highest_null_f1.sel(among="all triggers")
    assert (highest >= noise.null_f1.mean("neuron")).all()


@pytest.mark.slow
def test_figures_are_drawn_and_the_null_is_in_them(composed):
    figures = NeuronKeys().figures(composed[0])
    assert [one.name for one in figures] == ["neuron_keys", "neuron_keys_f1", "neuron_values"]
    assert all("null" in one.caption for one in figures)


def test_weights_are_read_with_the_gain_of_the_norm(dataset):
    """One neuron after another, by hand."""
    known = planted_model("layer_norm_composer", dataset, dataset.splits)
    model, params = known.subject.model, filled(known.subject.model, seed=2)
    block = jax.tree.map(np.asarray, params["blocks"]["1"])
    written, read = jax.jit(
        lambda params: (written_logits(model, params, 1), embedded_inputs(model, params, 1))
    )(params)
    out, norm = block["mlp"]["W_out"][5], np.asarray(params["ln_final"]["w"])
    by_hand = ((out - out.mean()) * norm) @ np.asarray(params["unembed"]["W_U"])
    np.testing.assert_allclose(written[5], by_hand, atol=1e-4)
    token = np.asarray(params["embed"]["W_E"])[3]
    by_hand = ((token - token.mean()) * block["ln2"]["w"]) @ block["mlp"]["W_in"]
    np.testing.assert_allclose(np.asarray(read)[:, 3], by_hand, atol=1e-4)


def test_a_task_without_chains_is_refused(dataset):
    other = dataclasses.replace(dataset, world=None)
    model = planted_model("composer", dataset, dataset.splits).subject.model
    with pytest.raises(NotApplicable, match="chains"):
        NeuronKeys().examples(model, other)
