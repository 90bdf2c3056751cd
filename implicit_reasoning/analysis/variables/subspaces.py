"""The part of a state that codes a variable: found by class means, swapped, erased.

All functions are pure and take states of one place, `[state, d_model]`, with the class of each (-1:
none) and a weight (0 for a state that is another's copy, so that each distinct state counts once).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

_SAME = 1e-4  # of the largest: singular values below are rounding, in float32


class ClassMeans(NamedTuple):
    """Mean state of every class, and how many distinct states it is the mean of."""

    mean: Float[Array, "class d_model"]
    size: Float[Array, "class"]


def class_means(
    states: Float[Array, "state d_model"],
    classes: Int[Array, " state"],
    weight: Float[Array, " state"],
    n_classes: int,
) -> ClassMeans:
    """Weighted means by class; a class without a state has mean 0 and count 0."""
    member = jax.nn.one_hot(classes, n_classes, dtype=states.dtype) * weight[:, None]
    count = member.sum(0)
    return ClassMeans(_product(member.T, states) / jnp.maximum(count, 1)[:, None], count)


def swap(
    states: Float[Array, "example d_model"],
    means: ClassMeans,
    old: Int[Array, " example"],
    new: Int[Array, " example"],
) -> Float[Array, "example d_model"]:
    """The states, with what codes class `old` on average replaced by what codes class `new`."""
    return states + means.mean[new] - means.mean[old]


def basis(means: ClassMeans, rank: int) -> Float[Array, "d_model rank"]:
    """Orthonormal directions in which class means differ most; the largest differences first.

    Columns beyond the rank of the differences are 0. Classes count equally; empty ones do not.
    """
    there = (means.size > 0).astype(means.mean.dtype)
    centred = (means.mean - _centre(means)[None]) * there[:, None]
    _, size, directions = jnp.linalg.svd(centred, full_matrices=False)
    kept = jnp.where(size > _SAME * size[0], 1.0, 0.0)
    return (directions * kept[:, None]).T[:, :rank]


def _centre(means: ClassMeans) -> Float[Array, " d_model"]:
    """The mean of the class means that there are, which count equally."""
    there = (means.size > 0).astype(means.mean.dtype)
    return (means.mean * there[:, None]).sum(0) / jnp.maximum(there.sum(), 1)


class Bottleneck(NamedTuple):
    """A projection onto a few directions through a point: all else of a state is replaced by it.

    Attributes:
      centre: what a state has outside the directions, after the projection.
      directions: orthonormal columns; columns of 0 are no direction.
    """

    centre: Float[Array, " d_model"]
    directions: Float[Array, "d_model rank"]

    def __call__(self, states: Float[Array, "state d_model"]) -> Float[Array, "state d_model"]:
        """The states, projected."""
        inside = _product(states - self.centre[None], self.directions)
        return self.centre[None] + _product(inside, self.directions.T)

    def width(self) -> Float[Array, ""]:
        """How many directions there are."""
        return (jnp.abs(self.directions).max(0) > 0).sum().astype(self.directions.dtype)


def bottleneck(means: ClassMeans, rank: int) -> Bottleneck:
    """The projection onto at most `rank` dimensions in which class means differ most."""
    found = basis(means, rank)
    return Bottleneck(_centre(means), jnp.pad(found, ((0, 0), (0, rank - found.shape[1]))))


def random_bottleneck(like: Bottleneck, key: Key[Array, ""]) -> Bottleneck:
    """A projection through the same point onto random directions, as many as `like` has."""
    d_model, rank = like.directions.shape
    drawn = jnp.linalg.qr(jax.random.normal(key, (d_model, rank)))[0]
    # There are at most d_model orthonormal directions; `like` has columns of 0 beyond these.
    drawn = jnp.pad(drawn, ((0, 0), (0, rank - drawn.shape[1])))
    there = (jnp.abs(like.directions).max(0) > 0).astype(drawn.dtype)
    return Bottleneck(like.centre, drawn * there[None])


class Eraser(NamedTuple):
    """An affine map that removes something: `states - (states - mean) @ out @ back`.

    Attributes:
      mean: the state that is left as it is.
      out: from states to coordinates of what is removed.
      back: from those coordinates to states; `out @ back` is a projection.
      rank: of that projection.
    """

    mean: Float[Array, " d_model"]
    out: Float[Array, "d_model part"]
    back: Float[Array, "part d_model"]
    rank: Float[Array, ""]

    def __call__(self, states: Float[Array, "*rest d_model"]) -> Float[Array, "*rest d_model"]:
        """The states, without it."""
        centre = jnp.expand_dims(self.mean, range(states.ndim - 1))
        return states - _product(_product(states - centre, self.out), self.back)


class Whitening(NamedTuple):
    """Mean, the symmetric square roots of a pseudo-inverse covariance and of the covariance."""

    mean: Float[Array, " d_model"]
    inverse: Float[Array, "d_model d_model"]
    root: Float[Array, "d_model d_model"]


def whiten(
    states: Float[Array, "state d_model"], weight: Float[Array, " state"], shrinkage: float = 0.0
) -> Whitening:
    """Whitening of the weighted states, within the span that they have.

    The root is the pseudo-inverse of `inverse`, so that what is outside the span is left alone.
    With a `shrinkage` the covariance is mixed with that share of a multiple of the identity, as
    discriminants of few states need it (Ledoit and Wolf 2004).
    """
    share = weight / weight.sum()
    mean = _product(share[None], states)[0]
    centred = (states - mean[None]) * jnp.sqrt(share)[:, None]
    size, directions = jnp.linalg.eigh(_product(centred.T, centred))
    size = (1 - shrinkage) * jnp.maximum(size, 0) + shrinkage * size.mean()
    kept = size > states.shape[1] * jnp.finfo(states.dtype).eps * size[-1]
    root = jnp.where(kept, jnp.sqrt(size), 0)
    inverse = jnp.where(kept, 1 / jnp.where(kept, root, 1), 0)
    forth, back = (_product(directions * s[None], directions.T) for s in (inverse, root))
    return Whitening(mean, forth, back)


def leace(
    white: Whitening,
    states: Float[Array, "state d_model"],
    classes: Int[Array, " state"],
    weight: Float[Array, " state"],
    n_classes: int,
) -> Eraser:
    """Least-squares concept erasure: the smallest change after which class means are all equal.

    Then no linear classifier beats a constant one, on these states, under any convex loss. Means
    of the whitened states span the directions to remove. States without a class (-1) count in the
    whitening only: so a few of many classes are erased by giving all other states the class -1.

    Source: Belrose et al. 2023, *LEACE: Perfect linear concept erasure in closed form*, theorem 4.3
    (cross-covariance with the one-hot class in place of the means, which spans the same).
    """
    means = class_means(states, classes, weight, n_classes)
    share = means.size / jnp.maximum(means.size.sum(), 1)
    centre = _product(share[None], means.mean)[0]
    spread = (means.mean - centre[None]) * jnp.sqrt(share)[:, None]
    directions, rank = _row_space(_product(spread, white.inverse))
    return _eraser(white, centre, directions, rank)


def random_directions(
    white: Whitening, key: Key[Array, ""], n_directions: int
) -> Float[Array, "n_directions d_model"]:
    """Orthonormal directions, a row each, drawn within the span that whitened states have."""
    span = _product(white.inverse, white.root)
    draws = _product(jax.random.normal(key, (n_directions, white.mean.shape[0])), span)
    return jnp.linalg.qr(draws.T)[0].T


def erase_some(
    white: Whitening, directions: Float[Array, "direction d_model"], rank: Float[Array, ""]
) -> Eraser:
    """An eraser of the first `rank` directions: with random ones the control of `leace`."""
    kept = directions * jnp.where(jnp.arange(len(directions)) < rank, 1.0, 0.0)[:, None]
    return _eraser(white, white.mean, kept, rank)


def _row_space(
    rows: Float[Array, "row d_model"],
) -> tuple[Float[Array, "direction d_model"], Float[Array, ""]]:
    """Orthonormal directions that span the rows (others are 0), and how many there are.

    Eigenvectors of the smaller product with itself: several times faster than singular vectors.
    Rows are of the order of 1, and so are their singular values; what is below .01 is rounding.
    """
    tall = rows.shape[0] > rows.shape[1]
    square, directions = jnp.linalg.eigh(_product(rows.T, rows) if tall else _product(rows, rows.T))
    kept = square > 1e-4
    if not tall:
        directions = _product(rows.T, directions) / jnp.sqrt(jnp.where(kept, square, 1))[None]
    return (directions * kept.astype(rows.dtype)[None]).T, kept.sum().astype(rows.dtype)


def _eraser(
    white: Whitening,
    mean: Float[Array, " d_model"],
    directions: Float[Array, "direction d_model"],
    rank: Float[Array, ""],
) -> Eraser:
    return Eraser(
        mean, _product(white.inverse, directions.T), _product(directions, white.root), rank
    )


def nearest_mean(
    states: Float[Array, "example d_model"], means: ClassMeans
) -> Int[Array, " example"]:
    """The class with the nearest mean; classes without a state are none."""
    square = (means.mean**2).sum(-1)
    distance = square[None] - 2 * _product(states, means.mean.T)
    return jnp.where(means.size[None] > 0, distance, jnp.inf).argmin(-1)


def distinct_weights(keys: Int[np.ndarray, "pos state"]) -> Float[np.ndarray, "pos state"]:
    """1 for the first of equal states at each position, 0 for its copies; for the host."""
    weight = np.zeros(keys.shape, np.float32)
    for row, of_pos in zip(weight, keys, strict=True):
        row[np.unique(of_pos, return_index=True)[1]] = 1
    return weight


def _product(a: Array, b: Array) -> Array:
    # True float32 on every device: erasure is a difference of nearly equal numbers.
    return jnp.matmul(a, b, precision="highest")
