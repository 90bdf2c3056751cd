"""Embeddings and unembedding, with HookedTransformer's names and layouts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from implicit_reasoning.model.blocks.parameters import (
    Parameter,
    constant,
    create_parameters,
    normal,
)
from implicit_reasoning.model.spec import Spec


class Embed(nnx.Module):
    """Token embeddings `W_E [d_vocab, d_model]`."""

    W_E: nnx.Param[Array]

    def __init__(self, spec: Spec, rngs: nnx.Rngs):
        create_parameters(self, self.parameters(spec), rngs)

    @staticmethod
    def parameters(spec: Spec) -> dict[str, Parameter]:
        """Return the description of the token embeddings."""
        shape = (spec.d_vocab, spec.d_model)
        return {"W_E": Parameter(shape, normal(spec.init_std), True, (None, "fsdp"))}


class PosEmbed(nnx.Module):
    """Learned absolute position embeddings `W_pos [n_ctx, d_model]`."""

    W_pos: nnx.Param[Array]

    def __init__(self, spec: Spec, rngs: nnx.Rngs):
        create_parameters(self, self.parameters(spec), rngs)

    @staticmethod
    def parameters(spec: Spec) -> dict[str, Parameter]:
        """Return the description of the position embeddings."""
        shape = (spec.n_ctx, spec.d_model)
        return {"W_pos": Parameter(shape, normal(spec.init_std), True, (None, "fsdp"))}


class Unembed(nnx.Module):
    """The unembedding `W_U [d_model, d_vocab]`, with an optional logit bias `b_U [d_vocab]`.

    A model with tied embeddings has no `W_U`.
    """

    W_U: nnx.Param[Array]
    b_U: nnx.Param[Array]

    def __init__(self, spec: Spec, rngs: nnx.Rngs):
        create_parameters(self, self.parameters(spec), rngs)

    @staticmethod
    def parameters(spec: Spec) -> dict[str, Parameter]:
        """Return the description of `W_U` unless embeddings are tied, and of `b_U` if needed."""
        shape = (spec.d_model, spec.d_vocab)
        weight = Parameter(shape, normal(spec.init_std), True, ("fsdp", None))
        bias = Parameter((spec.d_vocab,), constant(0.0))
        return {
            **({} if spec.tied else {"W_U": weight}),
            **({"b_U": bias} if spec.unembed_bias else {}),
        }


def unembedding_matrix(params: Mapping[str, Any]) -> Float[Array, "d_model d_vocab"]:
    """Return the matrix `W_U` that maps states to logits, without the final norm and the bias.

    A model with tied embeddings has no `W_U`, and the transposed `W_E` is returned.

    Args:
      params: the parameters of one model.
    """
    weight = params.get("unembed", {}).get("W_U")
    return jnp.asarray(params["embed"]["W_E"].T if weight is None else weight)
