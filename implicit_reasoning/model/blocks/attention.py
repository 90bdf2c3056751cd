"""Causal multi-head attention, with HookedTransformer's names and layouts.

`Attention` takes separate inputs for queries, keys and values. Its three steps can also be called
separately: `project`, `mix` and `output`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from implicit_reasoning.model.blocks.parameters import (
    Parameter,
    constant,
    create_parameters,
    normal,
)
from implicit_reasoning.model.edits import HookContext, expand_to_rank
from implicit_reasoning.model.spec import Spec


class Attention(nnx.Module):
    """Causal multi-head attention with separate query, key and value inputs."""

    W_Q: nnx.Param[Array]
    W_K: nnx.Param[Array]
    W_V: nnx.Param[Array]
    W_O: nnx.Param[Array]
    b_Q: nnx.Param[Array]
    b_K: nnx.Param[Array]
    b_V: nnx.Param[Array]
    b_O: nnx.Param[Array]

    def __init__(self, spec: Spec, rngs: nnx.Rngs):
        create_parameters(self, self.parameters(spec), rngs)
        self.precision = spec.precision

    @staticmethod
    def parameters(spec: Spec) -> dict[str, Parameter]:
        """Return the descriptions of the projection matrices and biases of all heads."""
        heads, width, inner = spec.n_heads, spec.d_model, spec.d_head
        weight = Parameter(
            (heads, width, inner), normal(spec.init_std), True, ("model", "fsdp", None)
        )
        output = Parameter(
            (heads, inner, width), normal(spec.residual_init_std), True, ("model", None, "fsdp")
        )
        bias = Parameter((heads, inner), constant(0.0), axes=("model", None))
        return {
            **dict.fromkeys(("W_Q", "W_K", "W_V"), weight),
            "W_O": output,
            **dict.fromkeys(("b_Q", "b_K", "b_V"), bias),
            "b_O": Parameter((width,), constant(0.0)),
        }

    def __call__(
        self,
        query_in: Float[Array, "batch query_pos *head d_model"],
        key_in: Float[Array, "batch key_pos *head d_model"],
        value_in: Float[Array, "batch key_pos *head d_model"],
        hooks: HookContext,
        *,
        query_positions: Int[Array, "#batch query_pos"] | None = None,
    ) -> Float[Array, "batch query_pos d_model"]:
        """Compute the output of attention.

        Args:
          query_in: the normalized residual stream, `[batch, query_pos, d_model]`, or a separate
            input for each head, `[batch, query_pos, head, d_model]`.
          key_in: the input of the keys, `[batch, key_pos, d_model]`, or with a head axis.
          value_in: the input of the values, `[batch, key_pos, d_model]`, or with a head axis.
          hooks: receives `hook_q`, `hook_k`, `hook_v`, `hook_attn_scores`, `hook_pattern`, `hook_z`
            and `hook_result`.
          query_positions: the position of each query. A query attends to the keys at its own and
            at earlier positions. By default, the queries are at the last `query_pos` of the
            `key_pos` positions.

        Returns:
          The sum of the outputs of all heads and the output bias.
        """
        q, k, v = self.project(query_in, key_in, value_in, hooks)
        if query_positions is None:
            query_positions = jnp.arange(k.shape[1] - q.shape[1], k.shape[1])[None]
        return self.output(self.mix(q, k, v, hooks, query_positions=query_positions), hooks)

    def project(
        self, query_in: Array, key_in: Array, value_in: Array, hooks: HookContext
    ) -> tuple[Array, Array, Array]:
        """Return three arrays `[batch, pos, head, d_head]`: the queries, keys and values."""
        return (
            hooks("hook_q", self._project(query_in, self.W_Q, self.b_Q)),
            hooks("hook_k", self._project(key_in, self.W_K, self.b_K)),
            hooks("hook_v", self._project(value_in, self.W_V, self.b_V)),
        )

    def mix(
        self,
        q: Float[Array, "batch query_pos head d_head"],
        k: Float[Array, "batch key_pos head d_head"],
        v: Float[Array, "batch key_pos head d_head"],
        hooks: HookContext,
        *,
        query_positions: Int[Array, "#batch query_pos"],
    ) -> Float[Array, "batch query_pos head d_head"]:
        """Return the sum of the values, weighted by the attention pattern, for each query and head.

        A query attends to keys at the position of the query and at earlier positions.
        """
        visible = jnp.arange(k.shape[1])[None, None] <= query_positions[..., None]
        scores = _scores(q, k, self.precision) / jnp.sqrt(jnp.float32(q.shape[-1]))
        scores = jnp.where(visible[:, None], scores, -jnp.inf)
        scores = hooks("hook_attn_scores", scores)
        pattern = hooks("hook_pattern", jax.nn.softmax(scores, axis=-1).astype(v.dtype))
        return hooks("hook_z", _mix(pattern, v, self.precision))

    def _project(self, x: Array, weight: nnx.Param, bias: nnx.Param) -> Array:
        per_head = "h" if x.ndim == 4 else ""
        projected = jnp.einsum(
            f"bp{per_head}d,hde->bphe", x, weight[...].astype(x.dtype), precision=self.precision
        )
        return projected + expand_to_rank(bias[...], projected)

    def output(
        self, z: Float[Array, "batch query_pos head d_head"], hooks: HookContext
    ) -> Float[Array, "batch query_pos d_model"]:
        """Return the output of attention: the sum over all heads, plus the output bias.

        The outputs of single heads (`hook_result`) are computed only if this site is edited or
        returned.
        """
        weight = self.W_O[...].astype(z.dtype)
        if not hooks.asked("hook_result"):
            out = jnp.einsum("bphe,hed->bpd", z, weight, precision=self.precision)
        else:
            result = jnp.einsum("bphe,hed->bphd", z, weight, precision=self.precision)
            out = hooks("hook_result", result).sum(axis=2)
        return out + expand_to_rank(self.b_O[...], out)


# Up to this number of (query, key) pairs in one row, attention is written out as sums. On a CPU,
# matrix products of such small matrices take several times as long as these sums.
_FEW_PAIRS = 32


def _scores(q: Array, k: Array, precision: str) -> Float[Array, "batch head query_pos key_pos"]:
    """Return the dot product of every query with every key, float32."""
    if q.shape[1] * k.shape[1] > _FEW_PAIRS:
        return jnp.einsum(
            "bqhe,bkhe->bhqk", q, k, precision=precision, preferred_element_type=jnp.float32
        )
    queries, keys = _split(q.astype(jnp.float32), 1), _split(k.astype(jnp.float32), 1)
    rows = [jnp.stack([(query * key).sum(-1) for key in keys], axis=-1) for query in queries]
    return jnp.stack(rows, axis=2)


def _mix(pattern: Array, v: Array, precision: str) -> Float[Array, "batch query_pos head d_head"]:
    """Return, for each query and head, the sum of the values weighted by the pattern."""
    if pattern.shape[2] * pattern.shape[3] > _FEW_PAIRS:
        return jnp.einsum("bhqk,bkhe->bqhe", pattern, v, precision=precision)
    values = _split(v, 1)
    rows = []
    for row in _split(pattern, 2):
        weights = [weight[..., None] for weight in _split(row, 2)]
        rows.append(sum(weight * value for weight, value in zip(weights, values, strict=True)))
    return jnp.stack(rows, axis=1)


def _split(x: Array, axis: int) -> list[Array]:
    """Return the slices along an axis, without that axis.

    In the backward pass, the gradients of these slices are concatenated. If the slices were made by
    indexing, each gradient would be padded to the full shape, and the padded arrays would be added.
    """
    parts = jax.lax.split(x, (1,) * x.shape[axis], axis=axis)
    return [part.squeeze(axis) for part in parts]
