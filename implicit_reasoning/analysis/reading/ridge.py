"""Cross-validated ridge regression in closed form, for all variables at once.

Rows are grouped by fold. The regression of a fold is fitted to all rows outside of the fold, and
predicts the rows in the fold. The Gram matrix of a regression is the Gram matrix of all rows minus
the Gram matrix of the fold. The regressions of all folds therefore cost about as much as one
regression. All target variables share one Gram matrix.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

STRENGTH = 1e-2
"""Ridge penalty, as a multiple of the mean eigenvalue (trace / width) of the Gram matrix."""

_HIGHEST = jax.lax.Precision.HIGHEST


class FoldRows(NamedTuple):
    """Rows grouped by fold. Folds are padded to the same size.

    Leading axes, such as layer and position, are for independent groupings.

    Attributes:
      members: int32 [..., fold, member], the row indices in each fold; 0 for padding.
      weight: float32 [..., fold, member], 1 for rows that are used for fitting, 0 for padding and
        for all other rows.
      place: int32 [..., row], the position of each row in `members`, with the last two axes
        flattened.
    """

    members: Int[Array | np.ndarray, "*cell fold member"]
    weight: Float[Array | np.ndarray, "*cell fold member"]
    place: Int[Array | np.ndarray, "*cell row"]


def arrange_by_fold(
    folds: Int[np.ndarray, "*cell row"], counted: Bool[np.ndarray, "*cell row"], n_folds: int
) -> FoldRows:
    """Group rows by fold.

    Args:
      folds: the fold of each row. Leading axes, such as layer and position, are for independent
        groupings.
      counted: whether each row is used for fitting.
      n_folds: number of folds.
    """
    cells, n_rows = folds.shape[:-1], folds.shape[-1]
    folds, counted = folds.reshape(-1, n_rows), counted.reshape(-1, n_rows)
    sizes = [np.bincount(line, minlength=n_folds) for line in folds]
    members = np.zeros((len(folds), n_folds, max(map(max, sizes))), np.int32)
    weight = np.zeros(members.shape, np.float32)
    place = np.zeros(folds.shape, np.int32)
    for cell, (line, counts) in enumerate(zip(folds, counted, strict=True)):
        for fold in range(n_folds):
            rows = np.flatnonzero(line == fold)
            members[cell, fold, : len(rows)] = rows
            weight[cell, fold, : len(rows)] = counts[rows]
            place[cell, rows] = fold * members.shape[-1] + np.arange(len(rows))
    shape = (*cells, *members.shape[1:])
    return FoldRows(members.reshape(shape), weight.reshape(shape), place.reshape(*cells, n_rows))


class Sums(NamedTuple):
    """Statistics for the regression of each fold, over the rows outside of the fold.

    Attributes:
      mean_x: the mean of the inputs x.
      mean_y: the mean of the targets y.
      gram: the Gram matrix `x.T @ x` of the centered inputs.
      cross: the product `x.T @ y` of the centered inputs and the centered targets.
    """

    mean_x: Float[Array, "fold width"]
    mean_y: Float[Array, "fold out"]
    gram: Float[Array, "fold width width"]
    cross: Float[Array, "fold width out"]


def leave_fold_out_sums(
    x: Float[Array, "fold member width"],
    y: Float[Array, "fold member out"],
    weight: Float[Array, "fold member"],
) -> Sums:
    """Compute statistics for the regression of each fold, over the rows outside of the fold.

    Args:
      x: the inputs of the regression, by fold.
      y: the targets of the regression, by fold.
      weight: 1 for rows that are used for fitting, else 0.
    """
    weighted = x * weight[..., None]
    total = weight.sum()
    # Differences of float32 sums lose precision if means are large, so x is centered first.
    centre = weighted.sum((0, 1)) / total
    x = x - centre[None, None]
    weighted = x * weight[..., None]

    def outside(by_fold: Array) -> Array:
        return by_fold.sum(0, keepdims=True) - by_fold

    count = outside(weight.sum(1))
    mean_x = outside(weighted.sum(1)) / count[:, None]
    mean_y = outside((y * weight[..., None]).sum(1)) / count[:, None]
    gram = outside(jnp.einsum("fmd,fme->fde", weighted, x, precision=_HIGHEST))
    cross = outside(jnp.einsum("fmd,fmo->fdo", weighted, y, precision=_HIGHEST))
    counts = count[:, None, None]
    return Sums(
        mean_x=mean_x + centre[None],
        mean_y=mean_y,
        gram=gram - counts * mean_x[:, :, None] * mean_x[:, None, :],
        cross=cross - counts * mean_x[:, :, None] * mean_y[:, None, :],
    )


def ridge(sums: Sums) -> Float[Array, "fold width out"]:
    """Compute the ridge regression weights `(gram + c I)^-1 cross`.

    The weights are for centered inputs and targets. The penalty c makes `gram + c I`
    well-conditioned, so the inverse is computed explicitly. If `cross` has many columns, an
    explicit inverse is several times faster than solving a system for each column.
    """
    eye = jnp.broadcast_to(jnp.eye(sums.gram.shape[-1])[None], sums.gram.shape)
    factor = jax.scipy.linalg.cho_factor(sums.gram + _strength(sums)[:, None, None] * eye)
    inverse = jax.scipy.linalg.cho_solve(factor, eye)
    return jnp.einsum("fde,feo->fdo", inverse, sums.cross, precision=_HIGHEST)


def sparse_ridge(
    sums: Sums, most: int, sizes: tuple[int, ...]
) -> Float[Array, "size fold width out"]:
    """Compute regression weights that use only a few input dimensions for each output.

    For output o, the score of a dimension d is the difference between the mean of class o and the
    mean of all other classes, in standard deviations. Up to a factor that depends on o only, the
    score is `abs(cross[d, o]) / sqrt(gram[d, d])`. The dimensions with the highest scores are used.

    Args:
      sums: the statistics for one-hot targets y.
      most: the largest number in `sizes`.
      sizes: numbers of input dimensions. Weights are computed for each number.
    """
    spread = jnp.sqrt(jnp.diagonal(sums.gram, axis1=1, axis2=2)) + 1e-12
    difference = jnp.abs(sums.cross) / spread[:, :, None]
    _, chosen = jax.lax.top_k(jnp.swapaxes(difference, 1, 2), most)  # [fold, out, most]

    def rows(gram: Array, cross: Array, strength: Array, chosen: Array) -> Array:
        """Return the linear equations for one output of one fold, as a matrix [most, most + 1].

        The last column is the right-hand side.
        """
        small = gram[chosen[:, None], chosen[None]] + strength * jnp.eye(most)
        return jnp.concatenate([small, cross[chosen][:, None]], axis=1)

    by_out = jax.vmap(rows, in_axes=(None, 1, None, 0))
    equations = jax.vmap(by_out)(sums.gram, sums.cross, _strength(sums), chosen)
    solutions = _swept(equations)

    def spread_out(size: int) -> Array:
        """Return the weights for `size` dimensions. The weights of all other dimensions are 0."""
        used = (jnp.arange(most) < size)[None, None]
        few = jnp.where(used, solutions[min(size, most) - 1], 0)
        empty = jnp.zeros(sums.gram.shape[-1])
        put = jax.vmap(jax.vmap(lambda where, values: empty.at[where].set(values)))
        return jnp.swapaxes(put(chosen, few), 1, 2)

    return jnp.stack([spread_out(size) for size in sizes])


def _swept(
    equations: Float[Array, "fold out most most+1"],
) -> Float[Array, "most fold out most"]:
    """Solve the first n equations in the first n unknowns, for n = 1, 2, ..., in one elimination.

    The method is the sweep operator. The equations are positive definite, so no pivoting is needed.
    `jnp.linalg.solve` is not used. On a CPU, a program that solves many small systems in a loop
    calls LAPACK for each system, and such a program was observed to hang (JAX 0.10.2).
    """

    def sweep(equations: Array, pivot: Array) -> tuple[Array, Array]:
        row, column = equations[:, :, pivot], equations[:, :, :, pivot]
        row = row / row[:, :, pivot, None]
        cleared = equations - column[..., None] * row[:, :, None]
        here = (jnp.arange(column.shape[-1]) == pivot)[None, None, :, None]
        equations = jnp.where(here, row[:, :, None], cleared)
        return equations, equations[..., -1]

    found: Array = jax.lax.scan(sweep, equations, jnp.arange(equations.shape[-2]))[1]
    return found


def predict(
    sums: Sums, weights: Float[Array, "fold width out"], x: Float[Array, "fold member width"]
) -> Float[Array, "fold member out"]:
    """Predict the targets in each fold by the regression that is fitted without the fold.

    Args:
      sums: the statistics to which the regressions are fitted.
      weights: the regression weights, from `ridge` or `sparse_ridge`.
      x: the inputs of the regression, by fold.
    """
    centred = x - sums.mean_x[:, None]
    said = jnp.einsum("fmd,fdo->fmo", centred, weights, precision=_HIGHEST)
    return said + sums.mean_y[:, None]


def _strength(sums: Sums) -> Float[Array, " fold"]:
    # The last term only matters if all states are equal. It then keeps the matrix invertible.
    trace = jnp.trace(sums.gram, axis1=1, axis2=2)
    return STRENGTH * trace / sums.gram.shape[-1] + 1e-12


def affine(
    x: Float[Array, "row width"], y: Float[Array, "row out"], weight: Float[Array, " row"]
) -> tuple[Float[Array, "width out"], Float[Array, " out"]]:
    """Fit the affine map `x @ A + b` to y by ridge regression.

    Args:
      x: the inputs.
      y: the targets.
      weight: 1 for rows that are used for fitting, else 0.

    Returns:
      `(A, b)`.
    """
    # All rows of weight 1 are in the first fold, so the regression of the second fold is fitted to
    # all of these rows.
    rows, none = weight[None], jnp.zeros_like(weight)[None]
    sums = leave_fold_out_sums(jnp.stack([x, x]), jnp.stack([y, y]), jnp.concatenate([rows, none]))
    sums = Sums(*(part[1:] for part in sums))
    weights = ridge(sums)[0]
    return weights, sums.mean_y[0] - jnp.matmul(sums.mean_x[0], weights, precision=_HIGHEST)
