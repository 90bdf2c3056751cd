"""Baselines match their definitions and are measured beside the dictionaries."""

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
import xarray as xr

from implicit_reasoning.dictionaries import Dictionaries, measure_dictionaries
from implicit_reasoning.dictionaries.baselines import FROZEN, _fitted, _trained, make_baselines
from implicit_reasoning.dictionaries.evolution import births, over_training
from implicit_reasoning.dictionaries.states import split_states, states
from implicit_reasoning.dictionaries.store import UNTRAINED
from tests.dictionaries.planted import untrained
from tests.dictionaries.small import SITE, config

FITTED = {"k-means", "linear", "neurons", "class means"}


@pytest.fixture(scope="module")
def split(run):
    return split_states(run.dataset)


@pytest.fixture(scope="module")
def found(run, beaten, split):
    first = {}
    for one in make_baselines(run, beaten, split):
        first.setdefault(one.name, one)
    return first


@pytest.fixture(scope="module")
def fitted(run, split):
    """Return the baselines that are fitted to states, which need no trained dictionary."""
    made = untrained(run, config(name="fitted", read=(SITE,)))
    return {one.name: one for one in _fitted(run, made, split, made.shown[0])}


def states_of(run, split, baseline):
    member = baseline.member
    return [states_at(run, split, member, sites) for sites in (member.read, member.write)]


def states_at(run, split, member, sites):
    found = jax.jit(partial(states, run.model, split.places), static_argnums=1)
    return np.asarray(found(run.params(member.steps), tuple(sites)))[split.trained]


def use(one, x):
    """Return the output and the activations of a baseline, by one program."""
    finished = one.dictionary
    both = jax.jit(lambda params, x: (finished(params, x), finished.encode(params, x)))
    return jax.device_get(both(one.params, x))


@pytest.mark.slow
def test_there_are_all_of_them(run, found):
    assert set(found) == {FROZEN} | FITTED  # step 0 is in the set
    assert all(one.member.step == run.steps[-1] for one in found.values())


def test_k_means_writes_the_nearest_of_its_centroids(run, split, fitted):
    one = fitted["k-means"]
    x, _ = states_of(run, split, one)
    written, acts = use(one, x)
    assert ((acts > 0).sum(1) == 1).all()
    rows = np.asarray(one.dictionary.architecture.rows(one.params))
    used = np.isfinite(np.asarray(one.params["b_enc"]))
    distance = ((x[:, None] - rows[None, used]) ** 2).sum(-1)
    np.testing.assert_allclose(((written - x) ** 2).sum(1), distance.min(1), rtol=1e-3, atol=1e-4)


