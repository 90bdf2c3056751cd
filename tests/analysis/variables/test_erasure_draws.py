"""Erasure of some values at a time: what each draw removes, and which draw a case gets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis.variables import erasure, subspaces
from implicit_reasoning.analysis.variables.controls import MAX_ERASED, N_DRAWS
from tests.compiled import compiled

erased = compiled(lambda eraser, states: eraser(states))
whiten, erase_some = compiled(subspaces.whiten), compiled(subspaces.erase_some)
erase_by_draw, random_of_draws = map(compiled, (erasure._erase_by_draw, erasure._random_of_draws))


@compiled
def of_draw(white, values, classes, drawn):
    among = erasure._among(classes, drawn)
    return subspaces.leace(white, values, among, jnp.ones(len(values)), len(drawn))


@pytest.fixture(scope="module")
def states():
    """Return 900 states of 24 dimensions with codes of 30 classes, which span all dimensions."""
    random = np.random.default_rng(0)
    classes = np.repeat(np.arange(30), 30)
    codes = 2 * random.standard_normal((30, 24))
    noise = random.standard_normal((900, 24)) @ random.standard_normal((24, 24))
    return (codes[classes] + 0.2 * noise).astype(np.float32), classes


@pytest.fixture(scope="module")
def white(states):
    return whiten(states[0], np.ones(900, np.float32))


def projector(states, classes, drawn):
    """Return `W+ P W`, which erasure removes; P spans whitened differences of classes."""
    x = states.astype(np.float64)
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    root, inverse = (vectors * values**power @ vectors.T for power in (0.5, -0.5))
    members = [x[classes == value] for value in drawn]
    centre = np.concatenate(members).mean(0)
    differences = np.stack([own.mean(0) - centre for own in members]) @ inverse
    onto = np.linalg.pinv(differences) @ differences
    return centre, inverse @ onto @ root


def test_a_draw_erases_its_values_and_no_more(states, white):
    values, classes = states
    drawn = np.random.default_rng(1).choice(30, MAX_ERASED, replace=False)
    eraser = of_draw(white, *states, drawn)
    assert eraser.rank == MAX_ERASED - 1
    centre, take = projector(values, classes, drawn)
    np.testing.assert_allclose(eraser.out @ eraser.back, take, atol=2e-3)
    after = erased(eraser, values)
    np.testing.assert_allclose(after, values - (values - centre) @ take, atol=0.02)
    means = np.stack([after[classes == value].mean(0) for value in drawn])
    np.testing.assert_allclose(means - means[:1], 0, atol=5e-3)
    # If all 30 classes are erased at once, nothing is left of a state, whatever it codes.
    whole = of_draw(white, *states, np.arange(30))
    assert whole.rank == 24
    assert erased(whole, values).std(0).max() < 0.02 < after.std(0).max()


def test_each_case_is_edited_by_its_own_draw(states, white):
    values = states[0][:5]
    draws = [np.arange(n, n + MAX_ERASED) for n in range(N_DRAWS)]
    erasers = [of_draw(white, *states, drawn) for drawn in draws]
    stacked = jax.tree.map(lambda *one: np.stack(one), *erasers)
    number = np.array([3, 0, -1, 9, 3])
    found = erase_by_draw(stacked, values, number)
    wanted = [
        value if draw < 0 else erased(erasers[draw], value)
        for draw, value in zip(number, values, strict=True)
    ]
    np.testing.assert_allclose(found, np.stack(wanted), atol=1e-4)


def test_random_directions_of_a_draw_are_as_many_and_its_own(white):
    found = random_of_draws(white, jax.random.key(0))
    assert found.shape == (N_DRAWS, MAX_ERASED - 1, 24)
    for one in found:
        np.testing.assert_allclose(one @ one.T, np.eye(MAX_ERASED - 1), atol=1e-5)
    assert np.linalg.matrix_rank(found[:2].reshape(-1, 24)) == 24
    eraser = erase_some(white, found[0], np.float32(7))
    assert np.linalg.matrix_rank(eraser.out @ eraser.back, tol=1e-3) == 7
