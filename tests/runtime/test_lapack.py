"""Stacked matrices are decomposed one after another, with the results of a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.runtime import lapack
from implicit_reasoning.runtime.lapack import one_at_a_time


@pytest.fixture(params=["loop", "batch"])
def faulty(request, monkeypatch):
    """Versions of jaxlib with the fault need a loop. The others do not."""
    monkeypatch.setattr(lapack, "_FAULTY", request.param == "loop")
    return request.param == "loop"


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_results_are_those_of_a_batch(batch, faulty):
    matrices = np.random.default_rng(0).normal(size=(*batch, 5, 4)).astype(np.float32)
    found = jax.jit(lambda x: one_at_a_time(jnp.linalg.qr, x))(matrices)
    for ours, numpys in zip(found, np.linalg.qr(matrices), strict=True):
        np.testing.assert_allclose(np.abs(ours), np.abs(numpys), rtol=1e-4, atol=1e-6)


def test_no_decomposition_has_a_batch(faulty):
    """A batch is what the threads of XLA would wait for. Leading dimensions and vmap make one."""
    stacked = jax.vmap(lambda x: one_at_a_time(jnp.linalg.qr, x))
    lowered = jax.jit(stacked).lower(jnp.ones((7, 3, 5, 4))).as_text()
    assert ("7x3x5x4xf32" in _decomposed(lowered)) == (not faulty)
    assert ("5x4xf32" in _decomposed(lowered)) == faulty


def _decomposed(program: str) -> list[str]:
    """Return the shapes of the matrices that LAPACK decomposes in a program."""
    calls = [line for line in program.splitlines() if "@lapack_sgeqrf" in line]
    return [line.rpartition(": (tensor<")[2].partition(">")[0] for line in calls]


def test_the_gradient_is_that_of_the_decomposition(faulty):
    matrices = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4, 4)), jnp.float32)

    def first(decompose):
        return jax.grad(lambda x: jnp.sum(decompose(x)[0][..., 0, 1] ** 2))(matrices)

    ours = first(lambda x: one_at_a_time(jnp.linalg.qr, x))
    np.testing.assert_allclose(ours, first(jnp.linalg.qr), rtol=1e-5, atol=1e-6)
