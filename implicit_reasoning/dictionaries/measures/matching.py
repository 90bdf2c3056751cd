"""Which feature stands for which value of a truth variable, and how well: chosen and scored apart.

The best of many features looks good by chance: of 2,048 that have nothing to do with a value the
best reaches an AUROC of .80 with ten states of it among a thousand. So for each value the feature
is chosen on one half of the distinct states and scored on the other, and the same is done with
values dealt out anew among the states.

Chosen by F1 of "active" against "has the value"; scored by that, and by average precision of the
activation, which a dense feature with the right order can have, too. Then a second feature joins
the first, and a third, each the one with which "any of them is active" has the highest F1: where
that helps, the value is split among features (Chanin et al. 2024, "A is for absorption", section 4,
who count how many features a sparse probe profits from).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

MIN_STATES = 2
"""States of a value in each half, without which nothing is said of it."""
MAX_JOINED = 3
"""Features that stand for one value together, at most."""


class Half(NamedTuple):
    """Distinct states, to choose features on or to score them on.

    Attributes:
      acts: activations; positive means active; -inf in rows that only fill up.
      values: of the variable; negative: none.
    """

    acts: Float[Array, "state feature"]
    values: Int[Array, " state"]


class Ranked(NamedTuple):
    """States in the order of each feature's activation, highest first.

    Sorting is most of the work of an average precision, and the same for all values.

    Attributes:
      order: numbers of states.
      last: how many states have as much activation as this one, or more.
    """

    order: Int[Array, "feature state"]
    last: Int[Array, "feature state"]


class Match(NamedTuple):
    """The best feature of every value.

    Attributes:
      feature: chosen on the first half.
      f1: on the second half; nan for values of too few states, here and below.
      precision: average precision on the second half.
      n_states: of the value, in the second half.
    """

    feature: Int[Array, " value"]
    f1: Float[Array, " value"]
    precision: Float[Array, " value"]
    n_states: Int[Array, " value"]


def ranked(acts: Float[Array, "state feature"]) -> Ranked:
    """Sort once what every average precision needs."""
    numbers = jnp.broadcast_to(jnp.arange(len(acts), dtype=jnp.int32), acts.T.shape)
    falling, order = jax.lax.sort((-acts.T, numbers), num_keys=1)
    # From the end: the last place of a run of equal scores holds for the whole run.
    place = jnp.arange(1, len(acts) + 1, dtype=jnp.int32)
    ends = jnp.pad(falling[:, 1:] != falling[:, :-1], [(0, 0), (0, 1)], constant_values=True)
    last = jax.lax.cummin(jnp.where(ends, place[None], len(acts)), 1, reverse=True)
    return Ranked(order, last)


def match(first: Half, second: Half, n_values: int, order: Ranked | None = None) -> Match:
    """Choose on one half and score on the other.

    Args:
      first: to choose on.
      second: to score on; no state is in both.
      n_values: values are below it; static.
      order: `ranked(second.acts)`, where it is known.
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
    """Means over values of F1 and average precision, when values are dealt out anew in a half."""
    order = ranked(second.acts) if order is None else order

    def dealt(key: Array, half: Half) -> Half:
        """Among the states that there are."""
        there = jnp.isfinite(half.acts[:, 0])
        places = jnp.argsort(~there)  # states in order; then what only fills up
        random = jnp.where(there, jax.random.uniform(key, there.shape), 2.0)
        return Half(half.acts, half.values.at[places].set(half.values[jnp.argsort(random)]))

    def one(key: Array) -> Array:
        keys = jax.random.split(key)
        found = match(dealt(keys[0], first), dealt(keys[1], second), n_values, order)
        return jnp.stack([jnp.nanmean(found.f1), jnp.nanmean(found.precision)])

    found: Array = jax.lax.map(one, jax.random.split(key, n_permutations))
    return found


def joined(first: Half, second: Half, n_values: int) -> Float[Array, "value n"]:
    """F1 on the second half of the best 1, 2, ... `JOINED` features together; nan as in `match`."""
    values = [one_hot_values(half.values, n_values) for half in (first, second)]
    active = [(half.acts > 0).astype(jnp.float32) for half in (first, second)]
    any_of = [jnp.zeros_like(of_value) for of_value in values]  # whether a chosen one is active
    scores = []
    for _ in range(MAX_JOINED):
        # Of states where no chosen one is active: what a further feature would add.
        left = 1 - any_of[0]
        both = (values[0] * any_of[0]).sum(1)[:, None] + (values[0] * left) @ active[0]
        size = any_of[0].sum(1)[:, None] + left @ active[0]
        best = f1_score(both, values[0].sum(1)[:, None], size).argmax(1)
        any_of = [jnp.maximum(a, of[:, best].T) for a, of in zip(any_of, active, strict=True)]
        scores.append(_f1(values[1], any_of[1]))
    enough = _enough(first, second, n_values)
    return jnp.where(enough[:, None], jnp.stack(scores, axis=1), jnp.nan)


def best_features(half: Half, n_values: int) -> Int[Array, " value"]:
    """The feature of highest F1 for each value."""
    of_value, active = one_hot_values(half.values, n_values), (half.acts > 0).astype(jnp.float32)
    return f1_score(of_value @ active, of_value.sum(1)[:, None], active.sum(0)[None]).argmax(1)


def average_precision(
    scores: Float[Array, " state"], positive: Bool[Array, " state"]
) -> Float[Array, ""]:
    """Mean, over the positive states, of the precision among all that score as high or higher.

    Equal scores count as worst: a feature that is off everywhere has the share of positives.
    """
    order = ranked(scores[:, None])
    return _average_precision(Ranked(order.order[0], order.last[0]), positive)


def f1_score(
    both: Float[Array, "*any"], n_value: Float[Array, "*#any"], n_active: Float[Array, "*#any"]
) -> Float[Array, "*any"]:
    """Of "active" against "has the value", from counts of states; 0 where there are none."""
    return 2 * both / jnp.maximum(n_value + n_active, 1)


def one_hot_values(values: Int[Array, " state"], n_values: int) -> Float[Array, "value state"]:
    """1 where a state has a value, else 0."""
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
    """Of each value with its own column of activity."""
    return f1_score((of_value * active).sum(1), of_value.sum(1), active.sum(1))
