"""How heads compose, and which heads copy, from the weights alone.

The OV matrix of a head says what the head writes if it attends to a position. The QK matrix says
which positions it attends to. A later head composes with an earlier head if it reads the subspace
that the earlier head writes: as query (Q-composition), as key (K-composition) or as value
(V-composition). Two unrelated matrices also have a score above 0. The null therefore turns what
the earlier head writes by a random rotation of the residual stream.

Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits" (composition scores
and the eigenvalues of copying heads).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Key

from implicit_reasoning.analysis.drawing import heat_maps, some_steps
from implicit_reasoning.analysis.instrument import Examples, Instrument, NotApplicable
from implicit_reasoning.figures import Figure
from implicit_reasoning.model import Params, Transformer, unembedding_matrix
from implicit_reasoning.model.blocks import require_gpt2
from implicit_reasoning.model.factored import FactoredMatrix, ov_matrices, qk_matrices
from implicit_reasoning.runtime.lapack import one_at_a_time, triangle
from implicit_reasoning.worlds import Dataset

KINDS = ("query", "key", "value")
DRAWS = 99
"""Number of random rotations. The smallest p-value is 1 / (1 + DRAWS)."""

_EIGEN_DRAWS = 19  # rotations for eigenvalues, which take longer
_PAIR = ("kind", "writer_block", "writer_head", "block", "head")


class HeadCircuits(Instrument):
    """Instrument that measures the composition of heads and copying by heads, from weights."""

    name = "head_circuits"
    definition = (
        "composition: |W_OV W|_F / (|W_OV|_F |W|_F), where W_OV is the OV matrix of an earlier "
        "head (writer) and W is the QK matrix of a later head (query), its transpose (key) or the "
        "OV matrix of the later head (value); nan if the writer is not in an earlier block. The "
        "matrices contain the centring and the weight of the layer norm before the head. "
        "null_mean and null_std: mean and standard deviation over random rotations of what the "
        "writer writes. z: (composition - null_mean) / null_std. p_value: share of rotations "
        "whose largest z over all pairs and kinds is at least the z of the pair, with one added "
        "to both counts; the z of a rotation is that of its composition, with the mean and the "
        "standard deviation over the other rotations. copying: sum of the real parts of the "
        "eigenvalues of W_E W_OV W_U, divided by the sum of their absolute values. null_copying: "
        "the mean of its absolute value over rotations. ov_norm, qk_norm: Frobenius norms."
    )
    outputs = {
        **dict.fromkeys(("composition", "null_mean", "null_std", "z", "p_value"), _PAIR),
        **dict.fromkeys(("copying", "null_copying", "ov_norm", "qk_norm"), ("block", "head")),
    }
    nulls = {"random rotations": "null_mean", "random rotations, of copying": "null_copying"}
    version = 2
    default = False

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Return no examples, because the instrument reads the weights only.

        Raises:
          NotApplicable: the blocks of the model are not `gpt2`.
        """
        require_gpt2(model.spec, "instrument head_circuits", NotApplicable)
        none = np.zeros(0, np.int64)
        return Examples({}, ("weights",), none, none)

    def coords(self, model: Transformer, dataset: Dataset) -> dict[str, Sequence[Any]]:
        """Return the labels of the kinds of composition, the blocks and the heads."""
        blocks, heads = range(model.spec.depth), range(model.spec.n_heads)
        writers = {"writer_block": blocks, "writer_head": heads}
        return {"kind": KINDS, **writers, "block": blocks, "head": heads}

    def sites(self, model: Transformer) -> tuple[str, ...]:
        """Return no sites, because the instrument reads the weights only."""
        return ()

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Compute all scores, and their null distributions."""
        ov = ov_matrices(model, params, fold_norm=True)
        qk = qk_matrices(model, params, fold_norm=True)
        keys = jax.random.split(key, DRAWS)
        small = _reduced(ov)
        readers = jnp.stack([_reduced(one.T).mT for one in (qk, qk.T, ov)])
        observed = _scores(small, readers)
        null = jax.lax.map(lambda k: _scores(_turned(small, k), readers), keys)
        mean, deviation = null.mean(0), null.std(0, ddof=1)
        blocks = np.arange(model.spec.depth)
        earlier = (blocks[:, None] < blocks)[None, :, None, :, None]
        there = (deviation > 0) & earlier
        scale = jnp.where(there, deviation, 1.0)
        z = (observed - mean) / scale
        largest = jnp.where(there[None], leave_one_out_z(null), -jnp.inf)
        largest = largest.reshape(DRAWS, *(1,) * z.ndim, -1).max(-1)
        found = {
            **{"composition": observed, "null_mean": mean, "null_std": deviation},
            "z": jnp.where(there, z, jnp.nan),
            "p_value": jnp.where(there, (1 + (largest >= z[None]).sum(0)) / (1 + DRAWS), jnp.nan),
        }
        through = _through_tokens(model, params)

        def null_copying(k: Key[Array, ""]) -> Array:
            return jnp.abs(_copying(FactoredMatrix(*_split(ov, k)), through))

        of_null = jax.lax.map(null_copying, keys[:_EIGEN_DRAWS])
        return {name: jnp.where(earlier, values, jnp.nan) for name, values in found.items()} | {
            "copying": _copying(ov, through),
            "null_copying": of_null.mean(0),
            "ov_norm": ov.norm(),
            "qk_norm": qk.norm(),
        }

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Draw the composition of all pairs of heads at a few steps."""
        steps = some_steps(result, 3)
        maps, nulls = (
            {
                f"{kind}\nstep {step:,}": _table(values.sel(kind=kind, step=step))
                for kind in KINDS
                for step in steps
            }
            for values in (result.composition, result.null_mean)
        )
        drawing = heat_maps(
            maps,
            "composition score",
            nulls=nulls,
            ncols=len(steps),
            rows="reader",
            columns="writer",
        )
        caption = (
            "A cell is the composition score of an earlier head (column, the writer) and a later "
            "head (row, the reader): the length of the product of their matrices, relative to the "
            "product of their lengths. A row of maps has one kind: the reader uses what the writer "
            "writes for its queries, its keys or its values. The number in brackets is the null, "
            "the mean over random rotations of what the writer writes. A score well above it means "
            "that the reader reads the subspace that the writer writes, and not that it is used. "
            "White cells have no earlier writer. The file analysis/head_circuits.nc has z and "
            "p-values that are corrected for the number of pairs."
        )
        return [Figure(self.name, "Which heads compose?", caption, drawing)]


