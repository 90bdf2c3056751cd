"""Define ReLU with an L1 penalty, as in the standard sparse autoencoder.

Sources: Bricken et al. 2023. The penalty multiplies each activation by the decoder norm of the
feature (Anthropic, April 2024 update), so decoder norms need no constraint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax

from implicit_reasoning.dictionaries.activations.base import (
    ActivationFn,
    Encoded,
    ForwardPass,
    Scalar,
)
from implicit_reasoning.dictionaries.architectures import Architecture, Inputs
from implicit_reasoning.model import Params


@dataclass(frozen=True)
class ReLU(ActivationFn):
    """ReLU activation. The sparsity is the coefficient of the L1 penalty."""

    name: ClassVar[str] = "relu"
    sparsity_kind: ClassVar[str] = "l1"
    saelens_architecture: ClassVar[str] = "standard"

    def encode(
        self, architecture: Architecture, params: Params, x: Inputs, sparsity: Scalar
    ) -> Encoded:
        """Compute `relu(x W_enc + b_enc)`."""
        pre = architecture.project(params, x) + params["b_enc"][None]
        return Encoded(jax.nn.relu(pre), pre)

    def terms(
        self, architecture: Architecture, params: Params, forward: ForwardPass
    ) -> dict[str, Scalar]:
        """Return the batch mean of the L1 penalty `sparsity * sum_i(acts_i * decoder_norm_i)`."""
        acts = forward.encoded.dense
        return {"l1": forward.sparsity * (acts * architecture.norms(params)[None]).sum(-1).mean()}
