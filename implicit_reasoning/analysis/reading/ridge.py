"""Cross-validated ridge regression in closed form, for all variables at once.

Rows are grouped by fold. All variables share one Gram matrix. The sums for a fold's regression are
the sums over all rows minus those over the fold. So the prediction of every row comes from a
regression without this row, at about the cost of one fit.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

STRENGTH = 1e-2
"""Ridge penalty added to the Gram matrix, relative to its mean eigenvalue, trace / width."""

_HIGHEST = jax.lax.Precision.HIGHEST


class FoldRows(NamedTuple):
    """Rows grouped by fold, padded to equal fold sizes; all arrays have the same leading axes.

    Attributes:
      members: int32 [..., fold, member], row numbers; 0 for padding.
      weight: float32 [..., fold, member], 1 for rows to fit to; 0 for duplicates and padding.
      place: int32 [..., row], index of each row in the flattened `members`.
    """

    members: Int[Array | np.ndarray, "*cell fold member"]
    weight: Float[Array | np.ndarray, "*cell fold member"]
    place: Int[Array | np.ndarray, "*cell row"]


def arrange_by_fold(
    folds: Int[np.ndarray, "*cell row"], counted: Bool[np.ndarray, "*cell row"], n_folds: int
) -> FoldRows:
    """Group rows by fold.

    Args:
      folds: the fold of each row, for each cell.
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
    """Means and centred products of the rows outside of each fold."""

    mean_x: Float[Array, "fold width"]
    mean_y: Float[Array, "fold out"]
    gram: Float[Array, "fold width width"]
    cross: Float[Array, "fold width out"]


def leave_fold_out_sums(
    x: Float[Array, "fold member width"],
    y: Float[Array, "fold member out"],
    weight: Float[Array, "fold member"],
) -> Sums:
    """Compute the sums for each fold's regression, over all rows of weight 1 outside of the fold.

    Args:
      x: inputs by fold.
      y: outputs by fold.
      weight: 1 for rows to fit to, else 0.
    """
    weighted = x * weight[..., None]
    total = weight.sum()
    # In float32, differences of sums lose precision if means are large, so x is centred first.
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
    """Compute the weights of the regression of centred y on centred x, `(gram + c I)^-1 cross`.

    The inverse is explicit. It is well-conditioned because of c, and one product with the many
    columns of y is several times faster than solving for each column.
    """
    eye = jnp.broadcast_to(jnp.eye(sums.gram.shape[-1])[None], sums.gram.shape)
    factor = jax.scipy.linalg.cho_factor(sums.gram + _strength(sums)[:, None, None] * eye)
    inverse = jax.scipy.linalg.cho_solve(factor, eye)
    return jnp.einsum("fde,feo->fdo", inverse, sums.cross, precision=_HIGHEST)


def sparse_ridge(
    sums: Sums, most: int, sizes: tuple[int, ...]
) -> Float[Array, "size fold width out"]:
    """Compute regression weights on few dimensions, chosen separately for each output.

    The chosen dimensions have the largest difference between class means. `cross[d, o]` is the
    difference between the mean of dimension d in class o and its mean in the other rows, times a
    factor that only depends on o. It is divided by the spread of d.

    Args:
      sums: sums with one-hot y.
      most: the largest of `sizes`.
      sizes: numbers of dimensions.
    """
    spread = jnp.sqrt(jnp.diagonal(sums.gram, axis1=1, axis2=2)) + 1e-12
    difference = jnp.abs(sums.cross) / spread[:, :, None]
    _, chosen = jax.lax.top_k(jnp.swapaxes(difference, 1, 2), most)  # [fold, out, most]

    def rows(gram: Array, cross: Array, strength: Array, chosen: Array) -> Array:
        """Return the equations of one output of one fold, with the right side as last column.

        The shape is [most, most + 1].
        """
        small = gram[chosen[:, None], chosen[None]] + strength * jnp.eye(most)
        return jnp.concatenate([small, cross[chosen][:, None]], axis=1)

    by_out = jax.vmap(rows, in_axes=(None, 1, None, 0))
    equations = jax.vmap(by_out)(sums.gram, sums.cross, _strength(sums), chosen)
    solutions = _swept(equations)

    def spread_out(size: int) -> Array:
        """Return the weights on `size` dimensions, with zeros for all other dimensions."""
        used = (jnp.arange(most) < size)[None, None]
        few = jnp.where(used, solutions[min(size, most) - 1], 0)
        empty = jnp.zeros(sums.gram.shape[-1])
        put = jax.vmap(jax.vmap(lambda where, values: empty.at[where].set(values)))
        return jnp.swapaxes(put(chosen, few), 1, 2)

    return jnp.stack([spread_out(size) for size in sizes])


def _swept(
    equations: Float[Array, "fold out most most+1"],
) -> Float[Array, "most fold out most"]:
    """Solve the leading 1, 2, ... equations in one elimination (the sweep operator).

    The equations are positive definite, so no pivoting is needed. `jnp.linalg.solve` is not used:
    on a CPU, a program with many small systems in a loop calls LAPACK for each of them, and was
    observed to hang (JAX 0.10.2).
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
    """Predict the rows of each fold by the regression of that fold."""
    centred = x - sums.mean_x[:, None]
    said = jnp.einsum("fmd,fdo->fmo", centred, weights, precision=_HIGHEST)
    return said + sums.mean_y[:, None]


def _strength(sums: Sums) -> Float[Array, " fold"]:
    # The last term only matters if all states are equal; then nothing can be read from them.
    trace = jnp.trace(sums.gram, axis1=1, axis2=2)
    return STRENGTH * trace / sums.gram.shape[-1] + 1e-12


def affine(
    x: Float[Array, "row width"], y: Float[Array, "row out"], weight: Float[Array, " row"]
) -> tuple[Float[Array, "width out"], Float[Array, " out"]]:
    """Fit `x @ A + b` to y over the rows of weight 1 by ridge regression.

    Returns:
      `(A, b)`.
    """
    # Only the first fold has non-zero weights, so the second fold's regression is fitted to all of
    # them.
    rows, none = weight[None], jnp.zeros_like(weight)[None]
    sums = leave_fold_out_sums(jnp.stack([x, x]), jnp.stack([y, y]), jnp.concatenate([rows, none]))
    sums = Sums(*(part[1:] for part in sums))
    weights = ridge(sums)[0]
    return weights, sums.mean_y[0] - jnp.matmul(sums.mean_x[0], weights, precision=_HIGHEST)
