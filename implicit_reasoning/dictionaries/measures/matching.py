"""Find the best feature for each value of a variable, and score the feature.

The best of many features has a high score by chance. For example, suppose that 10 of 1,000 states
have a value, and that 2,048 features are unrelated to the value. The best of these features reaches
an AUROC of .80. The feature of a value is therefore chosen on one half of the states and scored on
the second half. The null control permutes the values among the states.

The chosen feature has the highest F1 of "the feature is active" as a predictor of "the state has
the value". The scores are this F1 and the average precision of the activation. A dense feature can
also have a high average precision. Additional features are then added one by one. Each added
feature maximizes the F1 of "at least one of the chosen features is active". If added features
increase F1, the value is split among features. Chanin et al. 2024, "A is for absorption", section
4, measure splitting by the number of features that improve a sparse probe.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from implicit_reasoning.analysis.reading.ranking import f1_score

MIN_STATES = 2
"""Minimum number of states of a value in each half; values with fewer states are not scored."""
MAX_JOINED = 3
"""Maximum number of features that are combined for one value."""


class Half(NamedTuple):
    """One half of the states, on which features are either chosen or scored.

    Attributes:
      acts: feature activations. A feature is active if the activation is positive. Padding rows
        contain -inf.
      values: the variable's value in each state, or a negative number if the variable has no value.
    """

    acts: Float[Array, "state feature"]
    values: Int[Array, " state"]


class Ranked(NamedTuple):
    """For each feature, the states in descending order of the feature's activation.

    All values share this order. Computing the order once saves most of the time of average
    precision.

    Attributes:
      order: index of the state at each rank.
      last: for each rank, the number of states whose activation is at least the activation at this
        rank.
    """

    order: Int[Array, "feature state"]
    last: Int[Array, "feature state"]


class Match(NamedTuple):
    """The best feature for each value of a variable, with scores.

    Scores are nan for values with fewer than `MIN_STATES` states in a half.

    Attributes:
      feature: index of the feature with the highest F1 on the first half.
      f1: F1 of the best feature on the second half.
      precision: average precision of the best feature on the second half.
      n_states: number of states in the second half that have the value.
    """

    feature: Int[Array, " value"]
    f1: Float[Array, " value"]
    precision: Float[Array, " value"]
    n_states: Int[Array, " value"]


def ranked(acts: Float[Array, "state feature"]) -> Ranked:
    """For each feature, sort the states by activation in descending order."""
    numbers = jnp.broadcast_to(jnp.arange(len(acts), dtype=jnp.int32), acts.T.shape)
    falling, order = jax.lax.sort((-acts.T, numbers), num_keys=1)
    # Equal activations share the rank of the last of them, found by a cumulative minimum from the
    # end.
    place = jnp.arange(1, len(acts) + 1, dtype=jnp.int32)
    ends = jnp.pad(falling[:, 1:] != falling[:, :-1], [(0, 0), (0, 1)], constant_values=True)
    last = jax.lax.cummin(jnp.where(ends, place[None], len(acts)), 1, reverse=True)
    return Ranked(order, last)


def match(first: Half, second: Half, n_values: int, order: Ranked | None = None) -> Match:
    """For each value, choose the best feature on one half, and score the feature on the second.

    Args:
      first: the half on which features are chosen.
      second: the half on which features are scored. The two halves must not overlap.
      n_values: number of values, which are numbered from 0. Static under `jax.jit`.
      order: the result of `ranked(second.acts)`. By default, the function computes this result.
    """
    order = ranked(second.acts) if order is None else order
    feature = best_features(first, n_values)
    here = one_hot_values(second.values, n_values)
    chosen = (second.acts > 0).astype(jnp.float32)[:, feature].T  # [value, state]
    one = Ranked(order.order[feature], order.last[feature])
    precision = jax.vmap(_average_precision)(one, here > 0)
    enough = _enough(first, second, n_values)
    return Match(
        feature,
        jnp.where(enough, _f1(here, chosen), jnp.nan),
        jnp.where(enough, precision, jnp.nan),
        here.sum(1).astype(jnp.int32),
    )


def match_null(
    first: Half,
    second: Half,
    n_values: int,
    key: Key[Array, ""],
    n_permutations: int,
    order: Ranked | None = None,
) -> Float[Array, "permutation 2"]:
    """Compute the null control of `match`, with permuted values.

    For each permutation, the function permutes the values among the states of each half and calls
    `match`.

    Args:
      first: the half on which features are chosen.
      second: the half on which features are scored.
      n_values: number of values. Static under `jax.jit`.
      key: random key for the permutations.
      n_permutations: number of permutations.
      order: the result of `ranked(second.acts)`. By default, the function computes this result.

    Returns:
      An array [permutation, 2] with the mean F1 and the mean average precision over values.
    """
    order = ranked(second.acts) if order is None else order

    def dealt(key: Array, half: Half) -> Half:
        """Permute the values among the states; padding rows do not change."""
        there = jnp.isfinite(half.acts[:, 0])
        places = jnp.argsort(~there)  # states in order, then padding
        random = jnp.where(there, jax.random.uniform(key, there.shape), 2.0)
        return Half(half.acts, half.values.at[places].set(half.values[jnp.argsort(random)]))

    def one(key: Array) -> Array:
        keys = jax.random.split(key)
        found = match(dealt(keys[0], first), dealt(keys[1], second), n_values, order)
        return jnp.stack([jnp.nanmean(found.f1), jnp.nanmean(found.precision)])

    found: Array = jax.lax.map(one, jax.random.split(key, n_permutations))
    return found


def joined(first: Half, second: Half, n_values: int) -> Float[Array, "value n"]:
    """Compute the F1 of the best n features together, for n from 1 to `MAX_JOINED`.

    The predictor is "at least one of the n features is active". Features are chosen greedily on the
    first half, and F1 is computed on the second half. F1 is nan for values with fewer than
    `MIN_STATES` states in a half.
    """
    values = [one_hot_values(half.values, n_values) for half in (first, second)]
    active = [(half.acts > 0).astype(jnp.float32) for half in (first, second)]
    # Whether a feature that has been joined is active.
    any_of = [jnp.zeros_like(of_value) for of_value in values]
    scores = []
    for _ in range(MAX_JOINED):
        # A further feature adds only states on which no joined feature is active.
        left = 1 - any_of[0]
        both = (values[0] * any_of[0]).sum(1)[:, None] + (values[0] * left) @ active[0]
        size = any_of[0].sum(1)[:, None] + left @ active[0]
        best = f1_score(both, values[0].sum(1)[:, None], size).argmax(1)
        any_of = [jnp.maximum(a, of[:, best].T) for a, of in zip(any_of, active, strict=True)]
        scores.append(_f1(values[1], any_of[1]))
    enough = _enough(first, second, n_values)
    return jnp.where(enough[:, None], jnp.stack(scores, axis=1), jnp.nan)


def best_features(half: Half, n_values: int) -> Int[Array, " value"]:
    """For each value, return the index of the feature with the highest F1."""
    both, n_value, n_active = count_states(half, n_values)
    return f1_score(both, n_value[:, None], n_active[None]).argmax(1)


def count_states(half: Half, n_values: int) -> tuple[Array, Array, Array]:
    """Count the states that have each value and the states that activate each feature.

    Returns:
      `(both, n_value, n_active)`. `both` [value, feature] is the number of states that have the
      value and activate the feature. `n_value` [value] is the number of states that have the value.
      `n_active` [feature] is the number of states that activate the feature.
    """
    of_value, active = one_hot_values(half.values, n_values), (half.acts > 0).astype(jnp.float32)
    return of_value @ active, of_value.sum(1), active.sum(0)


def both_halves(
    acts: Float[Array, "state feature"], halves: Sequence[tuple[Array, Array]]
) -> tuple[Half, Half]:
    """Select the states of both halves of a concept.

    Padding states get activations of -inf.

    Args:
      acts: feature activations on all states.
      halves: for each half, the indices of the states and the variable's values. An index of -1
        means padding.
    """
    first, second = (
        Half(jnp.where(numbers[:, None] >= 0, acts[numbers], -jnp.inf), values)
        for numbers, values in halves
    )
    return first, second


def average_precision(
    scores: Float[Array, " state"], positive: Bool[Array, " state"]
) -> Float[Array, ""]:
    """Compute the average precision of scores as predictors of `positive`.

    The precision at a positive state is the share of positive states among all states with at least
    the same score. Average precision is the mean of this precision over all positive states. With a
    constant score, average precision is the share of positive states.
    """
    order = ranked(scores[:, None])
    return _average_precision(Ranked(order.order[0], order.last[0]), positive)


def one_hot_values(values: Int[Array, " state"], n_values: int) -> Float[Array, "value state"]:
    """Return an array [value, state] with 1 where the state has the value, and 0 elsewhere."""
    return (values[None] == jnp.arange(n_values)[:, None]).astype(jnp.float32)


def _average_precision(one: Any, positive: Bool[Array, " state"]) -> Float[Array, ""]:
    there = positive[one.order]
    precision = jnp.cumsum(there)[one.last - 1] / one.last
    return jnp.where(there, precision, 0).sum() / jnp.maximum(positive.sum(), 1)


def _enough(first: Half, second: Half, n_values: int) -> Bool[Array, " value"]:
    counts = [one_hot_values(half.values, n_values).sum(1) for half in (first, second)]
    return (counts[0] >= MIN_STATES) & (counts[1] >= MIN_STATES)


def _f1(
    of_value: Float[Array, "value state"], active: Float[Array, "value state"]
) -> Float[Array, " value"]:
    """Compute the F1 of each value from the row of `active` for this value."""
    return f1_score((of_value * active).sum(1), of_value.sum(1), active.sum(1))
