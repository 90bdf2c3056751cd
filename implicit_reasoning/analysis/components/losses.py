"""Compute log odds and losses of answers that stay accurate when the model is almost certain.

A model that has memorized its training data gives the answer a probability of 1 - 1e-9 or more. In
float32, this number is rounded to 1, and its negative logarithm is rounded to 0. A loss that is
computed from the differences between the logit of the answer and the other logits has no such
rounding.

The log probability of an answer is minus the loss.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def log_odds(
    logits: Float[Array, "*cell example token"], answer: Int[Array, " example"]
) -> Float[Array, "*cell example"]:
    """Return log p / (1 - p) of the answer of each example, where p is its probability.

    Unlike log p, it does not saturate if the model is certain. The differences of log p between
    runs would then be rounding errors.

    Args:
      logits: the logits; at least two tokens.
      answer: the token of the right answer of each example.
    """
    tokens = jnp.arange(logits.shape[-1])[None]
    is_answer = jnp.broadcast_to(tokens == answer[:, None], logits.shape)
    own = jnp.where(is_answer, logits, 0).sum(-1, keepdims=True)
    return -jax.nn.logsumexp(jnp.where(is_answer, -jnp.inf, logits - own), axis=-1)


def cross_entropy(
    logits: Float[Array, "*cell example token"], answer: Int[Array, " example"]
) -> Float[Array, "*cell example"]:
    """Return the cross-entropy loss of each example, in nats.

    The loss is log(1 + sum_j exp(logit_j - logit_answer)), where j are the tokens other than the
    answer. All terms of the sum are positive, so the relative error of the loss is at most about
    the absolute error of a logit difference, plus a few units of float32 rounding. This holds for
    every loss above the smallest float32 number, 1e-38.

    Args:
      logits: the logits; at least two tokens.
      answer: the token of the right answer of each example.
    """
    return jax.nn.softplus(-log_odds(logits, answer))
