"""Products with active features alone equal products with all features, and so do gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.dictionaries.sparse import Sparse, gather_dot, gather_dot_of, gather_sum
from tests.compiled import compiled


@pytest.fixture
def parts():
    random = np.random.default_rng(0)
    index = np.stack([random.permutation(9)[:3] for _ in range(5)])
    value = random.normal(size=(5, 3)).astype(np.float32)
    x, rows = (random.normal(size=shape).astype(np.float32) for shape in ((5, 4), (9, 4)))
    return jnp.asarray(value), jnp.asarray(index), jnp.asarray(x), jnp.asarray(rows)


def pulled(function, one, other, cotangent):
    """Return the value of a function of two arrays, and the cotangents of the arrays."""

    def both(one, other, cotangent):
        value, pull = jax.vjp(function, one, other)
        return value, *pull(cotangent)

    return compiled(both)(one, other, cotangent)


def assert_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_the_decoder(parts):
    value, index, x, rows = parts

    def sparse(value, rows):
        return gather_sum(value, index, rows)

    def dense(value, rows):
        return Sparse(value, index).dense(9) @ rows

    assert_same(pulled(sparse, value, rows, x), pulled(dense, value, rows, x))


def test_the_encoder(parts):
    value, index, x, rows = parts

    def sparse(x, rows):
        return gather_dot(x, index, rows)

    def dense(x, rows):
        return jnp.take_along_axis(x @ rows.T, index, axis=1)

    assert_same(pulled(sparse, x, rows, value), pulled(dense, x, rows, value))


def test_what_is_taken_has_the_gradients_of_what_is_computed(parts):
    value, index, x, rows = parts

    def taken(x, rows):
        return gather_dot_of(x, index, rows, x @ rows.T)

    def computed(x, rows):
        return gather_dot(x, index, rows)

    assert_same(pulled(taken, x, rows, value), pulled(computed, x, rows, value))


def test_second_derivatives_are_there(parts):
    """Each product is the transpose of the other, so gradients can be differentiated again."""
    value, index, x, rows = parts

    def energy(rows):
        return (jax.grad(lambda v: (gather_sum(v, index, rows) * x).sum())(value) ** 2).sum()

    def plain(rows):
        return (jnp.take_along_axis(x @ rows.T, index, 1) ** 2).sum()

    found, exact = (compiled(jax.grad(f))(rows) for f in (energy, plain))
    np.testing.assert_allclose(found, exact, rtol=1e-5)
