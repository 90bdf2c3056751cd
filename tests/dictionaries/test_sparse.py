"""Products with active features alone equal products with all features, and so do gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.dictionaries.sparse import Sparse, gather_dot, gather_dot_of, gather_sum


@pytest.fixture
def parts():
    random = np.random.default_rng(0)
    index = np.stack([random.permutation(9)[:3] for _ in range(5)])
    value = random.normal(size=(5, 3)).astype(np.float32)
    x, rows = (random.normal(size=shape).astype(np.float32) for shape in ((5, 4), (9, 4)))
    return jnp.asarray(value), jnp.asarray(index), jnp.asarray(x), jnp.asarray(rows)


def test_the_decoder(parts):
    value, index, x, rows = parts

    def sparse(value, rows):
        return gather_sum(value, index, rows)

    def dense(value, rows):
        return Sparse(value, index).dense(9) @ rows

    np.testing.assert_allclose(sparse(value, rows), dense(value, rows), atol=1e-6)
    pulled = [jax.vjp(f, value, rows)[1](x) for f in (sparse, dense)]
    for ours, theirs in zip(*pulled, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_the_encoder(parts):
    value, index, x, rows = parts

    def sparse(x, rows):
        return gather_dot(x, index, rows)

    def dense(x, rows):
        return jnp.take_along_axis(x @ rows.T, index, axis=1)

    np.testing.assert_allclose(sparse(x, rows), dense(x, rows), atol=1e-6)
    pulled = [jax.vjp(f, x, rows)[1](value) for f in (sparse, dense)]
    for ours, theirs in zip(*pulled, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_what_is_taken_has_the_gradients_of_what_is_computed(parts):
    value, index, x, rows = parts
    taken = jax.vjp(lambda x, rows: gather_dot_of(x, index, rows, x @ rows.T), x, rows)
    computed = jax.vjp(lambda x, rows: gather_dot(x, index, rows), x, rows)
    np.testing.assert_allclose(taken[0], computed[0], atol=1e-6)
    for ours, theirs in zip(taken[1](value), computed[1](value), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_second_derivatives_are_there(parts):
    """Each product is the transpose of the other, so gradients can be differentiated again."""
    value, index, x, rows = parts

    def energy(rows):
        return (jax.grad(lambda v: (gather_sum(v, index, rows) * x).sum())(value) ** 2).sum()

    exact = jax.grad(lambda rows: (jnp.take_along_axis(x @ rows.T, index, 1) ** 2).sum())(rows)
    np.testing.assert_allclose(jax.grad(energy)(rows), exact, rtol=1e-5)
