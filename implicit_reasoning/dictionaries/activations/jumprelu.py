"""Define JumpReLU, in which each feature has a learned threshold.

With mode "step", the penalty is the number of active features (L0). With mode "tanh", the penalty
is the sum over features of `tanh(4 * activation * decoder_norm)`. The derivative of a step function
is 0 almost everywhere. A straight-through estimator therefore replaces the derivative by a
rectangular kernel around the threshold. With "step", only the thresholds receive the estimated
gradient. With "tanh", the pre-activations also receive the estimated gradient.

Sources: Rajamanoharan et al. 2024, "Jumping ahead", section 3 (mode "step"). Conerly et al. 2025,
Anthropic's January update (mode "tanh" and the option `revive`).
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
    """JumpReLU activation. The sparsity is the coefficient of the penalty.

    Attributes:
      mode: "step" for the penalty L0, or "tanh" for the penalty `sum(tanh(4 * activation *
        decoder_norm))`.
      threshold: initial threshold of all features.
      bandwidth: width of the kernel that estimates the threshold's gradient, in units of
        pre-activations.
      revive: coefficient of a penalty for dead features. The penalty of a feature is
        `relu(threshold - pre) * decoder_norm`.
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
            raise InputError(f"mode is {self.mode!r}; it must be one of {', '.join(MODES)}")

    def init(self, architecture: Architecture) -> Params:
        """Return initial encoder biases and thresholds."""
        return super().init(architecture) | {
            "threshold": jnp.full(architecture.d_sae, self.threshold, jnp.float32)
        }

    def encode(
        self, architecture: Architecture, params: Params, x: Inputs, sparsity: Scalar
    ) -> Encoded:
        """Return pre-activations above the feature's threshold, and 0 elsewhere."""
        pre = architecture.project(params, x) + params["b_enc"][None]
        shape = self.bandwidth, self.mode == "tanh"
        return Encoded(jump(pre, params["threshold"], *shape), pre)

    def terms(
        self, architecture: Architecture, params: Params, forward: ForwardPass
    ) -> dict[str, Scalar]:
        """Return the sparsity penalty `l0`.

        If `revive` is not 0, the result also contains the penalty `revive` for dead features.

        """
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
        """Set negative thresholds to 0.

        Training clips thresholds after each step. Clipping in the forward pass would remove the
        gradient of a negative threshold, so the threshold would stay negative.
        """
        return params | {"threshold": jax.nn.relu(params["threshold"])}

    def scaled(self, params: Params, norms: Float[Array, " d_sae"], threshold: Scalar) -> Params:
        """Return encoder biases and thresholds, multiplied by `norms`."""
        own = super().scaled(params, norms, threshold)
        return own | {"threshold": params["threshold"] * norms}


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def jump(
    pre: Features, threshold: Float[Array, " d_sae"], bandwidth: float, to_pre: bool
) -> Features:
    """Return `pre` where `pre > threshold`, and 0 elsewhere.

    Args:
      pre: [batch, d_sae] pre-activations.
      threshold: [d_sae] thresholds.
      bandwidth: width of the kernel that estimates the threshold's gradient. Static under
        `jax.jit`.
      to_pre: whether `pre` also receives the estimated gradient. Static under `jax.jit`.
    """
    return jnp.where(pre > threshold[None], pre, 0.0)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def step(
    pre: Features, threshold: Float[Array, " d_sae"], bandwidth: float, to_pre: bool
) -> Features:
    """Return 1 where `pre > threshold`, and 0 elsewhere. The arguments match those of `jump`."""
    return (pre > threshold[None]).astype(pre.dtype)


Saved = tuple[Array, Array]


def _near(saved: Saved, bandwidth: float, grad: Features) -> Features:
    """Return the estimated derivative of a step function, times the gradient `grad`."""
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
