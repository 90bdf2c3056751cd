"""Compute matrix products that use only the k active features of each input.

A dense decoder multiplies the rows of all d_sae features, although only k activations are nonzero.
The functions in this module gather the decoder rows of the active features, and scatter gradients
to these rows only. A product therefore takes `2 * k * d_out` FLOPs per input instead of `2 * d_sae
* d_out`. The backward pass of `gather_sum` uses `gather_dot`, and the backward pass of `gather_dot`
uses `gather_sum`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Sparse(NamedTuple):
    """Activations and indices of k features per input.

    The activations of all remaining features are 0.
    """

    values: Float[Array, "batch k"]
    indices: Int[Array, "batch k"]

    def dense(self, d_sae: int) -> Float[Array, "batch {d_sae}"]:
        """Return the activations of all features as a dense array.

        The k indices of an input must be distinct.
        """
        rows = jnp.arange(len(self.indices))[:, None]
        zeros = jnp.zeros((len(self.indices), d_sae), self.values.dtype)
        return zeros.at[rows, self.indices].set(self.values, unique_indices=True)


@jax.custom_vjp
def gather_sum(
    value: Float[Array, "batch k"], index: Int[Array, "batch k"], rows: Float[Array, "row width"]
) -> Float[Array, "batch width"]:
    """Compute a decoder's output, `sum_k value[b, k] * rows[index[b, k]]` for input b."""
    start = jnp.zeros((len(index), rows.shape[1]), rows.dtype)

    def add(total: Array, one: tuple[Array, Array]) -> tuple[Array, None]:
        weight, row = one
        return total + weight[:, None] * rows[row], None

    return jax.lax.scan(add, start, (value.T, index.T))[0]


@jax.custom_vjp
def gather_dot(
    x: Float[Array, "batch width"], index: Int[Array, "batch k"], rows: Float[Array, "row width"]
) -> Float[Array, "batch k"]:
    """Compute pre-activations of selected features, `x[b] @ rows[index[b, k]]` for input b."""
    found: Array = jax.lax.map(lambda row: (x * rows[row]).sum(-1), index.T)
    return found.T


@jax.custom_vjp
def gather_dot_of(
    x: Float[Array, "batch width"],
    index: Int[Array, "batch k"],
    rows: Float[Array, "row width"],
    dense: Float[Array, "batch row"],
) -> Float[Array, "batch k"]:
    """Return `gather_dot(x, index, rows)`, read from the precomputed product `dense`.

    `dense` must equal `x @ rows.T`. Gradients flow to `x` and `rows` as in `gather_dot`, but not to
    `dense`.
    """
    return jnp.take_along_axis(dense, index, axis=1)


def scatter_sum(
    value: Float[Array, "batch k"],
    index: Int[Array, "batch k"],
    x: Float[Array, "batch width"],
    n_rows: int,
) -> Float[Array, "{n_rows} width"]:
    """Compute an array in which row r sums `value[b, k] * x[b]` over `index[b, k] == r`."""
    start = jnp.zeros((n_rows, x.shape[1]), x.dtype)

    def add(total: Array, one: tuple[Array, Array]) -> tuple[Array, None]:
        weight, row = one
        return total.at[row].add(weight[:, None] * x), None

    return jax.lax.scan(add, start, (value.T, index.T))[0]


Saved = tuple[Array, Array, Array]


def _sum_forward(value: Array, index: Array, rows: Array) -> tuple[Array, Saved]:
    return gather_sum(value, index, rows), (value, index, rows)


def _sum_backward(saved: Saved, grad: Array) -> tuple[Array, None, Array]:
    value, index, rows = saved
    return gather_dot(grad, index, rows), None, scatter_sum(value, index, grad, len(rows))


def _dot_forward(x: Array, index: Array, rows: Array) -> tuple[Array, Saved]:
    return gather_dot(x, index, rows), (x, index, rows)


def _dot_backward(saved: Saved, grad: Array) -> tuple[Array, None, Array]:
    x, index, rows = saved
    return gather_sum(grad, index, rows), None, scatter_sum(grad, index, x, len(rows))


def _taken_forward(x: Array, index: Array, rows: Array, dense: Array) -> tuple[Array, Saved]:
    return gather_dot_of(x, index, rows, dense), (x, index, rows)


def _taken_backward(saved: Saved, grad: Array) -> tuple[Array, None, Array, None]:
    return (*_dot_backward(saved, grad), None)


gather_dot_of.defvjp(_taken_forward, _taken_backward)
gather_sum.defvjp(_sum_forward, _sum_backward)
gather_dot.defvjp(_dot_forward, _dot_backward)
