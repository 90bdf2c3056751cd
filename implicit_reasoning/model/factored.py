"""Factored matrices, and the OV and QK matrices of heads in this form.

The matrices that describe what a head reads and writes are `d_model` by `d_model`, but their rank
is at most `d_head`. `FactoredMatrix` keeps such a matrix as a product of two small matrices. Norms,
singular values and eigenvalues are computed from the factors.

Source of the names and signatures: TransformerLens (`FactoredMatrix`, `OV`, `QK`). Source of the
matrices: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits".
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Complex, Float

from implicit_reasoning.errors import InputError
from implicit_reasoning.model.blocks import require_gpt2
from implicit_reasoning.model.transformer import Params, Transformer
from implicit_reasoning.runtime.lapack import one_at_a_time, thin_svd, triangle


@jax.tree_util.register_pytree_node_class
class FactoredMatrix:
    """The matrix `A @ B`, or a batch of such matrices, kept as its factors.

    A factored matrix is a pytree whose leaves are the two factors. It can therefore be an argument
    and a result of compiled functions. Matrix products have the precision `highest`.

    Attributes:
      A: the left factor, [*batch, ldim, mdim].
      B: the right factor, [*batch, mdim, rdim].

    Raises:
      InputError: the factors cannot be multiplied, or their batch axes do not broadcast.
    """

    A: Float[Array, "*batch ldim mdim"]
    B: Float[Array, "*batch mdim rdim"]

    def __init__(self, A: ArrayLike, B: ArrayLike):
        """Store the factors, with batch axes that are broadcast to a common shape.

        Args:
          A: the left factor, [*batch, ldim, mdim].
          B: the right factor, [*batch, mdim, rdim].
        """
        left, right = jnp.asarray(A), jnp.asarray(B)
        if left.ndim < 2 or right.ndim < 2 or left.shape[-1] != right.shape[-2]:
            raise InputError(
                f"factors of shapes {left.shape} and {right.shape} cannot be multiplied; the "
                "shapes must be [*batch, ldim, mdim] and [*batch, mdim, rdim]"
            )
        try:
            batch = jnp.broadcast_shapes(left.shape[:-2], right.shape[:-2])
        except ValueError:
            raise InputError(
                f"the batch axes {left.shape[:-2]} and {right.shape[:-2]} of the factors do not "
                "broadcast to a common shape"
            ) from None
        self.A = jnp.broadcast_to(left, (*batch, *left.shape[-2:]))
        self.B = jnp.broadcast_to(right, (*batch, *right.shape[-2:]))

    def tree_flatten(self) -> tuple[tuple[Any, Any], None]:
        """Return the factors as the leaves of a pytree."""
        return (self.A, self.B), None

    @classmethod
    def tree_unflatten(cls, about: None, leaves: tuple[Any, Any]) -> FactoredMatrix:
        """Make a factored matrix of leaves. JAX may pass placeholders, so nothing is checked."""
        made = object.__new__(cls)
        made.A, made.B = leaves
        return made

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the product, `(*batch, ldim, rdim)`."""
        return (*self.A.shape[:-1], self.rdim)

    @property
    def ndim(self) -> int:
        """The number of axes of the product."""
        return self.A.ndim

    @property
    def ldim(self) -> int:
        """The number of rows."""
        return int(self.A.shape[-2])

    @property
    def rdim(self) -> int:
        """The number of columns."""
        return int(self.B.shape[-1])

    @property
    def mdim(self) -> int:
        """The number of columns of `A`, which is at least the rank."""
        return int(self.A.shape[-1])

    @property
    def pair(self) -> tuple[Array, Array]:
        """The factors `(A, B)`."""
        return self.A, self.B

    @property
    def AB(self) -> Float[Array, "*batch ldim rdim"]:
        """The product, which may be large."""
        return _product(self.A, self.B)

    @property
    def BA(self) -> Float[Array, "*batch mdim mdim"]:
        """The product of the factors in reverse order.

        Raises:
          InputError: the matrix is not square.
        """
        if self.ldim != self.rdim:
            raise InputError(
                f"BA exists only for square matrices; this matrix has the shape {self.shape}"
            )
        return _product(self.B, self.A)

    @property
    def T(self) -> FactoredMatrix:
        """The transposed matrix."""
        return FactoredMatrix(self.B.mT, self.A.mT)

    def svd(self) -> tuple[Array, Array, Array]:
        """Return the singular value decomposition `(U, S, Vh)` with `U @ diag(S) @ Vh.T = AB`.

        As in TransformerLens, `Vh` is the transpose of what numpy calls `Vh`.

        Returns:
          `U` [*batch, ldim, k], `S` [*batch, k] and `Vh` [*batch, rdim, k], where k is the smallest
          of `ldim`, `mdim` and `rdim`. The singular values are in descending order.
        """
        left, upper = one_at_a_time(jnp.linalg.qr, self.A)
        right, lower = one_at_a_time(jnp.linalg.qr, self.B.mT)
        inner, values, outer = one_at_a_time(thin_svd, _product(upper, lower.mT))
        return _product(left, inner), values, _product(right, outer.mT)

    @property
    def U(self) -> Float[Array, "*batch ldim k"]:
        """The left singular vectors, as columns."""
        return self.svd()[0]

    @property
    def S(self) -> Float[Array, "*batch k"]:
        """The singular values, in descending order."""
        return self.svd()[1]

    @property
    def Vh(self) -> Float[Array, "*batch rdim k"]:
        """The right singular vectors, as columns."""
        return self.svd()[2]

    @property
    def eigenvalues(self) -> Complex[Array, "*batch mdim"]:
        """The eigenvalues of a square matrix, without the zeros that its low rank implies.

        `AB` and `BA` have the same eigenvalues, apart from zeros.

        Raises:
          InputError: the matrix is not square.
        """
        found: Array = one_at_a_time(jnp.linalg.eigvals, self.BA)
        return found

    def norm(self) -> Float[Array, "*batch"]:
        """Return the Frobenius norm.

        The norm is that of the product of two small triangular matrices. A norm that is much
        smaller than the product of the norms of the factors is therefore accurate as well.
        """
        upper, lower = (one_at_a_time(triangle, factor) for factor in (self.A, self.B.mT))
        return jnp.sqrt(jnp.square(_product(upper, lower.mT)).sum((-2, -1)))

    def make_even(self) -> FactoredMatrix:
        """Return the same matrix with factors that have the same singular values."""
        left, values, right = self.svd()
        root = jnp.sqrt(values)[..., None, :]
        return FactoredMatrix(left * root, (right * root).mT)

    def collapse_l(self) -> Float[Array, "*batch k rdim"]:
        """Return `diag(S) @ Vh.T`, the matrix without its left singular vectors."""
        _, values, right = self.svd()
        return values[..., None] * right.mT

    def collapse_r(self) -> Float[Array, "*batch ldim k"]:
        """Return `U @ diag(S)`, the matrix without its right singular vectors."""
        left, values, _ = self.svd()
        return left * values[..., None, :]

    def get_corner(self, k: int = 3) -> Float[Array, "..."]:
        """Return the first `k` rows and columns of the first `k` matrices along each batch axis."""
        first = (slice(k),) * (self.ndim - 2)
        return _product(self.A[*first, :k, :], self.B[*first, :, :k])

    def unsqueeze(self, k: int) -> FactoredMatrix:
        """Add a batch axis of size 1 at index `k`."""
        return FactoredMatrix(jnp.expand_dims(self.A, k), jnp.expand_dims(self.B, k))

    def __getitem__(self, index: Any) -> FactoredMatrix:
        """Select along the batch axes, then the rows, then the columns.

        A single row or column stays an axis of size 1, so that the result is a factored matrix.

        Raises:
          InputError: the index has more entries than there are axes, or contains an ellipsis.
        """
        index = index if isinstance(index, tuple) else (index,)
        n_used = sum(entry is not None for entry in index)
        if any(entry is Ellipsis for entry in index) or n_used > self.ndim:
            raise InputError(
                f"a factored matrix of shape {self.shape} has {self.ndim} axes; the index must "
                f"have at most {self.ndim} entries and no ellipsis, got {index}"
            )
        row = column = slice(None)
        if n_used == self.ndim:
            index, column = index[:-1], _kept(index[-1])
        if n_used >= self.ndim - 1:
            index, row = index[:-1], _kept(index[-1])
        left, right = self.A[index], self.B[index]
        return FactoredMatrix(left[..., row, :], right[..., :, column])

    def __matmul__(self, other: FactoredMatrix | ArrayLike) -> FactoredMatrix | Array:
        """Multiply by a matrix on the right, or apply the matrix to a vector.

        Returns:
          A factored matrix with the smaller of the possible inner dimensions; an array
          [*batch, ldim] if `other` is a vector.

        Raises:
          InputError: the shapes do not fit.
        """
        if isinstance(other, FactoredMatrix):
            return (self @ other.A) @ other.B
        other = jnp.asarray(other)
        if other.ndim == 0 or other.shape[-min(other.ndim, 2)] != self.rdim:
            raise InputError(
                f"a matrix of shape {self.shape} cannot be multiplied by an array of shape "
                f"{other.shape}; the array must have {self.rdim} rows"
            )
        if other.ndim == 1:
            return _product(self.A, _product(self.B, other[:, None]))[..., 0]
        if self.rdim > self.mdim:
            return FactoredMatrix(self.A, _product(self.B, other))
        return FactoredMatrix(self.AB, other)

    def __rmatmul__(self, other: ArrayLike) -> FactoredMatrix | Array:
        """Multiply by a matrix on the left, or multiply a row vector by the matrix.

        Returns:
          A factored matrix with the smaller of the possible inner dimensions; an array
          [*batch, rdim] if `other` is a vector.

        Raises:
          InputError: the shapes do not fit.
        """
        other = jnp.asarray(other)
        if other.ndim == 0 or other.shape[-1] != self.ldim:
            raise InputError(
                f"an array of shape {other.shape} cannot be multiplied by a matrix of shape "
                f"{self.shape}; the array must have {self.ldim} columns"
            )
        if other.ndim == 1:
            return _product(_product(other[None], self.A), self.B)[..., 0, :]
        if self.ldim > self.mdim:
            return FactoredMatrix(_product(other, self.A), self.B)
        return FactoredMatrix(other, self.AB)

    # With this, `array @ factored` of numpy calls `__rmatmul__`.
    __array_ufunc__ = None

    def __mul__(self, factor: ArrayLike) -> FactoredMatrix:
        """Multiply by a number.

        Raises:
          InputError: `factor` is not a single number.
        """
        if jnp.size(factor) != 1:
            raise InputError(
                f"a factored matrix can be multiplied by a single number, got the shape "
                f"{jnp.shape(factor)}; use @ for matrix products"
            )
        return FactoredMatrix(self.A * jnp.reshape(jnp.asarray(factor), ()), self.B)

    __rmul__ = __mul__

    def __repr__(self) -> str:
        return f"FactoredMatrix(shape={self.shape}, mdim={self.mdim})"


