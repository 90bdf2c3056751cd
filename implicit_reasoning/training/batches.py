"""Which rows a step sees: a pure function of (key, step, number of rows), so nothing is stored.

A run that resumes, or a population whose trials have different numbers of rows, needs no data
loader and no position in one. The number of rows is traced: it may differ under `vmap`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, UInt32

from implicit_reasoning.errors import InputError

ORDERS = ("replacement", "epochs")
_ROUNDS = 6


def rows_of_step(
    key: Key[Array, ""],
    step: Int[Array, ""],
    n_rows: Int[Array | np.ndarray, ""],
    *,
    batch_size: int,
    order: str,
) -> Int[Array, " batch"]:
    """Row numbers of one batch.

    Args:
      key: of the data stream.
      step: number of the update.
      n_rows: rows there are.
      batch_size: rows of a batch.
      order: `replacement` draws each row independently; `epochs` visits every row once in a fresh
        order before any row twice, as the published code shuffles (an epoch's last batch is filled
        up from the next epoch, where theirs is short).
    """
    if order == "replacement":
        return jax.random.randint(jax.random.fold_in(key, step), (batch_size,), 0, n_rows)
    return _epochs(key, step, n_rows, batch_size)


def check_order(order: str, batch_size: int, n_rows: int) -> None:
    """Raise an `InputError` for an unknown order, or one whose arithmetic would overflow."""
    if order not in ORDERS:
        raise InputError(f"order is {order!r}; it must be one of {', '.join(map(repr, ORDERS))}")
    if order == "epochs" and batch_size * (n_rows + 1) >= 2**32:
        raise InputError(
            f"order 'epochs' counts in 32 bits: batch_size * rows is {batch_size * n_rows:,}, "
            "which must stay below 2**32; use a smaller batch or order 'replacement'"
        )


def _epochs(key: Array, step: Array, n_rows: Array | np.ndarray, batch_size: int) -> Array:
    n = jnp.uint32(n_rows)
    # position = step * batch_size + i = epoch * n + index, without forming the first product,
    # which overflows in long runs.
    laps, rest = jnp.uint32(step) // n, jnp.uint32(step) % n
    offset = rest * jnp.uint32(batch_size) + jnp.arange(batch_size, dtype=jnp.uint32)
    epoch = laps * jnp.uint32(batch_size) + offset // n
    keys = jax.vmap(lambda e: jax.random.bits(jax.random.fold_in(key, e), (_ROUNDS,)))(epoch)
    return jax.vmap(permuted, (0, 0, None))(keys, offset % n, n).astype(jnp.int32)


def permuted(
    round_keys: UInt32[Array, " rounds"], index: UInt32[Array, ""], n: UInt32[Array, ""]
) -> UInt32[Array, ""]:
    """Where a keyed pseudo-random permutation of 0..n-1 sends `index`, without making the table.

    A Feistel network permutes the smallest square of a power of two that holds n; following its
    cycle until it is back below n makes it a permutation of 0..n-1 (Black & Rogaway 2002, "cycle
    walking"; at most four steps on average).
    """
    bits = 32 - jax.lax.clz(jnp.maximum(n - 1, 1))
    half = (bits + 1) // 2
    low_mask = (jnp.uint32(1) << half) - 1

    def once(x: Array) -> Array:
        left, right = x >> half, x & low_mask
        for r in range(_ROUNDS):
            left, right = right, left ^ (_mix(right ^ round_keys[r]) & low_mask)
        return (left << half) | right

    return jax.lax.while_loop(lambda x: x >= n, once, once(index))


def _mix(x: Array) -> Array:
    """A 32-bit finaliser: every bit that goes in moves half the bits that come out."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15)) * jnp.uint32(0x735A2D97)
    return x ^ (x >> 15)
