"""Sparse data whose directions are known: what any dictionary should find, if it can.

More directions than dimensions, seldom active, with frequencies that fall as a power of their rank,
and in pairs that tend to be active together.

Source: the toy models of Elhage et al. 2022 and Sharkey et al. 2022; correlated pairs as in the
former's section on correlated features.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from implicit_reasoning.errors import InputError


@dataclass(frozen=True)
class Synthetic:
    """A source of states.

    Attributes:
      n_directions: true directions, an even number.
      width: dimensions.
      mean_active: of directions, in a state.
      exponent: the i-th direction is active with a frequency proportional to `i ** -exponent`.
      together: of a pair's activity, the share that both have in common.
      spread: standard deviation of an active direction's size, whose mean is 1.
    """

    n_directions: int = 512
    width: int = 128
    mean_active: float = 8.0
    exponent: float = 0.5
    together: float = 0.3
    spread: float = 0.25

    def __post_init__(self) -> None:
        if self.n_directions % 2 or not 0 <= self.together <= 1:
            raise InputError(
                "directions go in pairs, and `together` is a share: they are "
                f"{self.n_directions} and {self.together}"
            )
        if float(self.frequencies.max()) > 1:
            raise InputError(
                f"{self.mean_active} active of {self.n_directions}, with exponent {self.exponent}, "
                "asks for a frequency above 1"
            )

    @property
    def frequencies(self) -> Float[Array, " direction"]:
        """How often each direction is active; those of a pair are equal."""
        rank = jnp.repeat(jnp.arange(1, self.n_directions // 2 + 1), 2)
        falling = rank.astype(jnp.float32) ** -self.exponent
        return self.mean_active * falling / falling.sum()

    def directions(self, key: Key[Array, ""]) -> Float[Array, "direction width"]:
        """Unit vectors at random."""
        drawn = jax.random.normal(key, (self.n_directions, self.width))
        return drawn / jnp.linalg.norm(drawn, axis=1, keepdims=True)

    def activity(self, key: Key[Array, ""], n_states: int) -> Float[Array, "state direction"]:
        """Sizes of directions in some states, most of them 0.

        With the chance `together` a direction does as its pair does, else as it would alone.
        """
        keys = jax.random.split(key, 4)
        shape = (n_states, self.n_directions)
        pairs = (n_states, self.n_directions // 2)
        own = jax.random.uniform(keys[0], shape)
        both = jnp.repeat(jax.random.uniform(keys[1], pairs), 2, axis=1)
        shared = jnp.repeat(jax.random.bernoulli(keys[2], self.together, pairs), 2, axis=1)
        active = jnp.where(shared, both, own) < self.frequencies[None]
        size = jnp.abs(1 + self.spread * jax.random.normal(keys[3], shape))
        return jnp.where(active, size, 0.0)

    def states(
        self, key: Key[Array, ""], directions: Float[Array, "direction width"], n_states: int
    ) -> Float[Array, "state width"]:
        """Sums of active directions."""
        return self.activity(key, n_states) @ directions


def recovered(
    directions: Float[Array, "direction width"], rows: Float[Array, "feature width"]
) -> Float[Array, " direction"]:
    """Of each true direction the cosine with the feature that is nearest to it."""
    unit = rows / (jnp.linalg.norm(rows, axis=1, keepdims=True) + 1e-12)
    return (directions @ unit.T).max(1)
