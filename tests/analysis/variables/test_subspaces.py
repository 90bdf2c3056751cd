"""Class means, swaps and erasure agree with closed forms and least squares."""

import jax
import numpy as np
import pytest

from implicit_reasoning.analysis.facts import first_occurrences
from implicit_reasoning.analysis.variables import subspaces
from tests.compiled import compiled

class_means = compiled(subspaces.class_means, 3)
swap, whiten = compiled(subspaces.swap), compiled(subspaces.whiten)
basis, leace = compiled(subspaces.basis, 1), compiled(subspaces.leace, 4)
random_directions = compiled(subspaces.random_directions, 2)
erase_some, nearest_mean = compiled(subspaces.erase_some), compiled(subspaces.nearest_mean)
erased = compiled(lambda eraser, states: eraser(states))


@pytest.fixture(scope="module")
def coded():
    """Return 600 states of 12 dimensions: a code of 5 classes, and correlated noise."""
    rng = np.random.default_rng(0)
    classes = rng.integers(5, size=600)
    codes = rng.standard_normal((5, 12)) * ([2.0] * 4 + [0.0] * 8)
    noise = rng.standard_normal((600, 12)) @ rng.standard_normal((12, 12))
    states = (codes[classes] + 0.3 * noise).astype(np.float32)
    return states, classes, np.ones(600, np.float32)


def decoded(states, classes):
    """Return the in-sample accuracy of the best least-squares classifier.

    The cutoff ignores directions that contain only rounding errors.
    """
    x = np.column_stack([np.asarray(states, np.float64), np.ones(len(states))])
    target = np.eye(5)[classes]
    return float(((x @ np.linalg.lstsq(x, target, rcond=1e-5)[0]).argmax(1) == classes).mean())


def test_class_means_are_weighted_and_leave_out_what_has_no_class():
    states = np.array([[1, 0], [3, 0], [100, 0], [0, 5], [7, 7]], np.float32)
    means = class_means(
        states, np.array([0, 0, 0, 2, -1]), np.array([1, 1, 0, 1, 1], np.float32), 3
    )
    np.testing.assert_allclose(means.mean, [[2, 0], [0, 0], [0, 5]])
    np.testing.assert_allclose(means.size, [2, 0, 1])


def test_a_swap_moves_one_class_onto_another(coded):
    states, classes, weight = coded
    means = class_means(states, classes, weight, 5)
    moved = swap(states, means, classes, np.zeros_like(classes))
    after = class_means(moved, classes, weight, 5)
    np.testing.assert_allclose(
        after.mean, np.broadcast_to(means.mean[0], after.mean.shape), atol=1e-4
    )
    kept = swap(states, means, classes, classes)
    np.testing.assert_allclose(kept, states, atol=1e-5)


def test_the_basis_spans_the_differences_of_class_means(coded):
    states, classes, weight = coded
    means = class_means(states, classes, weight, 7)  # two classes are empty
    spanning = basis(means, 6)
    np.testing.assert_allclose(spanning.T @ spanning, np.diag([1.0] * 4 + [0, 0]), atol=1e-5)
    differences = means.mean[:5] - means.mean[0]
    np.testing.assert_allclose(differences @ spanning @ spanning.T, differences, atol=1e-3)


def test_whitening_whitens_within_the_span(coded):
    states, _, weight = coded
    flat = states.copy()
    flat[:, 3] = states[:, 2]  # a singular covariance
    white = whiten(flat, weight)
    spread = np.cov((flat - white.mean[None]) @ white.inverse, rowvar=False, bias=True)
    np.testing.assert_allclose(spread, white.inverse @ white.root, atol=2e-3)
    assert np.linalg.matrix_rank(spread, tol=0.1) == 11


def test_after_erasure_no_linear_reader_beats_chance(coded):
    states, classes, weight = coded
    eraser = leace(whiten(states, weight), states, classes, weight, 5)
    assert eraser.rank == 4
    chance = np.bincount(classes).max() / 600
    assert decoded(states, classes) > 0.9
    assert decoded(erased(eraser, states), classes) <= chance + 1e-9
    means = class_means(erased(eraser, states), classes, weight, 5).mean
    np.testing.assert_allclose(means - means[:1], 0, atol=1e-4)
    np.testing.assert_allclose(
        erased(eraser, erased(eraser, states)), erased(eraser, states), atol=1e-4
    )


def test_no_affine_map_that_erases_changes_less(coded):
    """The closed form is the optimum of its own problem (Belrose et al., theorem 4.2).

    A map A erases if A @ covariance(x, z) = 0. The map nearest to x in mean square is the solution
    of least squares with that constraint. It is solved here in other coordinates.
    """
    states, classes, weight = coded
    eraser = leace(whiten(states, weight), states, classes, weight, 5)
    x = np.asarray(states, np.float64)
    x = x - x.mean(0)
    z = np.eye(5)[classes]
    cross = x.T @ (z - z.mean(0)) / len(x)
    covariance = x.T @ x / len(x)
    # Minimizing tr((A - I) C (A - I)') with A K = 0 gives A = I - K (K' C^-1 K)^+ K' C^-1.
    inverse = np.linalg.inv(covariance)
    wanted = np.eye(12) - cross @ np.linalg.pinv(cross.T @ inverse @ cross) @ cross.T @ inverse
    np.testing.assert_allclose(np.eye(12) - (eraser.out @ eraser.back).T, wanted, atol=2e-3)
    change = float(((erased(eraser, states) - states) ** 2).sum(-1).mean())
    orthogonal = basis(class_means(states, classes, weight, 5), 4)
    centred = states - states.mean(0)[None]
    cruder = float(((centred @ orthogonal) ** 2).sum(-1).mean())
    assert change < cruder


def test_a_random_eraser_has_the_rank_and_leaves_the_code(coded):
    states, classes, weight = coded
    white = whiten(states, weight)
    directions = random_directions(white, jax.random.key(1), 12)
    eraser = erase_some(white, directions, np.float32(3))
    assert np.linalg.matrix_rank((eraser.out @ eraser.back), tol=1e-3) == 3
    np.testing.assert_allclose(
        erased(eraser, erased(eraser, states)), erased(eraser, states), atol=1e-4
    )
    assert decoded(erased(eraser, states), classes) > 0.6


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
    means = subspaces.ClassMeans(
        np.array([[0, 0], [4, 0], [9, 9]], np.float32), np.array([1, 1, 0], np.float32)
    )
    near = nearest_mean(np.array([[1, 0], [3, 1], [9, 9]], np.float32), means)
    np.testing.assert_array_equal(near, [0, 1, 1])


def test_copies_of_a_state_weigh_nothing():
    keys = np.array([[7, 7, 3], [1, 2, 3]])
    np.testing.assert_array_equal(first_occurrences(keys), [[1, 0, 1], [1, 1, 1]])
