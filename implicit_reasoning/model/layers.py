"""The parts of a GPT-2-style decoder: Flax NNX modules with HookedTransformer's names and layouts.

The parts do not know how they are wired: attention takes separate query, key and value inputs and,
when only a suffix of the positions is recomputed, the keys and values of a clean prefix; a norm
takes, when it is to be held linear, the scale of another run. `Transformer.forward` is one wiring;
trimmed training, path patching and frozen replacement models are others.

Sources: Radford et al. 2019 (GPT-2); names and layouts of TransformerLens's HookedTransformer.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from implicit_reasoning.model.blocks.parameters import Parameter, constant, create, normal
from implicit_reasoning.model.edits import HookContext, expand_to_rank
from implicit_reasoning.model.spec import Spec

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


class Norm(nnx.Module):
    """Layer norm; `hook_normalized` is after weight and bias, as in TransformerLens."""

    w: nnx.Param[Array]
    b: nnx.Param[Array]

    def __init__(self, spec: Spec, rngs: nnx.Rngs):
        create(self, self.parameters(spec), rngs)
        self.eps = spec.eps
        self.dtype = spec.dtype

    def __call__(
        self,
        x: Float[Array, "*rest d_model"],
        hooks: HookContext,
        *,
        scale: Float[Array, "*rest 1"] | None = None,
    ) -> Float[Array, "*rest d_model"]:
        """Normalise `x`; with `scale` (of a clean run) the map is affine in `x` ("frozen LN")."""
        x = x.astype(jnp.float32)
        centred = x - x.mean(-1, keepdims=True)
        if scale is None:
            scale = jnp.sqrt((centred**2).mean(-1, keepdims=True) + self.eps)
        scale = hooks("hook_scale", scale)
        normalized = centred / scale * expand_to_rank(self.w[...], x)
        normalized += expand_to_rank(self.b[...], x)
        return hooks("hook_normalized", normalized.astype(self.dtype))

    @staticmethod
    def parameters(spec: Spec) -> dict[str, Parameter]:
        """Weight `w` and bias `b`."""
        width = (spec.d_model,)
        return {"w": Parameter(width, constant(1.0)), "b": Parameter(width, constant(0.0))}


class NoNorm(nnx.Module):
    """What stands in a norm's place in a model without norms."""

    def __init__(self, spec: Spec, rngs: nnx.Rngs):
        self.dtype = spec.dtype

    def __call__(
        self,
        x: Float[Array, "*rest d_model"],
        hooks: HookContext,
        *,
        scale: Float[Array, "*rest 1"] | None = None,
    ) -> Float[Array, "*rest d_model"]:
        """`x`, in the dtype of activations."""
        return x.astype(self.dtype)

    @staticmethod
    def parameters(spec: Spec) -> dict[str, Parameter]:
        """None."""
        return {}


def norm_class(spec: Spec) -> type[Norm] | type[NoNorm]:
    """The norm that the spec asks for."""
    return Norm if spec.normalization == "LN" else NoNorm


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
        create(self, self.parameters(spec), rngs)
        self.precision = spec.precision

    @staticmethod
    def parameters(spec: Spec) -> dict[str, Parameter]:
        """Projections of every head, split by head."""
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
        prefix: tuple[Array, Array] | None = None,
    ) -> Float[Array, "batch query_pos d_model"]:
        """Attend.

        Args:
          query_in: normalised residual, `[batch, pos, d_model]`, or one for each head,
            `[batch, pos, head, d_model]`.
          key_in: the same, for the keys.
          value_in: the same, for the values.
          hooks: is passed `hook_q` ... `hook_result`.
          query_positions: where the queries stand (they see keys up to there); by default they
            are the positions after the prefix, in order.
          prefix: `hook_k` and `hook_v` of earlier positions, `[batch, prefix_pos, head, d_head]`;
            `key_in` and `value_in` then hold the later positions only.

        Returns:
          The sum over heads and the output bias.
        """
        q, k, v = self.project(query_in, key_in, value_in, hooks)
        if prefix is not None:
            k = jnp.concatenate([prefix[0], k], axis=1)
            v = jnp.concatenate([prefix[1], v], axis=1)
        if query_positions is None:
            query_positions = jnp.arange(k.shape[1] - q.shape[1], k.shape[1])[None]
        return self.output(self.mix(q, k, v, hooks, query_positions=query_positions), hooks)

    def project(
        self, query_in: Array, key_in: Array, value_in: Array, hooks: HookContext
    ) -> tuple[Array, Array, Array]:
        """Queries, keys and values of the inputs, each `[batch, pos, head, d_head]`."""
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
        """Values, weighted by how much each query attends to keys up to its own position."""
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
        """The sum over heads of what they write for `z`, and the bias; passes `hook_result`."""
        weight = self.W_O[...].astype(z.dtype)
        if not hooks.asked("hook_result"):
            out = jnp.einsum("bphe,hed->bpd", z, weight, precision=self.precision)
        else:
            result = jnp.einsum("bphe,hed->bphd", z, weight, precision=self.precision)
            out = hooks("hook_result", result).sum(axis=2)
        return out + expand_to_rank(self.b_O[...], out)


