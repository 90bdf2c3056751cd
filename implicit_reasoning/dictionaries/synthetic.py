"""Draw synthetic sparse data, to test whether dictionaries find known directions.

A state is a sparse sum of known directions. There are more directions than dimensions. Directions
form pairs. The i-th pair is active with a frequency proportional to a negative power of i. The
activities of the two directions of a pair are correlated.

Sources: the toy models of Elhage et al. 2022 (correlated pairs from the section on correlated
features) and Sharkey et al. 2022.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from implicit_reasoning.errors import InputError


@dataclass(frozen=True)
class Synthetic:
    """A distribution of synthetic states.

    Attributes:
      n_directions: number of true directions. Must be even.
      width: number of dimensions of a state.
      mean_active: mean number of active directions per state.
      exponent: the i-th pair of directions is active with a frequency proportional to `i **
        -exponent`.
      together: probability that both directions of a pair use the same random number. Otherwise the
        two directions are independent.
      spread: standard deviation of the coefficient of an active direction. The mean coefficient is
        1.
    """

    n_directions: int = 512
    width: int = 128
    mean_active: float = 8.0
    exponent: float = 0.5
    together: float = 0.3
    spread: float = 0.25

    def __post_init__(self) -> None:
        if self.n_directions % 2:
            raise InputError(f"n_directions is {self.n_directions}; it must be an even number")
        if not 0 <= self.together <= 1:
            raise InputError(f"together is {self.together}; it must be a number from 0 to 1")
        if float(self.frequencies.max()) > 1:
            raise InputError(
                f"mean_active is {self.mean_active}, n_directions is {self.n_directions} and "
                f"exponent is {self.exponent}; the frequency of a direction would be "
                f"{float(self.frequencies.max()):g}, but must be at most 1; reduce mean_active "
                "or exponent"
            )

    @property
    def frequencies(self) -> Float[Array, " direction"]:
        """The share of states in which each direction is active.

        Both directions of a pair have the same frequency.
        """
        rank = jnp.repeat(jnp.arange(1, self.n_directions // 2 + 1), 2)
        falling = rank.astype(jnp.float32) ** -self.exponent
        return self.mean_active * falling / falling.sum()

    def directions(self, key: Key[Array, ""]) -> Float[Array, "direction width"]:
        """Draw one random unit vector per direction."""
        drawn = jax.random.normal(key, (self.n_directions, self.width))
        return drawn / jnp.linalg.norm(drawn, axis=1, keepdims=True)

    def activity(self, key: Key[Array, ""], n_states: int) -> Float[Array, "state direction"]:
        """Draw the coefficient of each direction in each state.

        The coefficient of an inactive direction is 0.

        Directions 2i and 2i + 1 form a pair. A direction is active if a random number is below the
        frequency of the direction. With probability `together`, both directions of a pair use the
        same random number. Otherwise the two directions use independent random numbers.
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
        """Draw states, which are sums of `directions` weighted by coefficients from `activity`."""
        return self.activity(key, n_states) @ directions


def recovered(
    directions: Float[Array, "direction width"], rows: Float[Array, "feature width"]
) -> Float[Array, " direction"]:
    """For each true direction, return the highest cosine with a row of `rows`."""
    unit = rows / (jnp.linalg.norm(rows, axis=1, keepdims=True) + 1e-12)
    return (directions @ unit.T).max(1)
