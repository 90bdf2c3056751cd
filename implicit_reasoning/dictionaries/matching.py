"""Which feature stands for which value of a truth variable, and how well: chosen and scored apart.

The best of many features looks good by chance: of 2,048 that have nothing to do with a value the
best reaches an AUROC of .80 with ten states of it among a thousand. So for each value the feature
is chosen on one half of the distinct states and scored on the other, and the same is done with
values dealt out anew among the states.

Chosen by F1 of "active" against "has the value"; scored by that, and by average precision of the
activation, which a dense feature with the right order can have, too.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

FEWEST = 2
"""States of a value in each half, without which nothing is said of it."""


class Match(NamedTuple):
    """The best feature of every value.

    Attributes:
      feature: chosen on the first half.
      f1: on the second half; nan for values of too few states, here and below.
      precision: average precision on the second half.
      n_states: of the value, in the second half.
    """

    feature: Int[Array, "value"]
    f1: Float[Array, "value"]
    precision: Float[Array, "value"]
    n_states: Int[Array, "value"]


def match(
    acts: Float[Array, "state feature"],
    values: Int[Array, "state"],
    second: Bool[Array, "state"],
    n_values: int,
) -> Match:
    """Choose and score.

    Args:
      acts: activations of distinct states; positive means active.
      values: of the variable; negative: none.
      second: which half a state is in.
      n_values: values are below it; static.
    """
    of_value = (values[None] == jnp.arange(n_values)[:, None]).astype(jnp.float32)
    active = (acts > 0).astype(jnp.float32)
    first = _f1(of_value * ~second[None], active * ~second[:, None])
    feature = first.argmax(1)
    here = of_value * second[None]
    chosen = active[:, feature].T * second[None]  # [value, state]
    both, sizes = (here * chosen).sum(1), here.sum(1) + chosen.sum(1)
    scores = jnp.where(second[None], acts[:, feature].T, -jnp.inf)
    precision = jax.lax.map(lambda one: average_precision(*one), (scores, here > 0))
    enough = (here.sum(1) >= FEWEST) & ((of_value * ~second[None]).sum(1) >= FEWEST)
    f1 = 2 * both / jnp.maximum(sizes, 1)
    return Match(
        feature,
        jnp.where(enough, f1, jnp.nan),
        jnp.where(enough, precision, jnp.nan),
        here.sum(1).astype(jnp.int32),
    )


def match_null(
    acts: Float[Array, "state feature"],
    values: Int[Array, "state"],
    second: Bool[Array, "state"],
    n_values: int,
    key: Key[Array, ""],
    n_permutations: int,
) -> Float[Array, "permutation 2"]:
    """Means over values of F1 and average precision, when values are dealt out anew."""

    def one(key: Array) -> Array:
        found = match(acts, jax.random.permutation(key, values), second, n_values)
        return jnp.stack([jnp.nanmean(found.f1), jnp.nanmean(found.precision)])

    found: Array = jax.lax.map(one, jax.random.split(key, n_permutations))
    return found


def average_precision(
    scores: Float[Array, "state"], positive: Bool[Array, "state"]
) -> Float[Array, ""]:
    """Mean, over the positive states, of the precision among all that score as high or higher.

    Equal scores count as worst: a feature that is off everywhere has the share of positives.
    """
    order = jnp.argsort(-scores)
    ranked, found = scores[order], jnp.cumsum(positive[order])
    last = jnp.searchsorted(-ranked, -ranked, side="right")  # states that score as high or higher
    precision = found[last - 1] / last
    total = positive.sum()
    return jnp.where(positive[order], precision, 0).sum() / jnp.maximum(total, 1)


def _f1(
    of_value: Float[Array, "value state"], active: Float[Array, "state feature"]
) -> Float[Array, "value feature"]:
    both = of_value @ active
    sizes = of_value.sum(1)[:, None] + active.sum(0)[None]
    return 2 * both / jnp.maximum(sizes, 1)
