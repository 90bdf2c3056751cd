"""Decompositions of stacked matrices that cannot block each other on a CPU.

jaxlib 0.10.0 to 0.11.0 splits a batch of matrices over the threads of XLA, and the thread that
splits it waits for the others. If as many decompositions run at once as there are threads, they
wait forever. On two cores, two independent QR decompositions in one program are enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float


def one_at_a_time(
    decompose: Callable[[Float[Array, "m n"]], Any], matrices: Float[Array, "*batch m n"]
) -> Any:
    """Decompose stacked matrices, on a CPU one after another.

    Args:
      decompose: a function of one matrix, or of stacked matrices, such as `jnp.linalg.qr`.
      matrices: the matrices.

    Returns:
      What `decompose` returns for all matrices, with the leading dimensions `batch`.
    """
    batch = matrices.shape[:-2]
    if not batch or jax.default_backend() != "cpu":
        return decompose(matrices)
    found = jax.lax.map(decompose, matrices.reshape(math.prod(batch), *matrices.shape[-2:]))
    return jax.tree.map(lambda leaf: leaf.reshape(*batch, *leaf.shape[1:]), found)
