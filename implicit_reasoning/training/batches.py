"""Selection of the training rows of a batch, as a pure function of key, step and row count.

The selection has no state, so a resumed run needs no data loader and no saved data position. The
row count is traced, so trials that are trained together under `vmap` may have different row counts.
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
    """Return the indices of the training rows in one batch.

    Args:
      key: the random key for the order of the data.
      step: the number of updates before this batch.
      n_rows: the number of training rows.
      batch_size: the number of rows in a batch.
      order: `replacement` draws each row independently. `epochs` visits every row once per epoch,
        in a new order for each epoch. The last batch of an epoch is filled up with rows of the next
        epoch. (In the published code, the last batch is shorter.)

    Returns:
      Row indices in `[0, n_rows)`, int32 `[batch]`.
    """
    if order == "replacement":
        return jax.random.randint(jax.random.fold_in(key, step), (batch_size,), 0, n_rows)
    return _epochs(key, step, n_rows, batch_size)


def check_order(order: str, batch_size: int, n_rows: int) -> None:
    """Check that `rows_of_step` supports an order of the rows for these sizes.

    Raises:
      InputError: the order is unknown, or the order `epochs` would overflow 32-bit integers.
    """
    if order not in ORDERS:
        raise InputError(f"order is {order!r}; it must be one of {', '.join(map(repr, ORDERS))}")
    if order == "epochs" and batch_size * (n_rows + 1) >= 2**32:
        raise InputError(
            f"batch_size is {batch_size:,} and there are {n_rows:,} training rows, but order "
            "'epochs' requires batch_size * (rows + 1) < 2**32; use a smaller batch_size or order "
            "'replacement'"
        )


def _epochs(key: Array, step: Array, n_rows: Array | np.ndarray, batch_size: int) -> Array:
    n = jnp.uint32(n_rows)
    # Decompose step * batch_size + i into epoch * n + index. The product step * batch_size is not
    # computed, because it overflows in long runs.
    laps, rest = jnp.uint32(step) // n, jnp.uint32(step) % n
    offset = rest * jnp.uint32(batch_size) + jnp.arange(batch_size, dtype=jnp.uint32)
    epoch = laps * jnp.uint32(batch_size) + offset // n
    keys = jax.vmap(lambda e: jax.random.bits(jax.random.fold_in(key, e), (_ROUNDS,)))(epoch)
    return jax.vmap(permuted, (0, 0, None))(keys, offset % n, n).astype(jnp.int32)


def permuted(
    round_keys: UInt32[Array, " rounds"], index: UInt32[Array, ""], n: UInt32[Array, ""]
) -> UInt32[Array, ""]:
    """Map `index` through a keyed pseudo-random permutation of 0..n-1, without a table.

    A Feistel network permutes 0..m-1, where m is the smallest power of four with m >= n. The
    network is applied until the result is below n ("cycle walking", Black & Rogaway 2002). The
    result is a permutation of 0..n-1. On average, cycle walking needs at most four applications.

    Args:
      round_keys: one random key for each round of the network, uint32 `[rounds]`.
      index: the number to map, in `[0, n)`.
      n: the size of the permutation.
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
    """Hash 32 bits; a change of one input bit changes half of the output bits on average."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15)) * jnp.uint32(0x735A2D97)
    return x ^ (x >> 15)