def composition_scores(left: FactoredMatrix, right: FactoredMatrix) -> Float[Array, "..."]:
    """Return `|left right|_F / (|left|_F |right|_F)`, with broadcast batch axes.

    The score is at most 1. It is 1 only if `right` maps everything that `left` writes alike, and 0
    if a matrix is zero.

    Args:
      left: matrices of earlier heads.
      right: matrices of later heads.

    Source: Elhage et al. 2021, "Virtual weights and composition"; TransformerLens
    (`composition_scores`).
    """
    product = left @ right
    assert isinstance(product, FactoredMatrix)
    lengths = left.norm() * right.norm()
    return jnp.where(lengths > 0, product.norm() / jnp.where(lengths > 0, lengths, 1.0), 0.0)


def leave_one_out_z(draws: Float[Array, "draw ..."]) -> Float[Array, "draw ..."]:
    """Return the z value of each draw, from the mean and the deviation of all other draws.

    The z value of an observation that is not one of the draws is then comparable: it is also
    computed from draws that do not contain it. It is inf if all other draws are equal.

    Args:
      draws: at least three draws.
    """
    count = draws.shape[0]
    away = draws - draws.mean(0)[None]
    # The squared differences from the mean of the other draws sum to this.
    rest = (away**2).sum(0)[None] - away**2 * count / (count - 1)
    deviation = jnp.sqrt(jnp.maximum(rest, 0) / (count - 2))
    return away * count / (count - 1) / deviation


