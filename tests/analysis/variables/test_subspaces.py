"""Class means, swaps and erasure agree with closed forms and least squares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis.facts import first_occurrences
from implicit_reasoning.analysis.variables import subspaces


@pytest.fixture(scope="module")
def coded():
    """Return 600 states of 12 dimensions: a code of 5 classes, and correlated noise."""
    rng = np.random.default_rng(0)
    classes = rng.integers(5, size=600)
    codes = rng.standard_normal((5, 12)) * ([2.0] * 4 + [0.0] * 8)
    noise = rng.standard_normal((600, 12)) @ rng.standard_normal((12, 12))
    states = (codes[classes] + 0.3 * noise).astype(np.float32)
    return jnp.asarray(states), jnp.asarray(classes), jnp.ones(600)


def decoded(states, classes):
    """Return the in-sample accuracy of the best least-squares classifier.

    The cutoff ignores directions that contain only rounding errors.
    """
    x = np.column_stack([np.asarray(states, np.float64), np.ones(len(states))])
    target = np.eye(5)[np.asarray(classes)]
    return float(
        ((x @ np.linalg.lstsq(x, target, rcond=1e-5)[0]).argmax(1) == np.asarray(classes)).mean()
    )


def test_class_means_are_weighted_and_leave_out_what_has_no_class():
    states = jnp.asarray([[1.0, 0.0], [3.0, 0.0], [100.0, 0.0], [0.0, 5.0], [7.0, 7.0]])
    means = subspaces.class_means(
        states, jnp.asarray([0, 0, 0, 2, -1]), jnp.asarray([1.0, 1, 0, 1, 1]), 3
    )
    np.testing.assert_allclose(means.mean, [[2, 0], [0, 0], [0, 5]])
    np.testing.assert_allclose(means.size, [2, 0, 1])


def test_a_swap_moves_one_class_onto_another(coded):
    states, classes, weight = coded
    means = subspaces.class_means(states, classes, weight, 5)
    moved = subspaces.swap(states, means, classes, jnp.zeros_like(classes))
    after = subspaces.class_means(moved, classes, weight, 5)
    np.testing.assert_allclose(
        after.mean, np.broadcast_to(means.mean[0], after.mean.shape), atol=1e-4
    )
    kept = subspaces.swap(states, means, classes, classes)
    np.testing.assert_allclose(kept, states, atol=1e-5)


def test_the_basis_spans_the_differences_of_class_means(coded):
    states, classes, weight = coded
    means = subspaces.class_means(states, classes, weight, 7)  # two classes are empty
    basis = subspaces.basis(means, 6)
    np.testing.assert_allclose(basis.T @ basis, np.diag([1.0] * 4 + [0, 0]), atol=1e-5)
    means, basis = np.asarray(means.mean), np.asarray(basis)
    differences = means[:5] - means[0]
    np.testing.assert_allclose(differences @ basis @ basis.T, differences, atol=1e-3)


def test_whitening_whitens_within_the_span(coded):
    states, _, weight = coded
    flat = states.at[:, 3].set(states[:, 2])  # a singular covariance
    white = subspaces.whiten(flat, weight)
    spread = jnp.cov((flat - white.mean[None]) @ white.inverse, rowvar=False, bias=True)
    np.testing.assert_allclose(spread, white.inverse @ white.root, atol=2e-3)
    assert np.linalg.matrix_rank(np.asarray(spread), tol=0.1) == 11


def test_after_erasure_no_linear_reader_beats_chance(coded):
    states, classes, weight = coded
    eraser = subspaces.leace(subspaces.whiten(states, weight), states, classes, weight, 5)
    assert eraser.rank == 4
    chance = np.bincount(classes).max() / 600
    assert decoded(states, classes) > 0.9
    assert decoded(eraser(states), classes) <= chance + 1e-9
    means = subspaces.class_means(eraser(states), classes, weight, 5).mean
    np.testing.assert_allclose(means - means[:1], 0, atol=1e-4)
    np.testing.assert_allclose(eraser(eraser(states)), eraser(states), atol=1e-4)


def test_no_affine_map_that_erases_changes_less(coded):
    """The closed form is the optimum of its own problem (Belrose et al., theorem 4.2).

    A map A erases if A @ covariance(x, z) = 0. The map nearest to x in mean square is the solution
    of least squares with that constraint. It is solved here in other coordinates.
    """
    states, classes, weight = coded
    eraser = subspaces.leace(subspaces.whiten(states, weight), states, classes, weight, 5)
    x = np.asarray(states, np.float64)
    x = x - x.mean(0)
    z = np.eye(5)[np.asarray(classes)]
    cross = x.T @ (z - z.mean(0)) / len(x)
    covariance = x.T @ x / len(x)
    # Minimizing tr((A - I) C (A - I)') with A K = 0 gives A = I - K (K' C^-1 K)^+ K' C^-1.
    inverse = np.linalg.inv(covariance)
    wanted = np.eye(12) - cross @ np.linalg.pinv(cross.T @ inverse @ cross) @ cross.T @ inverse
    np.testing.assert_allclose(
        np.eye(12) - np.asarray(eraser.out @ eraser.back).T, wanted, atol=2e-3
    )
    change = float(((eraser(states) - states) ** 2).sum(-1).mean())
    orthogonal = subspaces.basis(subspaces.class_means(states, classes, weight, 5), 4)
    centred = states - states.mean(0)[None]
    cruder = float(((centred @ orthogonal) ** 2).sum(-1).mean())
    assert change < cruder


def test_a_random_eraser_has_the_rank_and_leaves_the_code(coded):
    states, classes, weight = coded
    white = subspaces.whiten(states, weight)
    directions = subspaces.random_directions(white, jax.random.key(1), 12)
    eraser = subspaces.erase_some(white, directions, jnp.asarray(3.0))
    assert np.linalg.matrix_rank(np.asarray(eraser.out @ eraser.back), tol=1e-3) == 3
    np.testing.assert_allclose(eraser(eraser(states)), eraser(states), atol=1e-4)
    assert decoded(eraser(states), classes) > 0.6


@pytest.mark.parametrize("d_model", [8, 31, 40])
def test_a_random_bottleneck_is_as_wide_as_the_one_it_is_like(d_model):
    """A model may have fewer dimensions than a bottleneck has columns."""

    @jax.jit
    def directions(centre, columns):
        like = subspaces.Bottleneck(centre, columns)
        return subspaces.random_bottleneck(like, jax.random.key(0)).directions

    like = np.eye(d_model, 32, dtype=np.float32)  # columns of 0 beyond d_model
    found = np.asarray(directions(np.zeros(d_model, np.float32), like))
    assert found.shape == like.shape
    np.testing.assert_allclose(found.T @ found, like.T @ like, atol=1e-5)
    assert np.abs(found - like).max() > 0.1


def test_the_nearest_mean_is_of_a_class_that_there_is():
    means = subspaces.ClassMeans(jnp.asarray([[0.0, 0], [4, 0], [9, 9]]), jnp.asarray([1.0, 1, 0]))
    near = subspaces.nearest_mean(jnp.asarray([[1.0, 0], [3, 1], [9, 9]]), means)
    np.testing.assert_array_equal(near, [0, 1, 1])


def test_copies_of_a_state_weigh_nothing():
    keys = np.array([[7, 7, 3], [1, 2, 3]])
    np.testing.assert_array_equal(first_occurrences(keys), [[1, 0, 1], [1, 1, 1]])
