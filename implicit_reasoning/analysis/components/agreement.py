"""Compare estimated effects with exact effects, by Spearman's rank correlation over cells."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

RANKED = ("effect", "size")
"""What is ranked: the effect with its sign, or the size of the effect."""

_NEGLIGIBLE = 1e-4
"""Effects whose size is below this share of the largest one count as 0.

Otherwise rounding errors of float32 would order the cells whose effects are exactly 0.
"""


def rank_correlation(
    estimate: Float[Array, "*batch cell"],
    exact: Float[Array, "*batch cell"],
    counted: Bool[Array, "*batch cell"],
) -> Float[Array, "*batch"]:
    """Return Spearman's rank correlation over the cells that count.

    Equal values share the mean of their ranks. The correlation is 0 if all values of one argument
    are equal; `can_be_ranked` says where the exact values differ.

    Args:
      estimate: the estimated effect of each cell.
      exact: the exact effect of each cell.
      counted: whether each cell counts.
    """
    one, other = (_without_rounding(values, counted) for values in (estimate, exact))
    return spearman(one, other, counted)


def spearman(
    one: Float[Array, "*#batch cell"],
    other: Float[Array, "*#batch cell"],
    counted: Bool[Array, "*#batch cell"] | None = None,
) -> Float[Array, "*batch"]:
    """Return Spearman's rank correlation of two arrays with broadcast batch axes.

    Equal values share the mean of their ranks. The correlation is 0 if all values of one array are
    equal.

    Args:
      one: values.
      other: values of the same cells.
      counted: whether each cell counts; all cells by default.
    """
    if counted is None:
        counted = jnp.ones((*(1 for _ in one.shape[:-1]), one.shape[-1]), bool)
    ranks = [_ranks(values, jnp.broadcast_to(counted, values.shape)) for values in (one, other)]
    count = jnp.maximum(counted.sum(-1, keepdims=True), 1)
    centred = [
        jnp.where(counted, x - (x * counted).sum(-1, keepdims=True) / count, 0) for x in ranks
    ]
    products = (centred[0] * centred[1]).sum(-1)
    squares = (centred[0] ** 2).sum(-1) * (centred[1] ** 2).sum(-1)
    return jnp.where(squares > 0, products / jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)


def can_be_ranked(
    exact: Float[Array, "*batch cell"], counted: Bool[Array, "*batch cell"]
) -> Bool[Array, "*batch"]:
    """Return whether the exact effects of the cells that count differ, apart from rounding."""
    values = _without_rounding(exact, counted)
    highest = jnp.where(counted, values, -jnp.inf).max(-1)
    return highest > jnp.where(counted, values, jnp.inf).min(-1)


def _without_rounding(values: Array, counted: Array) -> Array:
    size = jnp.where(counted, jnp.abs(values), 0)
    return jnp.where(size > _NEGLIGIBLE * size.max(-1, keepdims=True), values, 0)


def _ranks(values: Array, counted: Array) -> Array:
    """Return the mean rank of each value among the values that count."""
    kept = jnp.where(counted, values, jnp.inf)
    flat = kept.reshape(-1, kept.shape[-1])
    ordered = jnp.sort(flat, axis=-1)
    both = [
        jnp.vectorize(
            lambda row, value, side=side: jnp.searchsorted(row, value, side=side),
            signature="(n),(n)->(n)",
        )(ordered, flat)
        for side in ("left", "right")
    ]
    return ((both[0] + both[1] - 1) / 2).reshape(values.shape).astype(jnp.float32)


class Agreement(NamedTuple):
    """How well estimated effects rank the cells of one kind.

    Attributes:
      by_pair: the rank correlation with the exact effects, over the cells of each pair. That of
        the exact effects themselves is 1, or 0 if they do not differ.
      ranked: whether the exact effects of a pair differ between cells.
      of_means: the rank correlation of the mean effects of each group; nan if the exact means do
        not differ between cells.
    """

    by_pair: Float[Array, "estimator ranked donor example"]
    ranked: Bool[Array, "ranked donor example"]
    of_means: Float[Array, "estimator ranked donor group"]


def compare_effects(
    effects: Float[Array, "estimator donor *cell example"],
    moved: Bool[Array, "donor *cell example"],
    read: Bool[np.ndarray, "*cell"],
    member: Bool[Array, "example group"],
) -> Agreement:
    """Compare estimated effects with exact effects.

    A cell counts for a pair if its values differ between the two runs, and if the last position
    reads it. The effects of all other cells are 0 for every estimator.

    Args:
      effects: the effects of each cell. The first estimator is exact.
      moved: whether the value of each cell differs between the two runs of a pair.
      read: whether the last position reads each cell.
      member: whether each pair belongs to each group. Pairs without a group do not contribute to
        the means.
    """
    n_examples, n_donors = effects.shape[-1], effects.shape[1]
    by_cell = jnp.moveaxis(effects, -1, 2).reshape(len(effects), n_donors, n_examples, -1)
    counted = jnp.moveaxis(moved & read[None, ..., None], -1, 1).reshape(n_donors, n_examples, -1)
    both = jnp.stack([by_cell, jnp.abs(by_cell)], axis=1)
    weight = member.astype(effects.dtype)
    means = jnp.einsum("mrdec,eg->mrdgc", both, weight / jnp.maximum(weight.sum(0), 1)[None])
    counted_means = jnp.einsum("dec,eg->dgc", counted.astype(weight.dtype), weight) > 0
    there = [
        jnp.stack([can_be_ranked(values, cells) for values in exact])
        for exact, cells in ((both[0], counted), (means[0], counted_means))
    ]
    of_means = _compared_with_first(means, counted_means)
    return Agreement(
        _compared_with_first(both, counted),
        there[0],
        jnp.where(jnp.broadcast_to(there[1], of_means.shape), of_means, jnp.nan),
    )


def _compared_with_first(
    values: Float[Array, "estimator ranked *batch cell"], counted: Bool[Array, "*batch cell"]
) -> Float[Array, "estimator ranked *batch"]:
    """Return the rank correlation of the values of each estimator with those of the first one."""
    exact, counted = (jnp.broadcast_to(x, values.shape) for x in (values[:1], counted))
    return rank_correlation(values, exact, counted)