def _reduced(matrix: FactoredMatrix) -> Float[Array, "*batch k d"]:
    """Return a small matrix with the same products of lengths: `M = (orthonormal columns) @ it`."""
    upper = one_at_a_time(triangle, matrix.A)
    return jnp.matmul(upper, matrix.B, precision="highest")


def _scores(
    writers: Float[Array, "writer_block writer_head k d"],
    readers: Float[Array, "kind block head d k"],
) -> Float[Array, "kind writer_block writer_head block head"]:
    """Return the composition scores of all pairs of heads, of reduced matrices."""

    def pairs(reader: Float[Array, "block head d k"]) -> Float[Array, "..."]:
        product = jnp.einsum("abkd,xydl->abxykl", writers, reader, precision="highest")
        return jnp.sqrt(jnp.square(product).sum((-2, -1)))

    lengths = _length(writers)[None, :, :, None, None] * _length(readers)[:, None, None]
    found = jax.lax.map(pairs, readers)
    return jnp.where(lengths > 0, found / jnp.where(lengths > 0, lengths, 1.0), 0.0)


def _length(matrix: Float[Array, "*batch a b"]) -> Float[Array, "*batch"]:
    return jnp.sqrt(jnp.square(matrix).sum((-2, -1)))


def _turned(matrix: Float[Array, "*batch k d"], key: Key[Array, ""]) -> Float[Array, "*batch k d"]:
    """Turn the rows of each matrix by a random rotation, which is uniform over all rotations."""
    lower = one_at_a_time(triangle, matrix.mT).mT  # [*batch, k, rank]
    drawn = jax.random.normal(key, matrix.mT.shape)
    directions = one_at_a_time(jnp.linalg.qr, drawn)[0][..., : lower.shape[-1]]
    return jnp.matmul(lower, directions.mT, precision="highest")


def _split(matrix: FactoredMatrix, key: Key[Array, ""]) -> tuple[Array, Array]:
    """Return the factors of a matrix whose rows are turned by a random rotation."""
    return matrix.A, _turned(matrix.B, key)


def _through_tokens(model: Transformer, params: Params) -> Float[Array, "d d"]:
    """Return `W_U W_E`, with the centring and the weight of the final norm in W_U."""
    unembedding = unembedding_matrix(params)
    if model.spec.normalization == "LN":
        weighted = params["ln_final"]["w"][:, None] * unembedding
        unembedding = weighted - weighted.mean(0, keepdims=True)
    return jnp.matmul(unembedding, params["embed"]["W_E"], precision="highest")


def _copying(ov: FactoredMatrix, through: Float[Array, "d d"]) -> Float[Array, "block head"]:
    """Return the sum of the eigenvalues of W_E W_OV W_U, relative to their absolute values."""
    values = FactoredMatrix(ov.A, jnp.matmul(ov.B, through, precision="highest")).eigenvalues
    size = jnp.abs(values).sum(-1)
    return jnp.where(size > 0, values.real.sum(-1) / jnp.where(size > 0, size, 1.0), 0.0)


def _table(values: xr.DataArray) -> xr.DataArray:
    """Return the scores as a table of readers and writers, without heads that have no partner."""
    writers = values.writer_block.values[:-1]
    readers = values.block.values[1:]
    chosen = values.sel(writer_block=writers, block=readers)
    table = chosen.stack(writer=("writer_block", "writer_head"), reader=("block", "head"))
    names = {
        dim: [f"a{block}.h{head}" for block, head in table[dim].values]
        for dim in ("writer", "reader")
    }
    data = table.transpose("reader", "writer").values
    return xr.DataArray(data, names, ("reader", "writer"))
