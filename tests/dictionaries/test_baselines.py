"""Baselines are what their names say."""

import jax
import jax.numpy as jnp
import numpy as np

from implicit_reasoning.dictionaries.baselines import class_means, k_means, principal_components


def clusters(n=60, seed=0):
    random = np.random.default_rng(seed)
    centres = np.array([[9, 0, 0], [0, 9, 0], [0, 0, 9.0]])
    member = random.integers(0, 3, n)
    states = centres[member] + 0.3 * random.normal(size=(n, 3))
    return jnp.asarray(states, jnp.float32), jnp.asarray(member), centres


def test_k_means_finds_clusters():
    states, member, _ = clusters()
    found = k_means(states, states, 3, jax.random.key(1))
    labels = np.asarray(found.acts).argmax(1)
    pairs = {(int(a), int(b)) for a, b in zip(member, labels, strict=True)}
    assert len(pairs) == 3 and (np.asarray(found.acts).sum(1) == 1).all()
    means = np.stack([np.asarray(states)[member == m].mean(0) for m in range(3)])
    np.testing.assert_allclose(found.out, means[member], atol=1e-4)


def test_principal_components_against_numpy():
    random = np.random.default_rng(0)
    fitted, states = (random.normal(size=(n, 4)).astype(np.float32) + 1 for n in (50, 9))
    mean = fitted.mean(0)
    axes = np.linalg.svd(fitted - mean, full_matrices=False)[2]
    components = (states - mean) @ axes.T
    for k in (1, 3):
        found = principal_components(jnp.asarray(fitted), jnp.asarray(states), k, 4)
        least = np.sort(np.abs(components), axis=1)[:, [-k]]
        kept = np.where(np.abs(components) >= least, components, 0)
        np.testing.assert_allclose(found.out, kept @ axes + mean, atol=1e-4)
        assert ((np.asarray(found.acts) > 0).sum(1) == k).all()


def test_class_means_are_those_of_known_states_only():
    states, member, centres = clusters()
    known = jnp.arange(60) < 40
    found = class_means(states, member, known, 5)  # two values that nobody has
    np.testing.assert_array_equal(np.asarray(found.acts).argmax(1), member)
    mean = np.asarray(states)[np.asarray(known) & (np.asarray(member) == 1)].mean(0)
    np.testing.assert_allclose(
        found.out[member == 1], np.tile(mean, ((member == 1).sum(), 1)), atol=1e-4
    )
    assert np.abs(np.asarray(found.out) - centres[np.asarray(member)]).max() < 0.5
