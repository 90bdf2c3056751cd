"""Gradient descent that ends when an edit is certain enough; value searches and fine-tuning use it.

Thousands of edits are mapped over, so the number of steps of each edit depends on its own loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

Loss = Callable[[Any], tuple[Array, Array]]
"""Function of the tuned values. It returns the loss to minimize, and the target that ends it."""


def descend(loss: Loss, begin: Any, *, rate: float, steps: int, enough: float) -> Any:
    """Minimize a loss by Adam until a target is at most a number.

    Args:
      loss: function of the tuned values. It returns the loss, and the target, such as -log p(b').
      begin: the first values, a pytree.
      rate: the learning rate.
      steps: maximum number of steps.
      enough: the target at which the descent ends. Values with this target are not changed further.

    Returns:
      The tuned values, a pytree like `begin`.
    """
    optimizer = optax.adam(rate)

    def step(state: _State) -> _State:
        gradient, target = jax.grad(loss, has_aux=True)(state.tuned)
        updates, moments = optimizer.update(gradient, state.moments)
        # A descent that has ended stays as it is while others of the same vmap go on.
        moves = jnp.where(target > enough, 1.0, 0.0)
        tuned = jax.tree.map(lambda leaf, update: leaf + moves * update, state.tuned, updates)
        return _State(state.number + 1, tuned, moments, target)

    def goes_on(state: _State) -> Array:
        return (state.number < steps) & (state.target > enough)

    state = _State(jnp.int32(0), begin, optimizer.init(begin), jnp.float32(jnp.inf))
    return jax.lax.while_loop(goes_on, step, state).tuned


class _State(NamedTuple):
    """State of a descent.

    Attributes:
      number: number of steps so far.
      tuned: the tuned values.
      moments: the moments of Adam.
      target: the target before the last step.
    """

    number: Int[Array, ""]
    tuned: Any
    moments: optax.OptState
    target: Float[Array, ""]
