"""Stacked matrices are decomposed one after another, with the results of a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.runtime.lapack import one_at_a_time


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_results_are_those_of_a_batch(batch):
    matrices = np.random.default_rng(0).normal(size=(*batch, 5, 4)).astype(np.float32)
    found = jax.jit(lambda x: one_at_a_time(jnp.linalg.qr, x))(matrices)
    for ours, numpys in zip(found, np.linalg.qr(matrices), strict=True):
        np.testing.assert_allclose(np.abs(ours), np.abs(numpys), rtol=1e-4, atol=1e-6)


def test_no_decomposition_has_a_batch():
    """A batch is what the threads of XLA would wait for."""
    shapes = []

    def decompose(matrix):
        shapes.append(matrix.shape)
        return matrix.sum()

    assert one_at_a_time(decompose, jnp.ones((2, 3, 5, 4))).shape == (2, 3)
    assert set(shapes) == {(5, 4)}
