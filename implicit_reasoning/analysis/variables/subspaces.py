"""Class means, subspaces and erasers of a variable, for the states of one (layer, position).

All functions are pure. The class of a state is the value of the variable, or -1 for a state without
a value. The weight of a state is 0 for duplicates, so each distinct state counts once.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from implicit_reasoning.runtime.lapack import one_at_a_time, thin_svd

# Singular values below this multiple of the largest singular value are float32 rounding errors.
_SAME = 1e-4


class ClassMeans(NamedTuple):
    """The mean state and the number of distinct states of every class."""

    mean: Float[Array, "class d_model"]
    size: Float[Array, "class"]


def class_means(
    states: Float[Array, "state d_model"],
    classes: Int[Array, " state"],
    weight: Float[Array, " state"],
    n_classes: int,
) -> ClassMeans:
    """Compute the weighted mean state of every class.

    A class without states has mean 0 and size 0.

    Args:
      states: the states.
      classes: the class of each state; -1 if a state has no class.
      weight: the weight of each state; 0 for duplicates.
      n_classes: the number of classes.
    """
    member = jax.nn.one_hot(classes, n_classes, dtype=states.dtype) * weight[:, None]
    count = member.sum(0)
    return ClassMeans(_product(member.T, states) / jnp.maximum(count, 1)[:, None], count)


def swap(
    states: Float[Array, "example d_model"],
    means: ClassMeans,
    old: Int[Array, " example"],
    new: Int[Array, " example"],
) -> Float[Array, "example d_model"]:
    """Subtract the mean of the old class from every state, and add the mean of the new class.

    Args:
      states: the states to edit.
      means: the class means.
      old: the current class of each state.
      new: the new class of each state.
    """
    return states + means.mean[new] - means.mean[old]


def basis(means: ClassMeans, rank: int) -> Float[Array, "d_model rank"]:
    """Compute the principal components of the class means.

    All classes with states have the same weight. Classes without states are ignored.

    Args:
      means: the class means.
      rank: the maximum number of directions.

    Returns:
      The directions as orthonormal columns, in descending order of variance. Columns beyond the
      rank of the centered class means are 0.
    """
    there = (means.size > 0).astype(means.mean.dtype)
    centred = (means.mean - _centre(means)[None]) * there[:, None]
    _, size, directions = one_at_a_time(thin_svd, centred)
    kept = jnp.where(size > _SAME * size[0], 1.0, 0.0)
    return (directions * kept[:, None]).T[:, :rank]


def _centre(means: ClassMeans) -> Float[Array, " d_model"]:
    """Return the mean of the class means, without weights and without empty classes."""
    there = (means.size > 0).astype(means.mean.dtype)
    return (means.mean * there[:, None]).sum(0) / jnp.maximum(there.sum(), 1)


class Bottleneck(NamedTuple):
    """Projection of states onto an affine subspace.

    Attributes:
      centre: a point of the subspace. The component of a state that is orthogonal to the directions
        is replaced by the orthogonal component of `centre`.
      directions: the directions of the subspace, as orthonormal columns, with zero columns as
        padding.
    """

    centre: Float[Array, " d_model"]
    directions: Float[Array, "d_model rank"]

    def __call__(self, states: Float[Array, "state d_model"]) -> Float[Array, "state d_model"]:
        """Project the states."""
        inside = _product(states - self.centre[None], self.directions)
        return self.centre[None] + _product(inside, self.directions.T)

    def width(self) -> Float[Array, ""]:
        """Return the dimension of the subspace, without padding."""
        return (jnp.abs(self.directions).max(0) > 0).sum().astype(self.directions.dtype)


def bottleneck(means: ClassMeans, rank: int) -> Bottleneck:
    """Return the projection onto the directions in which class means differ most.

    The directions are the principal components of the class means. The center is the mean of the
    class means.

    Args:
      means: the class means.
      rank: the maximum number of directions.
    """
    found = basis(means, rank)
    return Bottleneck(_centre(means), jnp.pad(found, ((0, 0), (0, rank - found.shape[1]))))


def random_bottleneck(like: Bottleneck, key: Key[Array, ""]) -> Bottleneck:
    """Return a projection onto random directions, as a control.

    Args:
      like: the projection whose center and number of directions are used.
      key: the random key.
    """
    d_model, rank = like.directions.shape
    drawn = one_at_a_time(jnp.linalg.qr, jax.random.normal(key, (d_model, rank)))[0]
    # There are at most d_model orthonormal directions. All further columns of `like` are 0.
    drawn = jnp.pad(drawn, ((0, 0), (0, rank - drawn.shape[1])))
    there = (jnp.abs(like.directions).max(0) > 0).astype(drawn.dtype)
    return Bottleneck(like.centre, drawn * there[None])


class Eraser(NamedTuple):
    """Affine map that erases a component of states.

    The erased states are `states - (states - mean) @ out @ back`.

    Attributes:
      mean: the mean state, which the map does not change.
      out: matrix that maps centered states to coordinates of the erased component.
      back: matrix that maps coordinates of the erased component to states. `out @ back` is a
        projection.
      rank: the rank of `out @ back`.
    """

    mean: Float[Array, " d_model"]
    out: Float[Array, "d_model part"]
    back: Float[Array, "part d_model"]
    rank: Float[Array, ""]

    def __call__(self, states: Float[Array, "*rest d_model"]) -> Float[Array, "*rest d_model"]:
        """Erase the component from the states."""
        centre = jnp.expand_dims(self.mean, range(states.ndim - 1))
        return states - _product(_product(states - centre, self.out), self.back)


class Whitening(NamedTuple):
    """Whitening transform of states, with the inverse transform.

    Attributes:
      mean: the mean of the states.
      inverse: the whitening matrix, `covariance ** -0.5`, as a symmetric pseudo-inverse.
      root: the symmetric matrix `covariance ** 0.5`.
    """

    mean: Float[Array, " d_model"]
    inverse: Float[Array, "d_model d_model"]
    root: Float[Array, "d_model d_model"]


def whiten(
    states: Float[Array, "state d_model"], weight: Float[Array, " state"], shrinkage: float = 0.0
) -> Whitening:
    """Compute the whitening transform of weighted states.

    Directions outside of the span of the centered states are ignored. Erasers therefore do not
    change states along these directions.

    Args:
      states: the states.
      weight: the weight of each state; 0 for duplicates.
      shrinkage: number s in [0, 1]. The covariance C is replaced by (1 - s) C + s m I, where m is
        the mean eigenvalue of C (Ledoit and Wolf 2004). A discriminant that is fitted to few states
        needs shrinkage.
    """
    share = weight / weight.sum()
    mean = _product(share[None], states)[0]
    centred = (states - mean[None]) * jnp.sqrt(share)[:, None]
    size, directions = one_at_a_time(jnp.linalg.eigh, _product(centred.T, centred))
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
    """Compute the LEACE eraser of the classes.

    The LEACE eraser is the smallest change of the states that makes all class means equal. For any
    convex loss, no linear classifier of the erased states is then better than the best constant
    classifier. The erased directions are spanned by the centered class means of the whitened
    states. To erase only some classes, set the class of all other states to -1.

    Source: Belrose et al. 2023, *LEACE: Perfect linear concept erasure in closed form*, theorem
    4.3. The paper uses the cross-covariance of states and one-hot classes. The cross-covariance
    spans the same directions as the centered class means.

    Args:
      white: the whitening transform of the states.
      states: the states.
      classes: the class of each state; -1 if a state has no class.
      weight: the weight of each state; 0 for duplicates.
      n_classes: the number of classes.
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
    """Draw random orthonormal directions (rows) in the span of the whitened states."""
    span = _product(white.inverse, white.root)
    draws = _product(jax.random.normal(key, (n_directions, white.mean.shape[0])), span)
    return one_at_a_time(jnp.linalg.qr, draws.T)[0].T


