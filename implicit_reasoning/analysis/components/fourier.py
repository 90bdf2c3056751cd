"""Fourier components of functions of a residue modulo p.

A function of the residue s = 0, ..., p - 1 is a sum of a constant and of the waves
cos(2 pi k s / p) and sin(2 pi k s / p) with the frequencies k = 1, ..., p // 2. The norm of a
frequency is the norm of its two waves together, so the norm does not depend on the phase.

Source: Nanda et al. 2023, sections 4 and 5.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


@functools.cache
def waves(modulus: int) -> Float[np.ndarray, "frequency wave residue"]:
    """Return the waves of all frequencies as orthonormal rows, in float32.

    The two waves of a frequency are the cosine and the sine. If the modulus is even, the highest
    frequency has no sine, and the row of this sine is 0.

    Args:
      modulus: the number of residues, at least 2.
    """
    angle = 2 * np.pi * np.outer(np.arange(1, modulus // 2 + 1), np.arange(modulus)) / modulus
    rows = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    if modulus % 2 == 0:
        rows[-1, 1] = 0  # without this line, rounding errors would be scaled to norm 1
    norm = np.linalg.norm(rows, axis=-1, keepdims=True)
    return (rows / np.where(norm > 0, norm, 1)).astype(np.float32)


def squared_norms(
    values: Float[Array, "*row residue"],
) -> Float[Array, " frequency"]:
    """Return the sum over all rows of the squared norm of each frequency.

    Args:
      values: functions of the residue, one in each row.
    """
    rows = values.reshape(-1, values.shape[-1])
    coefficients = jnp.einsum("fws,rs->fwr", waves(values.shape[-1]), rows)
    return (coefficients**2).sum((1, 2))


def key_frequencies(norms: Float[Array, " frequency"], share: float) -> Bool[Array, " frequency"]:
    """Choose the fewest frequencies that carry more than a share of the sum of squared norms.

    Args:
      norms: the squared norm of each frequency.
      share: the share, from 0 to 1.
    """
    order = jnp.argsort(-norms, stable=True)
    before = jnp.cumsum(norms[order]) - norms[order]
    chosen = before <= share * norms.sum()
    return jnp.zeros_like(chosen).at[order].set(chosen)


def component(
    values: Float[Array, "residue column"], chosen: Bool[Array, " frequency"]
) -> Float[Array, "residue column"]:
    """Return the part of each column that consists of the waves of the chosen frequencies.

    Args:
      values: functions of the residue, one in each column.
      chosen: the frequencies to keep. The constant is not kept.
    """
    basis = waves(values.shape[0]) * chosen[:, None, None]
    return jnp.einsum("fws,fwc->sc", basis, jnp.einsum("fws,sc->fwc", basis, values))


def gini(values: Float[Array, " value"]) -> Float[Array, ""]:
    """Return the Gini coefficient of non-negative numbers.

    The coefficient is 0 if all numbers are equal, and 1 - 1/n if one of n numbers is positive and
    the others are 0. It is 0 if all numbers are 0.

    Source: Hurley and Rickard 2009, table 1.
    """
    count, total = values.shape[0], values.sum()
    rank = 2 * jnp.arange(1, count + 1) - count - 1
    return (rank * jnp.sort(values)).sum() / (count * jnp.where(total > 0, total, 1))
