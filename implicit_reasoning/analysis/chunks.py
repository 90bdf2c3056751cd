"""Evaluate examples in chunks, and skip the chunks in which no example counts.

Patching takes most of an instrument's time. The outcomes of most patches count only for queries
that the model answers correctly without a patch. The model at an early checkpoint answers few
queries correctly. Examples that count are therefore moved to the front, and the loop over chunks
stops after the last example that counts. The number of iterations is traced, so a new number does
not cause a recompilation.
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
) -> dict[str, Array]:
    """Compute `outcomes(examples)` in chunks of examples. Chunks bound the memory that is needed.

    Args:
      outcomes: function of a pytree of arrays [example, ...]; returns outcomes [..., example].
      examples: a pytree of arrays [example, ...], with any number of examples.
      counted: whether each example counts; default: all count. The returned outcomes of an example
        that does not count may be 0 instead of the value of `outcomes`.

    Returns:
      The outcomes [..., example] of all examples, in the original order.
    """
    examples = jax.tree.map(jnp.asarray, examples)
    count = jax.tree.leaves(examples)[0].shape[0]
    counted = jnp.ones(count, bool) if counted is None else counted
    size = min(count, _AT_ONCE)
    n_parts = -(-count // size)
    order = jnp.argsort(~counted, stable=True)
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
