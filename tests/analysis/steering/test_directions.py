"""Directions have their closed forms on states with a known mean and covariance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis.steering import directions
from implicit_reasoning.analysis.steering.directions import (
    DIRECTIONS,
    Direction,
    FitData,
    class_mean,
    discriminant,
    given,
    logistic_probe,
    ridge_probe,
    unembedding,
)
from implicit_reasoning.analysis.steering.steering import RANDOM, _case_vectors
from implicit_reasoning.analysis.variables.subspaces import class_means
from implicit_reasoning.errors import InputError
from tests.analysis.subjects import random_checkpoints

D, VALUES, EACH = 8, 3, 400
SPREAD = np.diag([4.0, 1, 1, 1, 1, 1, 1, 1])
SPREAD[0, 1] = SPREAD[1, 0] = 1.5
CENTERS = np.array([[0, 2.0], [1, -1], [-1, -1]]) @ np.eye(2, D)


@pytest.fixture(scope="module")
def fitted():
    """Return the vectors of each direction, those of two cases, and the exact class means."""
    subject = random_checkpoints(1)
    rng, values = np.random.default_rng(0), np.repeat(np.arange(VALUES), EACH).astype(np.int32)
    noise = rng.multivariate_normal(np.zeros(D), SPREAD, len(values))
    states = (CENTERS[values] + noise + 5).astype(np.float32)
    # A value without states has no vector.
    n_values, empty = VALUES + 1, jnp.zeros(1, jnp.int32)
    tied = random_checkpoints(1, tied=True)
    chosen = [class_mean, discriminant, ridge_probe, logistic_probe, unembedding]
    own = given("own", np.eye(n_values, D, dtype=np.float32))

    @jax.jit
    def fit(params, of_tied, states):
        weight = jnp.ones(len(states))
        data = FitData(
            states=states,
            values=jnp.asarray(values),
            weight=weight,
            means=class_means(states, jnp.asarray(values), weight, n_values),
            n_values=n_values,
            model=subject.model,
            params=params,
            layer=1,
            resid=states[:, None],
            place=jnp.array(0),
            base=empty,
            source=empty,
            expected=empty,
            key=jax.random.key(0),
        )
        old, new, wrong = jnp.array([0, 1]), jnp.array([1, 3]), jnp.array([2, -1])
        cases = {"old": old, "new": new, "wrong": wrong}
        alike = (Direction("class mean", class_mean), own)
        vectors = {one.__name__: one(data) for one in chosen}
        vectors["tied"] = unembedding(data._replace(model=tied.model, params=of_tied))
        return (
            vectors,
            _case_vectors(alike, data, cases),
            data.means.mean,
        )

    both = subject.checkpoints[0], tied.checkpoints[0]
    return jax.device_get(fit(*both, states)), both


def cosine(a, b):
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def test_vectors_have_their_closed_forms(fitted):
    (vectors, _, means), (params, of_tied) = fitted
    centred = means[:VALUES] - means[:VALUES].mean(0)
    np.testing.assert_allclose(vectors["class_mean"][:VALUES], centred, atol=1e-5)
    # Shrinkage adds a tenth of the mean variance to every direction.
    within = 0.9 * SPREAD + 0.1 * np.trace(SPREAD) / D * np.eye(D)
    lda = vectors["discriminant"][:VALUES]
    assert (cosine(lda, CENTERS @ np.linalg.inv(within)) > 0.98).all()
    # Without its covariance, the direction would be that of the class mean.
    assert cosine(centred, lda).min() < 0.9
    total = SPREAD + np.cov(CENTERS.T, bias=True)
    assert (cosine(vectors["ridge_probe"][:VALUES], CENTERS @ np.linalg.inv(total)) > 0.97).all()
    logistic = vectors["logistic_probe"][:VALUES]
    assert (cosine(logistic, CENTERS @ np.linalg.inv(SPREAD)) > 0.95).all()
    assert "W_U" not in of_tied.get("unembed", {})
    by_hand = {"unembedding": np.asarray(params["unembed"]["W_U"]).T}
    by_hand["tied"] = np.asarray(of_tied["embed"]["W_E"])
    for name, columns in by_hand.items():
        wanted = columns[:VALUES] - columns[:VALUES].mean(0)
        np.testing.assert_allclose(vectors[name][:VALUES], wanted, atol=1e-5)
    for found in vectors.values():
        np.testing.assert_array_equal(found[VALUES], 0)


def test_all_vectors_of_a_case_have_the_norm_of_the_difference_of_means(fitted):
    (_, cases, means), _ = fitted
    distance = np.linalg.norm(means[1] - means[0])
    np.testing.assert_allclose(cases.distance[0], distance, rtol=1e-5)
    norms = np.linalg.norm(cases.vector, axis=-1)[..., 0]  # class mean, own, random, wrong bridge
    np.testing.assert_allclose(norms, distance, rtol=1e-5)
    np.testing.assert_allclose(cases.vector[0, 1, 0], means[1] - means[0], atol=1e-5)
    third = cases.vector[3, 1, 0]
    np.testing.assert_allclose(cosine(third, means[2] - means[0]), 1, atol=1e-5)
    add, replace = cases.vector[1, :, 0] / distance
    np.testing.assert_allclose(add, np.eye(D)[1], atol=1e-5)
    np.testing.assert_allclose(replace, (np.eye(D)[1] - np.eye(D)[0]) / 2**0.5, atol=1e-5)
    # The second case has a value without states, and no third value.
    assert cases.there[..., 0].all() and not cases.there[..., 1].any()
    np.testing.assert_array_equal(cases.vector[:, :, 1], 0)


def test_given_vectors_are_checked_and_are_part_of_the_options():
    one, other = (given("sae", np.full((3, 2), x, np.float32)) for x in (1, 2))
    assert one.identity()["name"] == "sae" and one.identity() != other.identity()
    assert all(direction.identity()["source"] == "" for direction in DIRECTIONS)
    assert Direction("own", class_mean).identity()["source"]
    with pytest.raises(InputError, match=r"shape \[value, d_model\]; got an array of shape \(3,\)"):
        given("sae", np.zeros(3))
    with pytest.raises(InputError, match="finite"):
        given("sae", np.full((3, 2), np.nan))
    assert RANDOM not in {direction.name for direction in DIRECTIONS}
    assert directions.random not in {direction.fit for direction in DIRECTIONS}
