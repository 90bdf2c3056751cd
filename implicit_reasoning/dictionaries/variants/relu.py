"""ReLU with an L1 penalty: the plainest sparse dictionary.

Source: Bricken et al. 2023; the penalty weighs an activation by what it writes (Anthropic, April
2024 update), so that no decoder norm need be constrained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax

from implicit_reasoning.dictionaries.kinds import Inputs, Kind
from implicit_reasoning.dictionaries.variants.base import Encoded, Pass, Scalar, Variant
from implicit_reasoning.model import Params


@dataclass(frozen=True)
class ReLU(Variant):
    """See the module; `sparsity` is the coefficient of the L1 penalty."""

    name: ClassVar[str] = "relu"
    knob: ClassVar[str] = "l1"
    architecture: ClassVar[str] = "standard"

    def encode(self, kind: Kind, params: Params, x: Inputs, sparsity: Scalar) -> Encoded:
        """`relu(x W_enc + b_enc)`."""
        pre = kind.project(params, x) + params["b_enc"][None]
        return Encoded(jax.nn.relu(pre), pre)

    def terms(self, kind: Kind, params: Params, seen: Pass) -> dict[str, Scalar]:
        """`sparsity * sum_i acts_i norm_i`, averaged over the batch."""
        acts = seen.encoded.dense
        return {"l1": seen.sparsity * (acts * kind.norms(params)[None]).sum(-1).mean()}
