"""Decompositions of stacked matrices that cannot block each other on a CPU.

jaxlib 0.10.0 to 0.11.0 splits a batch of matrices over the threads of XLA, and the thread that
splits it waits for the others. If as many decompositions run at once as there are threads, they
wait forever. On two cores, two independent QR decompositions in one program are enough.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_FAULTY = re.compile(r"0\.(10\.|11\.0)").match(version("jaxlib")) is not None


def one_at_a_time(
    decompose: Callable[[Float[Array, "m n"]], Any], matrices: Float[Array, "*batch m n"]
) -> Any:
    """Decompose matrices one after another, where decomposing them at once can block.

    The matrices can be stacked by leading dimensions or by `jax.vmap`. Derivatives are those of
    `decompose`. A program with derivatives decomposes the whole batch at once.

    Args:
      decompose: a function of one matrix, or of stacked matrices, such as `jnp.linalg.qr`.
      matrices: the matrices.

    Returns:
      What `decompose` returns for all matrices, with the leading dimensions `batch`.
    """
    if not _FAULTY or jax.default_backend() != "cpu":
        return decompose(matrices)

    @jax.custom_jvp
    @jax.custom_batching.sequential_vmap
    def alone(matrix: Float[Array, "m n"]) -> Any:
        return decompose(matrix)

    # `sequential_vmap` has no derivative in reverse mode, so the derivative is that of `decompose`.
    alone.defjvp(lambda primals, tangents: jax.jvp(decompose, primals, tangents))
    stacked = alone
    for _ in matrices.shape[:-2]:
        stacked = jax.vmap(stacked)
    return stacked(matrices)


def triangle(matrix: Float[Array, "*batch m n"]) -> Float[Array, "*batch k n"]:
    """Return the triangular factor of the QR decomposition; k is the smaller of m and n."""
    return jnp.linalg.qr(matrix, mode="r")


def thin_svd(matrix: Float[Array, "*batch m n"]) -> tuple[Array, Array, Array]:
    """Return the k singular vectors and values `(U, S, Vh)`; k is the smaller of m and n."""
    left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    return left, values, right
