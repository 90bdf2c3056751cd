"""Gated: a first path, the gate, selects the active features. A second path computes magnitudes.

The L1 penalty applies to the gate only, so it does not shrink magnitudes. The gate is trained
through an auxiliary reconstruction from gate activations. No gradient of the penalty or of the
auxiliary reconstruction reaches the decoder. Otherwise decoder rows would shrink without limit,
because larger magnitudes compensate for smaller rows while the penalty decreases.

Source: Rajamanoharan et al. 2024, "Improving dictionary learning with gated sparse autoencoders",
section 3.2. As in the paper, the auxiliary reconstruction does not train the decoder. In SAELens,
it does.
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
        """Return the biases of both paths, and the log ratio of the paths' encoder weights."""
        return {name: jnp.zeros(architecture.d_sae) for name in ("b_gate", "b_mag", "r_mag")}

    def encode(
        self, architecture: Architecture, params: Params, x: Inputs, sparsity: Scalar
    ) -> Encoded:
        """Compute magnitudes where the gate is open, and 0 elsewhere.

        In the result, `pre` is the pre-activation of the gate.
        """
        projected = architecture.project(params, x)
        gate = projected + params["b_gate"][None]
        magnitude = projected * jnp.exp(params["r_mag"])[None] + params["b_mag"][None]
        return Encoded(jnp.where(gate > 0, jax.nn.relu(magnitude), 0.0), gate)

    def terms(
        self, architecture: Architecture, params: Params, forward: ForwardPass
    ) -> dict[str, Scalar]:
        """Return the L1 penalty on the gate, and the auxiliary reconstruction error."""
        opened = jax.nn.relu(forward.encoded.pre)
        frozen = jax.lax.stop_gradient(params)
        said = architecture.write(frozen, opened) + architecture.base(frozen, forward.x)
        return {
            "l1": forward.sparsity * (opened * architecture.norms(frozen)[None]).sum(-1).mean(),
            "gate": ((said - forward.y) ** 2).sum(-1).mean(),
        }

    def scaled(self, params: Params, norms: Float[Array, " d_sae"], threshold: Scalar) -> Params:
        """Scale both biases by `norms`; `r_mag` does not change."""
        return {name: params[name] * norms for name in ("b_gate", "b_mag")}
