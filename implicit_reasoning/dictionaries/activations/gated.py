"""Define the Gated activation function.

A gate selects the active features, and a second path computes their magnitudes. The L1 penalty
applies to the gate only, so the penalty does not shrink magnitudes. The gate is trained with an
auxiliary loss: the error of a reconstruction from gate activations. No gradient of the penalty or
of the auxiliary loss flows to the decoder. Otherwise, training would shrink decoder rows without
limit to reduce the penalty.

Source: Rajamanoharan et al. 2024, "Improving dictionary learning with gated sparse autoencoders",
section 3.2. In the paper and here, the auxiliary loss does not train the decoder. In SAELens, the
auxiliary loss trains the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from implicit_reasoning.dictionaries.activations.base import (
    ActivationFn,
    Encoded,
    ForwardPass,
    Scalar,
)
from implicit_reasoning.dictionaries.architectures import Architecture, Inputs
from implicit_reasoning.model import Params


@dataclass(frozen=True)
class Gated(ActivationFn):
    """Gated activation. The sparsity is the coefficient of the L1 penalty on the gate."""

    name: ClassVar[str] = "gated"
    sparsity_kind: ClassVar[str] = "l1"
    saelens_architecture: ClassVar[str] = "gated"

    def init(self, architecture: Architecture) -> Params:
        """Return zero values for `b_gate`, `b_mag` and `r_mag`.

        `b_gate` and `b_mag` are the biases of the gate and of the magnitudes. The magnitude path
        multiplies the encoder weights of the gate by `exp(r_mag)`.
        """
        return {name: jnp.zeros(architecture.d_sae) for name in ("b_gate", "b_mag", "r_mag")}

    def encode(
        self, architecture: Architecture, params: Params, x: Inputs, sparsity: Scalar
    ) -> Encoded:
        """Return magnitudes where the gate's pre-activation is positive, and 0 elsewhere.

        The field `pre` of the result contains the gate's pre-activations.
        """
        projected = architecture.project(params, x)
        gate = projected + params["b_gate"][None]
        magnitude = projected * jnp.exp(params["r_mag"])[None] + params["b_mag"][None]
        return Encoded(jnp.where(gate > 0, jax.nn.relu(magnitude), 0.0), gate)

    def terms(
        self, architecture: Architecture, params: Params, forward: ForwardPass
    ) -> dict[str, Scalar]:
        """Return the L1 penalty on the gate (`l1`) and the auxiliary loss (`gate`)."""
        opened = jax.nn.relu(forward.encoded.pre)
        frozen = jax.lax.stop_gradient(params)
        said = architecture.write(frozen, opened) + architecture.base(frozen, forward.x)
        return {
            "l1": forward.sparsity * (opened * architecture.norms(frozen)[None]).sum(-1).mean(),
            "gate": ((said - forward.y) ** 2).sum(-1).mean(),
        }

    def scaled(self, params: Params, norms: Float[Array, " d_sae"], threshold: Scalar) -> Params:
        """Return `b_gate` and `b_mag`, multiplied by `norms`."""
        return {name: params[name] * norms for name in ("b_gate", "b_mag")}
