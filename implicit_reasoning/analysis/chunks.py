"""Evaluate examples in chunks, and skip chunks whose outcomes are not needed.

In patching, most outcomes are needed only for queries that the model answers correctly without a
patch. Early checkpoints answer few queries correctly. Needed examples are therefore moved to the
front, and the loop over chunks stops after the last needed example. The number of iterations is a
traced value, so a change of this number causes no recompilation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

_AT_ONCE = 64  # examples per chunk; a grid of their cells fits, or almost fits, into a CPU cache


def map_in_chunks(
    outcomes: Callable[[Any], dict[str, Array]],
    examples: Any,
    counted: Bool[Array, " example"] | None = None,
    *,
    at_once: int | None = None,
) -> dict[str, Array]:
    """Compute `outcomes(examples)` in chunks of examples, to limit the memory.

    Args:
      outcomes: function that takes a pytree of arrays [example, ...], and returns arrays [...,
        example] by name.
      examples: a pytree of arrays [example, ...], with any number of examples.
      counted: whether the outcomes of each example are needed; default: all are needed. The
        returned outcomes of examples that are not needed can be 0.
      at_once: number of examples in a chunk; default: 64.

    Returns:
      The arrays [..., example] by name. Examples have their original order.
    """
    examples = jax.tree.map(jnp.asarray, examples)
    count = jax.tree.leaves(examples)[0].shape[0]
    counted = jnp.ones(count, bool) if counted is None else counted
    size = min(count, at_once or _AT_ONCE)
    n_parts = -(-count // size)
    order = jnp.argsort(~counted, stable=True)
    outcomes = jax.jit(outcomes)  # traced once, for the shapes and for the loop
    # The last chunk is padded with the first examples. `joined` drops the padding.
    members = order[jnp.arange(n_parts * size) % count].reshape(n_parts, size)

    def part(number: Array | int) -> dict[str, Array]:
        return outcomes(jax.tree.map(lambda leaf: leaf[members[number]], examples))

    def step(number: Array, found: dict[str, Array]) -> dict[str, Array]:
        return jax.tree.map(lambda all_, new: all_.at[number].set(new), found, part(number))

    shapes = jax.eval_shape(part, 0)
    empty = jax.tree.map(lambda leaf: jnp.zeros((n_parts, *leaf.shape), leaf.dtype), shapes)
    found = jax.lax.fori_loop(0, -(-counted.sum() // size), step, empty)
    place = jnp.argsort(order)  # the index in `order` of each example

    def joined(outcome: Array) -> Array:
        outcome = jnp.moveaxis(outcome, 0, -2)
        return outcome.reshape(*outcome.shape[:-2], -1)[..., place]

    return {name: joined(outcome) for name, outcome in found.items()}