def _kept(entry: Any) -> Any:
    """Return an index that keeps the axis, also where `entry` is a single number."""
    if isinstance(entry, int):
        return slice(entry, entry + 1 if entry != -1 else None)
    return entry


def _product(a: Array, b: Array) -> Array:
    """Return the matrix product, with the precision `highest` and broadcast batch axes."""
    batch = jnp.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = (jnp.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (a, b))
    return jnp.matmul(a, b, precision="highest")


def ov_matrices(model: Transformer, params: Params, *, fold_norm: bool = False) -> FactoredMatrix:
    """Return the OV matrix `W_V W_O` of every head, [block, head, d_model, d_model].

    A head that attends to a position adds `x @ OV` to the residual stream, where x is the
    normalized state at that position. (Biases are not included.)

    Args:
      model: the model. A looped model has the same matrices in every loop.
      params: the parameters of one model.
      fold_norm: whether to include the linear part of the norm: centring, and the weight of `ln1`.
        Then x is the state divided by its scale.

    Raises:
      InputError: the blocks of the model are not `gpt2`.
    """
    attn = _attention(model, params, "OV matrices")
    read = _reads(model, params, fold_norm)
    return FactoredMatrix(_product(read, attn["W_V"]), attn["W_O"])


def qk_matrices(model: Transformer, params: Params, *, fold_norm: bool = False) -> FactoredMatrix:
    """Return the QK matrix `W_Q W_K^T` of every head, [block, head, d_model, d_model].

    The attention score of a query and a key is `x_query @ QK @ x_key / sqrt(d_head)`, where x are
    normalized states. (Biases are not included.)

    Args:
      model: the model. A looped model has the same matrices in every loop.
      params: the parameters of one model.
      fold_norm: whether to include the linear part of the norm; see `ov_matrices`.

    Raises:
      InputError: the blocks of the model are not `gpt2`.
    """
    attn = _attention(model, params, "QK matrices")
    read = _reads(model, params, fold_norm)
    return FactoredMatrix(_product(read, attn["W_Q"]), _product(read, attn["W_K"]).mT)


def _attention(model: Transformer, params: Params, what: str) -> dict[str, Array]:
    """Return the attention weights of all blocks, stacked by unrolled depth."""
    require_gpt2(model.spec, what)
    blocks = [params["blocks"][str(n % model.spec.n_layers)] for n in range(model.spec.depth)]
    names = ("W_Q", "W_K", "W_V", "W_O")
    return {name: jnp.stack([block["attn"][name] for block in blocks]) for name in names}


def _reads(model: Transformer, params: Params, fold_norm: bool) -> Float[Array, "block 1 d d"]:
    """Return the linear part of `ln1` of every block, as a matrix that multiplies a state."""
    spec = model.spec
    same = jnp.broadcast_to(jnp.eye(spec.d_model), (spec.depth, spec.d_model, spec.d_model))
    if not fold_norm or spec.normalization != "LN":
        return same[:, None]
    weights = [params["blocks"][str(n % spec.n_layers)]["ln1"]["w"] for n in range(spec.depth)]
    return ((same - 1 / spec.d_model) * jnp.stack(weights)[:, None])[:, None]
