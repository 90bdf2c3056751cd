"""ReLU with an L1 penalty: the plainest sparse dictionary.

Source: Bricken et al. 2023; the penalty weighs an activation by what it writes (Anthropic, April
2024 update), so that no decoder norm need be constrained.
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
    """See the module; `sparsity` is the coefficient of the L1 penalty."""

    name: ClassVar[str] = "relu"
    sparsity_kind: ClassVar[str] = "l1"
    saelens_architecture: ClassVar[str] = "standard"

    def encode(
        self, architecture: Architecture, params: Params, x: Inputs, sparsity: Scalar
    ) -> Encoded:
        """`relu(x W_enc + b_enc)`."""
        pre = architecture.project(params, x) + params["b_enc"][None]
        return Encoded(jax.nn.relu(pre), pre)

    def terms(
        self, architecture: Architecture, params: Params, forward: ForwardPass
    ) -> dict[str, Scalar]:
        """`sparsity * sum_i acts_i norm_i`, averaged over the batch."""
        acts = forward.encoded.dense
        return {"l1": forward.sparsity * (acts * architecture.norms(params)[None]).sum(-1).mean()}
