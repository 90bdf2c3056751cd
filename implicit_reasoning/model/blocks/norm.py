"""Layer norm, and the identity that replaces layer norm in a model without norms."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from implicit_reasoning.model.blocks.parameters import Parameter, constant, create_parameters
from implicit_reasoning.model.edits import HookContext, expand_to_rank
from implicit_reasoning.model.sites import RESID, SCALE, Dims
from implicit_reasoning.model.spec import Spec


class Norm(nnx.Module):
    """Layer norm; `hook_normalized` is the value after weight and bias, as in TransformerLens."""

    w: nnx.Param[Array]
    b: nnx.Param[Array]

    def __init__(self, spec: Spec, rngs: nnx.Rngs):
        create_parameters(self, self.parameters(spec), rngs)
        self.eps = spec.eps
        self.dtype = spec.dtype

    def __call__(
        self,
        x: Float[Array, "*rest d_model"],
        hooks: HookContext,
        *,
        scale: Float[Array, "*rest 1"] | None = None,
    ) -> Float[Array, "*rest d_model"]:
        """Normalize `x`.

        Args:
          x: the residual stream.
          hooks: receives `hook_scale` and `hook_normalized`.
          scale: a scale to use in place of the scale of `x`, such as the scale of another run
            ("frozen LN"). With a given scale, the norm is affine in `x`.
        """
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
        """Return the descriptions of the weight `w` and the bias `b`."""
        width = (spec.d_model,)
        return {"w": Parameter(width, constant(1.0)), "b": Parameter(width, constant(0.0))}


class NoNorm(nnx.Module):
    """The identity, which replaces the norm in a model without norms."""

    def __init__(self, spec: Spec, rngs: nnx.Rngs):
        self.dtype = spec.dtype

    def __call__(
        self,
        x: Float[Array, "*rest d_model"],
        hooks: HookContext,
        *,
        scale: Float[Array, "*rest 1"] | None = None,
    ) -> Float[Array, "*rest d_model"]:
        """Return `x` in the dtype of the activations."""
        return x.astype(self.dtype)

    @staticmethod
    def parameters(spec: Spec) -> dict[str, Parameter]:
        """Return an empty table, because the identity has no parameters."""
        return {}


def norm_class(spec: Spec) -> type[Norm] | type[NoNorm]:
    """Return the norm class for `spec.normalization`: `Norm` or `NoNorm`."""
    return Norm if spec.normalization == "LN" else NoNorm


def norm_sites(name: str, spec: Spec) -> dict[str, Dims]:
    """Return the sites (hook points) of the norm called `name`; empty for a model without norms."""
    if spec.normalization != "LN":
        return {}
    return {f"{name}.hook_scale": SCALE, f"{name}.hook_normalized": RESID}