def test_linear_is_pca_with_the_best_of_each_state(run, split, fitted):
    one = fitted["linear"]
    single, _ = states_of(run, split, one)
    x = single.astype(np.float64)
    k, mean = int(one.params["k"]), np.asarray(one.params["b_dec"], np.float64)
    directions = np.asarray(one.dictionary.architecture.rows(one.params), np.float64)
    directions = directions[: len(directions) // 2]
    np.testing.assert_allclose(directions @ directions.T, np.eye(len(directions)), atol=1e-4)
    along = (x - mean) @ directions.T
    spread = (along**2).sum(0)
    assert (np.diff(spread) <= 0.05 * spread[0]).all()  # principal components come first
    best = np.sort(np.abs(along), axis=1)[:, -k:]
    left = ((x - mean) ** 2).sum(1) - (best**2).sum(1)
    written, _ = use(one, single)
    np.testing.assert_allclose(((written - x) ** 2).sum(1), left, rtol=1e-3, atol=1e-3)


def test_class_means_know_the_bridge(run, split, fitted):
    one = fitted["class means"]
    x, _ = states_of(run, split, one)
    places = split.places
    there = places.pos[split.trained] == 1
    e2 = run.dataset.truth["e2"][places.rows[places.row[split.trained]]][there]
    acts = use(one, x)[1][there]
    means = np.stack([x[there][e2 == value].mean(0) for value in np.unique(e2)])
    rows = np.asarray(one.dictionary.architecture.rows(one.params))
    # For every bridge one row is close to the mean of its states at r1, because these are drawn
    # about equally often.
    nearest = np.linalg.norm(means[:, None] - rows[None], axis=-1).min(1)
    assert np.median(nearest) < 0.1 * np.linalg.norm(means, axis=1).mean()
    assert len(np.unique(acts.argmax(1))) > 1


@pytest.mark.slow
def test_a_frozen_decoder_is_the_one_that_was_drawn(run, beaten, split, found):
    made, one = beaten, found[FROZEN]
    number = made.members.index(one.member)
    rows, trained = (
        np.asarray(made.dictionary.architecture.rows(params))
        for params in (one.params, made.params_of(number))
    )
    cosine = np.abs(rows @ rows.T - np.eye(len(rows)))
    assert cosine.mean() < 2 / np.sqrt(rows.shape[1])  # as random as when drawn
    assert np.abs((rows * trained).sum(1)).mean() < 0.9
    x, _ = states_of(run, split, one)
    write = jax.jit(made.dictionary.__call__)
    errors = [
        float(((np.asarray(write(params, x)) - x) ** 2).sum())
        for params in (one.params, made.params_of(number))
    ]
    assert errors[1] < errors[0]


def test_transcoders_have_the_neurons_of_their_mlp(run, split):
    made = untrained(run, config("transcoder", name="neurons", sparsities=(3.0,), checkpoints=1))
    one = next(b for b in _fitted(run, made, split, made.shown[0]) if b.name == "neurons")
    x, _ = states_of(run, split, one)
    neurons: Any = one.dictionary
    width = neurons.architecture.d_sae
    everything = {**one.params, "k": np.int32(width)}
    finished = dataclasses.replace(neurons, max_k=width)
    _, hidden = use(one._replace(dictionary=finished, params=everything), x)
    sites = (one.member.write[0].replace("hook_mlp_out", "mlp.hook_post"),)
    expected = np.maximum(states_at(run, split, one.member, sites), 0)
    np.testing.assert_allclose(hidden, expected, atol=1e-4)
    assert ((use(one, x)[1] > 0).sum(1) <= 3).all()


@pytest.mark.slow
def test_without_step_0_an_untrained_model_is_a_baseline(run, split):
    asked = config(name="last", steps=run.steps[-1:], sparsities=(2.0,), read=(SITE,))
    made = untrained(run, asked)
    (one,) = (b for b in _trained(run, made) if b.name == UNTRAINED)
    assert one.member == made.members[0]._replace(steps=(run.steps[0],))


# Over training -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_checkpoint_is_held_against_the_one_before(run, beaten):
    result = measure_dictionaries(run, beaten)
    later = (result["what"] == "trained") & (result["step"] == run.steps[-1])
    np.testing.assert_array_equal(np.isfinite(result["kept"]), later)
    assert np.isnan(result["agreement"]).all()  # there is only one seed
    drift = result["drift"].sel(member=later.values)
    assert drift.notnull().any() and (np.abs(drift.fillna(0)) <= 1 + 1e-5).all()


def test_equal_dictionaries_keep_all_their_features(run):
    made = untrained(run, config(name="seeds", seeds=2, sparsities=(3.0,)))
    twice = jax.tree.map(lambda leaf: np.repeat(leaf[::2], 2, axis=0), made.params)
    equal = Dictionaries(made.dictionary, twice, made.members, made.config)
    density = xr.Dataset({"density": (("member", "feature"), np.ones((len(made), 24)))})
    found = over_training(equal, density)
    np.testing.assert_allclose(found["agreement"], 1, atol=1e-5)
    assert (found["agreement_null"] < 0.95).all() and "drift" not in found


def test_births_are_first_steps_above_the_threshold():
    f1 = np.array([[0.1, 0.6, 0.9], [0.2, 0.9, 0.1], [0.0, 0.0, 0.0], [np.nan] * 3]).T
    result = xr.Dataset(
        {"f1": (("member", "concept", "value"), f1[:, None])},
        {
            "site": ("member", ["a"] * 3),
            "sparsity": ("member", [4.0] * 3),
            "step": ("member", [0, 10, 20]),
            "concept": ["e2@r1"],
        },
    )
    found = births(result, 0.5).isel(site=0, sparsity=0, concept=0)
    np.testing.assert_array_equal(found["birth"], [10, 10, np.nan, np.nan])
    np.testing.assert_array_equal(found["kept"], [1, 0, np.nan, np.nan])
    np.testing.assert_array_equal(found["standing"].sel(step=10), [1, 1, 0, np.nan])
