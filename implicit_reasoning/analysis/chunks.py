"""Examples some at a time, and only those that count: patching is most of an instrument's work.

Most patches are of questions that are answered correctly when nothing is changed. Which these are
depends on the checkpoint; early ones have hardly any. So questions that count are brought to the
front, and the loop over parts ends with them: its length is a traced number, nothing is compiled
anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

_AT_ONCE = 64  # examples: a grid of cells of them stays in a processor's cache, or nearly


def map_in_chunks(
    outcomes: Callable[[Any], dict[str, Array]],
    examples: Any,
    counted: Bool[Array, " example"] | None = None,
) -> dict[str, Array]:
    """`outcomes(examples)`, some examples at a time, so that the memory for a grid is bounded.

    Args:
      outcomes: from a pytree of arrays [example, ...] to outcomes [..., example].
      examples: such a pytree, of any number of examples.
      counted: which examples are asked for; by default all. Of others outcomes may be 0.
    """
    examples = jax.tree.map(jnp.asarray, examples)
    count = jax.tree.leaves(examples)[0].shape[0]
    counted = jnp.ones(count, bool) if counted is None else counted
    size = min(count, _AT_ONCE)
    n_parts = -(-count // size)
    order = jnp.argsort(~counted, stable=True)
    # The last part is filled up with the first examples, and cut off again.
    members = order[jnp.arange(n_parts * size) % count].reshape(n_parts, size)

    def part(number: Array | int) -> dict[str, Array]:
        return outcomes(jax.tree.map(lambda leaf: leaf[members[number]], examples))

    def step(number: Array, found: dict[str, Array]) -> dict[str, Array]:
        return jax.tree.map(lambda all_, new: all_.at[number].set(new), found, part(number))

    shapes = jax.eval_shape(part, 0)
    empty = jax.tree.map(lambda leaf: jnp.zeros((n_parts, *leaf.shape), leaf.dtype), shapes)
    found = jax.lax.fori_loop(0, -(-counted.sum() // size), step, empty)
    place = jnp.argsort(order)  # of each example among the ordered ones

    def joined(outcome: Array) -> Array:
        outcome = jnp.moveaxis(outcome, 0, -2)
        return outcome.reshape(*outcome.shape[:-2], -1)[..., place]

    return {name: joined(outcome) for name, outcome in found.items()}
