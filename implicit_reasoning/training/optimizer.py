"""AdamW as the published runs use it: warm-up, decoupled decay on weights only, clipping.

Learning rate and weight decay are *arguments* of the update (`Hyper`), not constants baked into it,
so that a population of trials that differ in them is a `vmap` of one update.
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
    """What may differ between the trials of one compiled program; float32 scalars."""

    learning_rate: Float[Array, ""]
    weight_decay: Float[Array, ""]


@dataclass(frozen=True)
class OptimizerSettings:
    """A config's `optimizer` group; `runs.fields` documents each field."""

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
    """The traced hyperparameters."""
    return Hyperparameters(jnp.float32(settings.learning_rate), jnp.float32(settings.weight_decay))


def relative_rate(settings: OptimizerSettings, horizon: int) -> optax.Schedule:
    """Learning rate at a step as a fraction of its peak.

    Linear from 0 over `warmup_steps` (the first update has rate 0, as in HuggingFace's schedules),
    then `constant`, or `cosine` down to `final_fraction` at `horizon` steps.
    """
    return _relative_rate(
        settings.schedule, settings.warmup_steps, settings.final_fraction, horizon
    )


# optax's functions are equal only if they are the same object. Equal settings get the same object,
# so that equal recipes are equal and their programs are compiled once.
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
    """Clipping by global norm, then Adam's direction (Loshchilov & Hutter 2019, algorithm 2)."""
    return _preconditioner(settings.clip_norm, settings.b1, settings.b2, settings.eps)


@functools.lru_cache(maxsize=64)
def _preconditioner(
    clip_norm: float, b1: float, b2: float, eps: float
) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(clip_norm), optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
    )


def decay_mask(model: Transformer) -> Any:
    """Which parameters decay, a tree of truth values: see `Parameter.decayed`.

    In a GPT-2 model weights, embeddings and positions decay, but biases and norms do not (Wang).
    """
    return unflatten_params(
        {name: parameter.decayed for name, parameter in model.parameters.items()}
    )


def apply_updates(
    params: Params, directions: Params, hyper: Hyperparameters, rate: Float[Array, ""], decayed: Any
) -> Params:
    """One decoupled step: `p - rate * learning_rate * (direction + weight_decay * p)`.

    Args:
      params: before the step.
      directions: of the preconditioner.
      hyper: learning rate and weight decay.
      rate: learning rate at this step as a fraction of its peak.
      decayed: for every parameter, whether it decays; see `decay_mask`.
    """
    step = rate * hyper.learning_rate

    def update(param: Array, direction: Array, decays: bool) -> Array:
        return param - step * (direction + (hyper.weight_decay * param if decays else 0.0))

    return jax.tree.map(update, params, directions, decayed)
