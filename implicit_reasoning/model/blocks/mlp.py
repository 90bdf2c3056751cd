"""The MLP, with HookedTransformer's names and layouts."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from implicit_reasoning.model.blocks.parameters import (
    Parameter,
    constant,
    create_parameters,
    normal,
)
from implicit_reasoning.model.edits import HookContext, expand_to_rank
from implicit_reasoning.model.spec import Spec

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


class MLP(nnx.Module):
    """Two linear maps with an activation function between them."""

    W_in: nnx.Param[Array]
    b_in: nnx.Param[Array]
    W_out: nnx.Param[Array]
    b_out: nnx.Param[Array]

    def __init__(self, spec: Spec, rngs: nnx.Rngs):
        create_parameters(self, self.parameters(spec), rngs)
        self.act_fn = spec.act_fn
        self.precision = spec.precision

    @staticmethod
    def parameters(spec: Spec) -> dict[str, Parameter]:
        """Return the descriptions of the weights and biases, by name."""
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
        """Compute the output for normalized residuals; `hooks` gets `hook_pre` and `hook_post`."""
        pre = _linear(x, self.W_in[...], self.precision)
        pre = hooks("hook_pre", pre + expand_to_rank(self.b_in[...], pre))
        post = hooks("hook_post", ACTIVATIONS[self.act_fn](pre))
        out = _linear(post, self.W_out[...], self.precision)
        return out + expand_to_rank(self.b_out[...], out)


def _linear(x: Array, weight: Array, precision: str) -> Array:
    """Return `x @ weight`, `[batch, pos, in] @ [in, out] -> [batch, pos, out]`.

    The weight gets an extra axis of size 1. Without this axis, XLA folds a transposition into the
    matrix product that computes the gradient of the weight, and XLA's CPU kernels run such a
    product at half the speed.
    """
    weight = weight.astype(x.dtype)[None]
    return jnp.einsum("bpd,odm->bpom", x, weight, precision=precision)[:, :, 0]