class MLP(nnx.Module):
    """Two linear maps and an activation."""

    W_in: nnx.Param[Array]
    b_in: nnx.Param[Array]
    W_out: nnx.Param[Array]
    b_out: nnx.Param[Array]

    def __init__(self, spec: Spec, rngs: nnx.Rngs):
        create(self, self.parameters(spec), rngs)
        self.act_fn = spec.act_fn
        self.precision = spec.precision

    @staticmethod
    def parameters(spec: Spec) -> dict[str, Parameter]:
        """Both maps, split by neuron."""
        width, neurons = spec.d_model, spec.d_mlp
        into = Parameter((width, neurons), normal(spec.init_std), True, ("fsdp", "model"))
        out = Parameter((neurons, width), normal(spec.residual_init_std), True, ("model", "fsdp"))
        return {
            "W_in": into,
            "b_in": Parameter((neurons,), constant(0.0), axes=("model",)),
            "W_out": out,
            "b_out": Parameter((width,), constant(0.0)),
        }

    def __call__(
        self, x: Float[Array, "batch pos d_model"], hooks: HookContext
    ) -> Float[Array, "batch pos d_model"]:
        """The output for normalised residuals; passes `hook_pre` and `hook_post`."""
        pre = _linear(x, self.W_in[...], self.precision)
        pre = hooks("hook_pre", pre + expand_to_rank(self.b_in[...], pre))
        post = hooks("hook_post", ACTIVATIONS[self.act_fn](pre))
        out = _linear(post, self.W_out[...], self.precision)
        return out + expand_to_rank(self.b_out[...], out)


class Embed(nnx.Module):
    """Token embeddings `W_E [d_vocab, d_model]`."""

    W_E: nnx.Param[Array]

    def __init__(self, spec: Spec, rngs: nnx.Rngs):
        create(self, self.parameters(spec), rngs)

    @staticmethod
    def parameters(spec: Spec) -> dict[str, Parameter]:
        """The table of tokens."""
        shape = (spec.d_vocab, spec.d_model)
        return {"W_E": Parameter(shape, normal(spec.init_std), True, (None, "fsdp"))}


class PosEmbed(nnx.Module):
    """Learned absolute positions `W_pos [n_ctx, d_model]`."""

    W_pos: nnx.Param[Array]

    def __init__(self, spec: Spec, rngs: nnx.Rngs):
        create(self, self.parameters(spec), rngs)

    @staticmethod
    def parameters(spec: Spec) -> dict[str, Parameter]:
        """The table of positions."""
        shape = (spec.n_ctx, spec.d_model)
        return {"W_pos": Parameter(shape, normal(spec.init_std), True, (None, "fsdp"))}


class Unembed(nnx.Module):
    """Logit weights `W_U [d_model, d_vocab]`, absent when tied to `W_E`, and, if asked, a bias."""

    W_U: nnx.Param[Array]
    b_U: nnx.Param[Array]

    def __init__(self, spec: Spec, rngs: nnx.Rngs):
        create(self, self.parameters(spec), rngs)

    @staticmethod
    def parameters(spec: Spec) -> dict[str, Parameter]:
        """What the spec asks for of `W_U` and `b_U`."""
        shape = (spec.d_model, spec.d_vocab)
        weight = Parameter(shape, normal(spec.init_std), True, ("fsdp", None))
        bias = Parameter((spec.d_vocab,), constant(0.0))
        return {
            **({} if spec.tied else {"W_U": weight}),
            **({"b_U": bias} if spec.unembed_bias else {}),
        }


def _linear(x: Array, weight: Array, precision: str) -> Array:
    """`x @ weight`, `[batch, pos, into] [into, out] -> [batch, pos, out]`.

    The weight's extra axis of one keeps XLA from folding a transposition into the product that is
    the weight's gradient: its CPU kernels do those at half speed.
    """
    weight = weight.astype(x.dtype)[None]
    return jnp.einsum("bpd,odm->bpom", x, weight, precision=precision)[:, :, 0]


# Of a query and a key, in one row. Below that, on a CPU, products of tiny matrices take several
# times as long as their sums written out.
_FEW_PAIRS = 32


def _scores(q: Array, k: Array, precision: str) -> Float[Array, "batch head query_pos key_pos"]:
    """Dot products of queries and keys, float32."""
    if q.shape[1] * k.shape[1] > _FEW_PAIRS:
        return jnp.einsum(
            "bqhe,bkhe->bhqk", q, k, precision=precision, preferred_element_type=jnp.float32
        )
    queries, keys = _split(q.astype(jnp.float32), 1), _split(k.astype(jnp.float32), 1)
    rows = [jnp.stack([(query * key).sum(-1) for key in keys], axis=-1) for query in queries]
    return jnp.stack(rows, axis=2)


def _mix(pattern: Array, v: Array, precision: str) -> Float[Array, "batch query_pos head d_head"]:
    """Values, weighted by the pattern."""
    if pattern.shape[2] * pattern.shape[3] > _FEW_PAIRS:
        return jnp.einsum("bhqk,bkhe->bqhe", pattern, v, precision=precision)
    values = _split(v, 1)
    rows = []
    for row in _split(pattern, 2):
        weights = [weight[..., None] for weight in _split(row, 2)]
        rows.append(sum(weight * value for weight, value in zip(weights, values, strict=True)))
    return jnp.stack(rows, axis=1)


def _split(x: Array, axis: int) -> list[Array]:
    """The slices along an axis; unlike those of indexing, their gradients are concatenated."""
    parts = jax.lax.split(x, (1,) * x.shape[axis], axis=axis)
    return [part.squeeze(axis) for part in parts]
