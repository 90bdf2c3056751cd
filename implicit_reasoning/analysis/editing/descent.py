"""Gradient descent that ends when an edit is certain enough; value searches and fine-tuning use it.

The number of steps of each descent depends on its own loss. In a trained model, half of the value
searches end after ten steps, and a third of them never do. `descend_many` therefore gives the place
of a descent that has ended to the next one. Descents in fixed groups would wait for the longest one
of each group.
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
    descent = _Descent(rate, steps, enough)

    def step(state: _State) -> _State:
        return descent.step(loss, state)

    return jax.lax.while_loop(descent.goes_on, step, descent.start(begin)).tuned


def descend_many(
    loss: Callable[[Any, Any], tuple[Array, Array]],
    items: Any,
    begin: Any,
    *,
    at_once: int,
    rate: float,
    steps: int,
    enough: float,
) -> Any:
    """Minimize one loss for each item, as `descend` does, with several descents at once.

    Args:
      loss: function of one item and of its tuned values. It returns the loss and the target.
      items: a pytree of arrays [item, ...].
      begin: the first values of every item, a pytree without the axis of items.
      at_once: maximum number of descents at once.
      rate: the learning rate.
      steps: maximum number of steps of each descent.
      enough: the target at which a descent ends.

    Returns:
      The tuned values, a pytree like `begin` of arrays [item, ...].
    """
    descent = _Descent(rate, steps, enough)
    items = jax.tree.map(jnp.asarray, items)
    count = len(jax.tree.leaves(items)[0])
    places = min(at_once, count)
    fresh = descent.start(begin)

    def step(carry: _Places) -> _Places:
        own = jax.tree.map(lambda leaf: leaf.at[carry.item].get(mode="clip"), items)
        state = jax.vmap(lambda item, state: descent.step(lambda x: loss(item, x), state))(
            own, carry.state
        )
        ended = ~descent.goes_on(state)
        target = jnp.where(ended, carry.item, count)  # other places are dropped
        found = jax.tree.map(
            lambda all_, new: all_.at[target].set(new, mode="drop"), carry.found, state.tuned
        )
        item = jnp.where(ended, carry.following + jnp.cumsum(ended) - 1, carry.item)
        state = jax.vmap(lambda ended, old: _choose(ended, fresh, old))(ended, state)
        return _Places(state, item, carry.following + ended.sum(), found)

    first = _Places(
        state=jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (places, *leaf.shape)), fresh),
        item=jnp.arange(places),
        following=jnp.int32(places),
        found=jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype), fresh.tuned),
    )
    # A place without a further item has a number of at least `count`.
    return jax.lax.while_loop(lambda carry: (carry.item < count).any(), step, first).found


class _State(NamedTuple):
    """State of a descent.

    Attributes:
      number: number of steps so far.
      tuned: the tuned values.
      moments: the moments of Adam.
      target: the target before the last step.
    """

    number: Int[Array, "*place"]
    tuned: Any
    moments: optax.OptState
    target: Float[Array, "*place"]


class _Places(NamedTuple):
    """State of several descents at once.

    Attributes:
      state: the state of the descent at each place.
      item: the item at each place.
      following: the item that takes the next free place.
      found: the tuned values of the items whose descents have ended; 0 for the others.
    """

    state: _State
    item: Int[Array, " place"]
    following: Int[Array, ""]
    found: Any


class _Descent(NamedTuple):
    """The settings of a descent; see `descend`."""

    rate: float
    steps: int
    enough: float

    def start(self, begin: Any) -> _State:
        begin = jax.tree.map(jnp.asarray, begin)
        return _State(jnp.int32(0), begin, optax.adam(self.rate).init(begin), jnp.float32(jnp.inf))

    def step(self, loss: Loss, state: _State) -> _State:
        gradient, target = jax.grad(loss, has_aux=True)(state.tuned)
        updates, moments = optax.adam(self.rate).update(gradient, state.moments)
        # Values with this target stay as they are.
        moves = jnp.where(target > self.enough, 1.0, 0.0)
        tuned = jax.tree.map(lambda leaf, update: leaf + moves * update, state.tuned, updates)
        return _State(state.number + 1, tuned, moments, target)

    def goes_on(self, state: _State) -> Array:
        return (state.number < self.steps) & (state.target > self.enough)


def _choose(condition: Array, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
