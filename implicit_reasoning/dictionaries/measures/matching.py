"""Find the best feature for each value of a truth variable, and score it on separate states.

The best of many features looks good by chance. For example, if ten of a thousand states have a
value, the best of 2,048 features that are unrelated to the value reaches an AUROC of .80. For each
value, the feature is therefore chosen on one half of the distinct states and scored on the other
half. The null control permutes the values among the states.

A feature is chosen by the F1 of "is active" as a predictor of "has the value". The chosen feature
is scored by this F1, and by the average precision of its activation, which can be high for a dense
feature too. Further features are then added one by one. Each added feature maximises the F1 of "any
of the chosen features is active". If added features increase F1, the value is split among features.
In Chanin et al. 2024, "A is for absorption", section 4, splitting is instead measured by the number
of features that improve a sparse probe.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

MIN_STATES = 2
"""Minimum number of states of a value in each half; values with fewer states are not scored."""
MAX_JOINED = 3
"""Maximum number of features that are combined for one value."""


class Half(NamedTuple):
    """Distinct states on which features are either chosen or scored.

    Attributes:
      acts: activations; a feature is active if its activation is positive. Padding rows have -inf.
      values: the variable's value in each state; a negative number means that there is none.
    """

    acts: Float[Array, "state feature"]
    values: Int[Array, " state"]


class Ranked(NamedTuple):
    """States in the order of each feature's activation, beginning with the highest.

    Average precision takes most of its time for sorting. The order is the same for all values, so
    it is computed once.

    Attributes:
      order: index of the state at each rank.
      last: for each rank, the number of states whose activation is at least that of the state at
        the rank.
    """

    order: Int[Array, "feature state"]
    last: Int[Array, "feature state"]


class Match(NamedTuple):
    """The best feature of each value.

    Scores are nan for values with fewer than `MIN_STATES` states in a half.

    Attributes:
      feature: the feature with the highest F1 on the first half.
      f1: the F1 of this feature on the second half.
      precision: the average precision of this feature on the second half.
      n_states: number of states with the value in the second half.
    """

    feature: Int[Array, " value"]
    f1: Float[Array, " value"]
    precision: Float[Array, " value"]
    n_states: Int[Array, " value"]


def ranked(acts: Float[Array, "state feature"]) -> Ranked:
    """Rank the states by the activation of each feature."""
    numbers = jnp.broadcast_to(jnp.arange(len(acts), dtype=jnp.int32), acts.T.shape)
    falling, order = jax.lax.sort((-acts.T, numbers), num_keys=1)
    # Equal activations share the rank of the last of them, found by a cumulative minimum from the
    # end.
    place = jnp.arange(1, len(acts) + 1, dtype=jnp.int32)
    ends = jnp.pad(falling[:, 1:] != falling[:, :-1], [(0, 0), (0, 1)], constant_values=True)
    last = jax.lax.cummin(jnp.where(ends, place[None], len(acts)), 1, reverse=True)
    return Ranked(order, last)


def match(first: Half, second: Half, n_values: int, order: Ranked | None = None) -> Match:
    """Choose the best feature of each value on one half, and score this feature on the other half.

    Args:
      first: the half on which features are chosen.
      second: the half on which features are scored. It has no states in common with `first`.
      n_values: number of values, which are numbered from 0; static under tracing.
      order: `ranked(second.acts)`, if it is already computed.
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
    """Compute the null control of `match`: permute values among the states of each half, and match.

    Args:
      first: the half on which features are chosen.
      second: the half on which features are scored.
      n_values: number of values; static under tracing.
      key: the random key.
      n_permutations: number of permutations.
      order: `ranked(second.acts)`, if it is already computed.

    Returns:
      For each permutation, the mean F1 and the mean average precision over values.
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
    """Compute the F1 of "any of the best n features is active", for n from 1 to `MAX_JOINED`.

    Features are chosen greedily on the first half, and F1 is computed on the second half. The
    result is nan for values with fewer than `MIN_STATES` states in a half.
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
    """Return the feature with the highest F1 for each value."""
    both, n_value, n_active = count_states(half, n_values)
    return f1_score(both, n_value[:, None], n_active[None]).argmax(1)


def count_states(half: Half, n_values: int) -> tuple[Array, Array, Array]:
    """Count states for each value and feature.

    Returns:
      Three arrays. `[value, feature]`: the number of states that have the value and activate the
      feature. `[value]`: the number of states that have the value. `[feature]`: the number of
      states that activate the feature.
    """
    of_value, active = one_hot_values(half.values, n_values), (half.acts > 0).astype(jnp.float32)
    return of_value @ active, of_value.sum(1), active.sum(0)


def both_halves(
    acts: Float[Array, "state feature"], halves: Sequence[tuple[Array, Array]]
) -> tuple[Half, Half]:
    """Select the states of both halves. No feature is active in padding states.

    Args:
      acts: activations on all states.
      halves: for each half, the indices of the states and the values of the states. Index -1 is
        padding.
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

    For each positive state, take all states that score at least as high, and compute the share of
    positive states among them. Average precision is the mean of these shares over positive states.
    For a constant score, it is the share of all states that are positive.
    """
    order = ranked(scores[:, None])
    return _average_precision(Ranked(order.order[0], order.last[0]), positive)


def f1_score(
    both: Float[Array, "*any"], n_value: Float[Array, "*#any"], n_active: Float[Array, "*#any"]
) -> Float[Array, "*any"]:
    """Compute the F1 of "is active" as a predictor of "has the value", from counts of states.

    F1 is 0 if all counts are 0.

    Args:
      both: number of states that are active and have the value.
      n_value: number of states that have the value.
      n_active: number of active states.
    """
    return 2 * both / jnp.maximum(n_value + n_active, 1)


def one_hot_values(values: Int[Array, " state"], n_values: int) -> Float[Array, "value state"]:
    """Return an array that is 1 where a state has a value, and 0 elsewhere."""
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
