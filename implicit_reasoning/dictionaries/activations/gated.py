"""Gated: one path says which features are active, another how much.

The penalty is on the gate alone, so that it does not shrink magnitudes; the gate learns from a
reconstruction of its own, and neither moves the decoder. Else rows would shrink without end: what a
row writes less the magnitude makes up for, but nothing the gate.

Source: Rajamanoharan et al. 2024, "Improving dictionary learning with gated sparse autoencoders",
section 3.2. There, as here, that reconstruction sees the decoder frozen; SAELens lets it move.
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
    """See the module; `sparsity` is the coefficient of the L1 penalty on the gate."""

    name: ClassVar[str] = "gated"
    sparsity_kind: ClassVar[str] = "l1"
    saelens_architecture: ClassVar[str] = "gated"

    def init(self, architecture: Architecture) -> Params:
        """Both biases, and the logarithm of the ratio of both paths' weights."""
        return {name: jnp.zeros(architecture.d_sae) for name in ("b_gate", "b_mag", "r_mag")}

    def encode(
        self, architecture: Architecture, params: Params, x: Inputs, sparsity: Scalar
    ) -> Encoded:
        """Magnitudes where the gate is open; `pre` is the gate's."""
        projected = architecture.project(params, x)
        gate = projected + params["b_gate"][None]
        magnitude = projected * jnp.exp(params["r_mag"])[None] + params["b_mag"][None]
        return Encoded(jnp.where(gate > 0, jax.nn.relu(magnitude), 0.0), gate)

    def terms(
        self, architecture: Architecture, params: Params, forward: ForwardPass
    ) -> dict[str, Scalar]:
        """The penalty, and the reconstruction from the gate."""
        opened = jax.nn.relu(forward.encoded.pre)
        frozen = jax.lax.stop_gradient(params)
        said = architecture.write(frozen, opened) + architecture.base(frozen, forward.x)
        return {
            "l1": forward.sparsity * (opened * architecture.norms(frozen)[None]).sum(-1).mean(),
            "gate": ((said - forward.y) ** 2).sum(-1).mean(),
        }

    def scaled(self, params: Params, norms: Float[Array, " d_sae"], threshold: Scalar) -> Params:
        """Both biases grow; their ratio stays."""
        return {name: params[name] * norms for name in ("b_gate", "b_mag")}
