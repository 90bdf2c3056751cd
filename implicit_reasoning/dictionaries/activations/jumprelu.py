"""JumpReLU: each feature has a threshold of its own, learnt through a straight-through estimator.

The penalty counts active features (L0), or `tanh` of what they write; a step has no gradient, so
that the threshold gets the one that a kernel of some bandwidth around it estimates.

Sources: Rajamanoharan et al. 2024, "Jumping ahead", section 3 (step; gradient of the threshold
alone); Conerly et al. 2025 (Anthropic, January update: tanh, gradient of all, and a penalty that
pulls dead features back over their threshold).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
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
from implicit_reasoning.dictionaries.architectures import Architecture, Features, Inputs
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Params

MODES = ("step", "tanh")
_TANH_SCALE = 4.0


@dataclass(frozen=True)
class JumpReLU(ActivationFn):
    """See the module; `sparsity` is the coefficient of the penalty.

    Attributes:
      mode: "step", or "tanh", with which estimates reach the encoder, too.
      threshold: at the start.
      bandwidth: of the kernel, in units of pre-activations.
      revive: coefficient of the penalty on dead features' distance from their threshold.
    """

    mode: str = "step"
    threshold: float = 0.01
    bandwidth: float = 0.05
    revive: float = 0.0

    name: ClassVar[str] = "jumprelu"
    sparsity_kind: ClassVar[str] = "l0"
    saelens_architecture: ClassVar[str] = "jumprelu"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"mode is {self.mode!r}; it is one of {', '.join(MODES)}")

    def init(self, architecture: Architecture) -> Params:
        """Also the thresholds."""
        return super().init(architecture) | {
            "threshold": jnp.full(architecture.d_sae, self.threshold, jnp.float32)
        }

    def encode(
        self, architecture: Architecture, params: Params, x: Inputs, sparsity: Scalar
    ) -> Encoded:
        """Pre-activations above their thresholds."""
        pre = architecture.project(params, x) + params["b_enc"][None]
        shape = self.bandwidth, self.mode == "tanh"
        return Encoded(jump(pre, params["threshold"], *shape), pre)

    def terms(
        self, architecture: Architecture, params: Params, forward: ForwardPass
    ) -> dict[str, Scalar]:
        """The count, or what stands for it; and dead features' distance, if asked for."""
        pre, threshold = forward.encoded.pre, params["threshold"]
        norms = architecture.norms(params)[None]
        if self.mode == "tanh":
            count = jnp.tanh(_TANH_SCALE * forward.encoded.dense * norms)
        else:
            count = step(pre, threshold, self.bandwidth, False)
        terms = {"l0": forward.sparsity * count.sum(-1).mean()}
        if self.revive:
            short = jax.nn.relu(threshold[None] - pre) * forward.dead[None] * norms
            terms["revive"] = self.revive * short.sum(-1).mean()
        return terms

    def project(self, params: Params) -> Params:
        """No threshold is negative; set back after a step, so that none is caught at 0."""
        return params | {"threshold": jax.nn.relu(params["threshold"])}

    def scaled(self, params: Params, norms: Float[Array, " d_sae"], threshold: Scalar) -> Params:
        """Thresholds grow as pre-activations do."""
        own = super().scaled(params, norms, threshold)
        return own | {"threshold": params["threshold"] * norms}


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def jump(
    pre: Features, threshold: Float[Array, " d_sae"], bandwidth: float, to_pre: bool
) -> Features:
    """`pre` where it is above the threshold, else 0."""
    return jnp.where(pre > threshold[None], pre, 0.0)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def step(
    pre: Features, threshold: Float[Array, " d_sae"], bandwidth: float, to_pre: bool
) -> Features:
    """1 where `pre` is above the threshold, else 0."""
    return (pre > threshold[None]).astype(pre.dtype)


Saved = tuple[Array, Array]


def _near(saved: Saved, bandwidth: float, grad: Features) -> Features:
    """The estimate of a step's derivative, times the gradient."""
    pre, threshold = saved
    near = jnp.abs(pre - threshold[None]) < bandwidth / 2
    return jnp.where(near, grad / bandwidth, 0.0)


def _jump_forward(
    pre: Array, threshold: Array, bandwidth: float, to_pre: bool
) -> tuple[Array, Saved]:
    return jump(pre, threshold, bandwidth, to_pre), (pre, threshold)


def _jump_backward(
    bandwidth: float, to_pre: bool, saved: Saved, grad: Array
) -> tuple[Array, Array]:
    pre, threshold = saved
    at_threshold = threshold[None] * _near(saved, bandwidth, grad)
    passed = jnp.where(pre > threshold[None], grad, 0.0)
    return passed + at_threshold if to_pre else passed, -at_threshold.sum(0)


def _step_forward(
    pre: Array, threshold: Array, bandwidth: float, to_pre: bool
) -> tuple[Array, Saved]:
    return step(pre, threshold, bandwidth, to_pre), (pre, threshold)


def _step_backward(
    bandwidth: float, to_pre: bool, saved: Saved, grad: Array
) -> tuple[Array, Array]:
    near = _near(saved, bandwidth, grad)
    return near if to_pre else jnp.zeros_like(near), -near.sum(0)


jump.defvjp(_jump_forward, _jump_backward)
step.defvjp(_step_forward, _step_backward)
