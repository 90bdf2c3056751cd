"""AdamW with the settings of the published runs.

The learning rate warms up linearly. Weight decay is decoupled and applies to weights only.
Gradients are clipped. The learning rate and the weight decay are arguments of the update
(`Hyperparameters`), not compile-time constants. Trials with different learning rates or weight
decays can therefore be trained with `vmap`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.blocks.parameters import unflatten_params


class Hyperparameters(NamedTuple):
    """Hyperparameters that may differ between jointly trained models; float32 scalars."""

    learning_rate: Float[Array, ""]
    weight_decay: Float[Array, ""]


@dataclass(frozen=True)
class OptimizerSettings:
    """Settings from the configuration group `optimizer`.

    The module `runs.fields` describes each field.
    """

    learning_rate: float
    weight_decay: float
    warmup_steps: int
    schedule: str
    final_fraction: float
    b1: float
    b2: float
    eps: float
    clip_norm: float


def hyperparameters(settings: OptimizerSettings) -> Hyperparameters:
    """Return the learning rate and the weight decay as float32 scalars."""
    return Hyperparameters(jnp.float32(settings.learning_rate), jnp.float32(settings.weight_decay))


def relative_rate(settings: OptimizerSettings, horizon: int) -> optax.Schedule:
    """Return the schedule of the learning rate as a fraction of its peak.

    The fraction increases linearly from 0 to 1 over `warmup_steps`. The first update has the
    learning rate 0, as in HuggingFace's schedules. After the warm-up, the schedule `constant` stays
    at 1. The schedule `cosine` follows a cosine down to `final_fraction` at step `horizon`.

    Args:
      settings: the settings of the optimizer.
      horizon: the number of training steps.
    """
    return _relative_rate(
        settings.schedule, settings.warmup_steps, settings.final_fraction, horizon
    )


# Two optax functions compare equal only if they are the same object. The cache returns the same
# object for equal settings, so that equal recipes compare equal and share one compiled program.
@functools.lru_cache(maxsize=64)
def _relative_rate(
    schedule: str, warmup_steps: int, final_fraction: float, horizon: int
) -> optax.Schedule:
    cooling = max(horizon - warmup_steps, 1)
    after = (
        optax.constant_schedule(1.0)
        if schedule == "constant"
        else optax.cosine_decay_schedule(1.0, cooling, alpha=final_fraction)
    )
    if not warmup_steps:
        return after
    warmup = optax.linear_schedule(0.0, 1.0, warmup_steps)
    return optax.join_schedules([warmup, after], [warmup_steps])


def preconditioner(settings: OptimizerSettings) -> optax.GradientTransformation:
    """Return the optax transformation from gradients to the `directions` of `apply_updates`.

    The transformation clips gradients by their global norm and then applies Adam. The directions
    are the AdamW updates (Loshchilov & Hutter 2019, algorithm 2) without the learning rate and the
    weight decay.
    """
    return _preconditioner(settings.clip_norm, settings.b1, settings.b2, settings.eps)


@functools.lru_cache(maxsize=64)
def _preconditioner(
    clip_norm: float, b1: float, b2: float, eps: float
) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(clip_norm), optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
    )


def decay_mask(model: Transformer) -> Any:
    """Return a pytree of bools: True for parameters to which weight decay applies.

    A parameter declares the value in its attribute `Parameter.decayed`. In a GPT-2 model, decay
    applies to weights, token embeddings and position embeddings, but not to biases and norms. The
    code of Wang et al. 2024 has this rule.
    """
    return unflatten_params(
        {name: parameter.decayed for name, parameter in model.parameters.items()}
    )


def apply_updates(
    params: Params, directions: Params, hyper: Hyperparameters, rate: Float[Array, ""], decayed: Any
) -> Params:
    """Apply one update: `p - rate * learning_rate * (direction + weight_decay * p)`.

    Args:
      params: the parameters before the update.
      directions: the output of the preconditioner.
      hyper: the peak learning rate and the weight decay.
      rate: the learning rate at this step as a fraction of its peak.
      decayed: pytree of bools from `decay_mask`, True for parameters to which weight decay applies.

    Returns:
      The parameters after the update.
    """
    step = rate * hyper.learning_rate

    def update(param: Array, direction: Array, decays: bool) -> Array:
        return param - step * (direction + (hyper.weight_decay * param if decays else 0.0))

    return jax.tree.map(update, params, directions, decayed)
