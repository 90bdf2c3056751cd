"""Cohesion, alignment, retrieval and pictures agree with loops and explicit distances."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis.claims import Claim
from implicit_reasoning.analysis.facts import fact_rows
from implicit_reasoning.analysis.instrument import NotApplicable
from implicit_reasoning.analysis.reading import geometry
from implicit_reasoning.analysis.reading.attributes import tail_shares
from implicit_reasoning.analysis.reading.geometry import Geometry, mds, pca
from tests.analysis.tiny_states import (
    make_dataset,
    make_model,
    plant,
    random_states,
    run,
    truth_of,
)
from tests.compiled import compiled


@pytest.fixture(scope="module")
def dataset():
    return make_dataset()


@pytest.fixture(scope="module")
def inputs(dataset):
    return Geometry().examples(make_model(dataset), dataset).inputs


def planted_states(dataset, tokens):
    """Return states that have the bridge's code, noise and a common mean at (1, r1)."""
    states = random_states(tokens, 3)
    code = np.random.default_rng(9).normal(size=(dataset.world.n_entities, states.shape[-1]))
    states[1, :, 1] = code[truth_of(dataset, tokens, "e2")] + 0.3 * states[1, :, 1] + 5
    return states


def test_clusters_are_found_and_controls_are_not(monkeypatch, dataset, inputs):
    plant(monkeypatch, geometry, planted_states(dataset, inputs["tokens"]))
    result, traces = run(Geometry(), dataset, n_checkpoints=2)
    assert traces == 1
    there = result.isel(step=0).sel(layer=1, pos="r1")
    retrieval = there["retrieval"].sel(centring="mean removed")
    assert (retrieval.sel(truth="true") > 0.95).all()
    assert (retrieval.sel(truth="shuffled") < 0.3).all()
    cosine = there["cosine"].sel(truth="true")
    others = cosine.sel(centroid="of other bridges")
    assert (others.sel(centring="as they are") > 0.9).all()  # all states point in one direction
    assert (abs(others.sel(centring="mean removed")) < 0.2).all()
    assert (cosine.sel(centroid="without itself", centring="mean removed") > 0.8).all()
    assert Geometry().claims(result.isel(step=0)) == {Claim("decodable", "e2", 1, "r1")}
    names = [figure.name for figure in Geometry().figures(result)]
    assert names == ["geometry", "geometry_retrieval", "geometry_attributes", "geometry_states"]


def test_a_broken_instrument_fails_the_planted_test(monkeypatch, dataset, inputs):
    """Nothing is retrieved if the bridges are those of other states."""
    plant(monkeypatch, geometry, planted_states(dataset, inputs["tokens"]))
    right = geometry._nearness
    monkeypatch.setattr(geometry, "_nearness", lambda x, b, w, bs: right(x, jnp.roll(b, 1), w, bs))
    result, _ = run(Geometry(), dataset)
    assert result["retrieval"].sel(truth="true", layer=1, pos="r1").max() < 0.5


def test_cosines_are_those_of_a_loop():
    random = np.random.default_rng(0)
    states = random.normal(size=(9, 4)).astype(np.float32)
    bridge = np.array([0, 0, 0, 1, 1, 1, 2, 2, 0])
    weight = np.ones(9, np.float32)
    weight[8] = 0  # an OOD state, which is in no centroid
    near = compiled(geometry._nearness)(states, bridge, weight, np.arange(3))

    def cos(x, y):
        return x @ y / np.linalg.norm(x) / np.linalg.norm(y)

    for row in range(9):
        centroids = [states[(bridge == b) & (weight > 0)].mean(0) for b in range(3)]
        rest = (bridge == bridge[row]) & (weight > 0) & (np.arange(9) != row)
        without = cos(states[row], states[rest].mean(0))
        others = [cos(states[row], centroids[b]) for b in range(3) if b != bridge[row]]
        expected = [cos(states[row], centroids[bridge[row]]), without, np.mean(others)]
        np.testing.assert_allclose(near.cosine[:, row], expected, atol=1e-5)
        assert near.retrieved[row] == (without > max(others))


def test_mds_keeps_distances_and_pca_is_that_of_the_svd():
    random = np.random.default_rng(0)
    states = random.normal(size=(12, 7)).astype(np.float32)
    centred = states - states.mean(0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    ours = compiled(pca)(states)
    np.testing.assert_allclose(np.abs(ours), np.abs(left[:, :2] * values[:2]), atol=1e-4)
    # The cosine distances of three directions are distances in a plane, so the picture keeps them.
    three = np.repeat(states[:3], 2, axis=0)
    unit = three / np.linalg.norm(three, axis=1, keepdims=True)
    wanted = 1 - unit @ unit.T
    points = compiled(mds)(three)
    found = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.testing.assert_allclose(found, wanted, atol=2e-3)


def test_attributes_are_tails_among_as_many(dataset, inputs):
    """A lens that ranks the tails of e1 first finds all of them; otherwise it is at chance."""
    tails = inputs["tails"]
    scores = tails[0].astype(np.float32) - np.float32(0.01) * np.arange(tails.shape[-1], dtype="f4")
    share = compiled(tail_shares)(scores, tails)
    np.testing.assert_allclose(share[0], 1)
    expected = (tails[0] & tails[1]).sum(-1) / tails[1].sum(-1)
    assert (share[1] <= 1).all() and (share[1] < share[0]).mean() > 0.5
    assert np.abs(share[1].mean() - expected.mean()) < 0.25
    heads = inputs["tokens"][:, 0]
    for row in (0, 5, 11):
        table = dataset.world.tail[heads[row]]
        assert set(np.flatnonzero(tails[0, row])) == set(table[table >= 0])


def test_a_task_without_e1_or_without_shared_tails_is_refused(dataset):
    other = dataclasses.replace(dataset, positions=("r1", "r2", "x"))
    with pytest.raises(NotApplicable, match="r1, r2, x"):
        Geometry().examples(make_model(other), other)
    facts = fact_rows(dataset, 10_000)
    with pytest.raises(NotApplicable, match="no two facts of the group"):
        geometry._of_common_bridges(facts, np.arange(len(dataset)))