def erase_some(
    white: Whitening, directions: Float[Array, "direction d_model"], rank: Float[Array, ""]
) -> Eraser:
    """Return the eraser of the first `rank` directions, for example as a random control.

    Args:
      white: the whitening transform of the states.
      directions: orthonormal directions (rows) of the whitened states.
      rank: the number of directions to erase; may be traced.
    """
    kept = directions * jnp.where(jnp.arange(len(directions)) < rank, 1.0, 0.0)[:, None]
    return _eraser(white, white.mean, kept, rank)


def _row_space(
    rows: Float[Array, "row d_model"],
) -> tuple[Float[Array, "direction d_model"], Float[Array, ""]]:
    """Return orthonormal directions that span the rows, and the number of these directions.

    All further directions in the array are 0. Computing the eigenvectors of the smaller Gram matrix
    is several times faster than a singular value decomposition. The singular values of the rows are
    of order 1, so values below 0.01 are rounding errors.
    """
    tall = rows.shape[0] > rows.shape[1]
    products = _product(rows.T, rows) if tall else _product(rows, rows.T)
    square, directions = one_at_a_time(jnp.linalg.eigh, products)
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
    """Return the class whose mean is nearest to each state. Classes without states are ignored."""
    square = (means.mean**2).sum(-1)
    distance = square[None] - 2 * _product(states, means.mean.T)
    return jnp.where(means.size[None] > 0, distance, jnp.inf).argmin(-1)


def _product(a: Array, b: Array) -> Array:
    # Erasure subtracts nearly equal numbers, so its products need full float32 precision.
    return jnp.matmul(a, b, precision="highest")
