"""What a dictionary has to beat: features that nobody had to train a dictionary for.

Each gives activations and a reconstruction for the same states, and is measured like a dictionary:

- `k-means`: as many centres as the dictionary has features; one is active, the nearest.
- `PCA`: principal components of the training states, both signs of each a feature; of each state
  the k with the largest size are kept, k the dictionary's active features.
- `neurons`: those of the MLP that wrote into the site last, as they are (no reconstruction).
- `class means`: for a truth variable the mean state of each of its values, on the half that
  features are chosen on; the nearest is active. It is told the truth: an upper bound, no rival.

Two more are trained like any dictionary: with a decoder that stays random (`frozen_decoder` of
`Settings`), and on the states of a model that was not trained (step 0).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from implicit_reasoning.dictionaries.sparse import Sparse

_ROUNDS = 20  # of Lloyd's algorithm
States = Float[Array, "state width"]
Fitted = Float[Array, "fitted width"]


class Baseline(NamedTuple):
    """Activations of its features, and what they write."""

    acts: Float[Array, "state feature"]
    out: States


def k_means(fitted: Fitted, states: States, n_centres: int, key: Key[Array, ""]) -> Baseline:
    """Lloyd's algorithm from states at random; centres that lose all states stay where they are."""
    start = jax.random.choice(key, fitted, (min(n_centres, len(fitted)),), replace=False)

    def move(_: Array, centres: Array) -> Array:
        member = jax.nn.one_hot(_nearest(fitted, centres), len(centres))
        counts = member.sum(0)[:, None]
        return jnp.where(counts > 0, (member.T @ fitted) / jnp.maximum(counts, 1), centres)

    centres = jax.lax.fori_loop(0, _ROUNDS, move, start)
    nearest = _nearest(states, centres)
    return Baseline(jax.nn.one_hot(nearest, len(centres)), centres[nearest])


def principal_components(
    fitted: Fitted, states: States, k: Int[Array, ""] | int, most: int
) -> Baseline:
    """The k components of each state that are largest; at most `most`, which is static."""
    mean = fitted.mean(0, keepdims=True)
    _, _, axes = jnp.linalg.svd(fitted - mean, full_matrices=False)
    found = (states - mean) @ axes.T
    most = min(most, found.shape[1])
    _, index = jax.lax.top_k(jnp.abs(found), most)
    value = jnp.where(jnp.arange(most)[None] < k, jnp.take_along_axis(found, index, 1), 0.0)
    kept = Sparse(value, index).dense(found.shape[1])
    signed = jnp.concatenate([jax.nn.relu(kept), jax.nn.relu(-kept)], axis=1)
    return Baseline(signed, kept @ axes + mean)


def class_means(
    states: States, values: Int[Array, "state"], known: Bool[Array, "state"], n_values: int
) -> Baseline:
    """The nearest of the means of each value's `known` states; values without any are far away."""
    member = jax.nn.one_hot(values, n_values) * known[:, None]
    counts = member.sum(0)[:, None]
    means = (member.T @ states) / jnp.maximum(counts, 1)
    nearest = _nearest(states, jnp.where(counts > 0, means, 1e6))
    return Baseline(jax.nn.one_hot(nearest, n_values), means[nearest])


def _nearest(
    states: Float[Array, "_state width"], centres: Float[Array, "_centre width"]
) -> Int[Array, "_state"]:
    """By squared distance, less what all centres have in common."""
    return ((centres**2).sum(1)[None] - 2 * states @ centres.T).argmin(1)
