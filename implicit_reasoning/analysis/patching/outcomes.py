"""Compute the outcomes of a patch: one of three kinds of answers, and continuous metrics.

A patch can change an answer because of the information that is patched, or because it damages the
computation. Each answer is therefore one of three kinds: the clean answer; the counterfactual
answer, which the world predicts for the patch; or any other answer, which is damage.

Source of the continuous metrics: Zhang and Nanda 2024, "Towards best practices of activation
patching" (logit difference, probability, KL divergence).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.model.edits import expand_to_rank

OUTCOMES = ("clean answer", "counterfactual", "other")
"""Kinds of answers after a patch.

In noising, "clean answer" means that the answer is unchanged. In denoising, it means that the
answer is restored.
"""

GRADED_METRICS = ("logit_difference", "probability", "divergence")
"""Names of the metrics that `graded_metrics` returns."""

Logits = Float[Array, "*cell example d_vocab"]
Tokens = Int[Array, "example"]


def answers_with(logits: Logits, token: Tokens) -> Bool[Array, "*cell example"]:
    """Return whether a token has the highest logit.

    The result is false if another token has the same logit, or if logits are nan. It is also false
    for token -1, which means that there is no answer.
    """
    own = _at(logits, token)[..., None]
    return ((~(logits < own)).sum(-1) == 1) & (_like(token, logits) >= 0)


def outcomes_of(
    logits: Logits, clean: Tokens, counterfactual: Tokens
) -> Bool[Array, "share *cell example"]:
    """Classify each prediction as one of `OUTCOMES`.

    Args:
      logits: logits after the patch.
      clean: the clean answers.
      counterfactual: the counterfactual answers; -1 if a query has none. They must differ from
        `clean`.

    Returns:
      A bool array, one-hot along its first axis. The first axis has the order of `OUTCOMES`.
    """
    old, new = answers_with(logits, clean), answers_with(logits, counterfactual)
    return jnp.stack([old, new, ~(old | new)])


def graded_metrics(
    logits: Logits, clean: Tokens, counterfactual: Tokens, whole: Float[Array, "example d_vocab"]
) -> dict[str, Float[Array, "*cell example"]]:
    """Return logit difference, probability and KL divergence, by their names in `GRADED_METRICS`.

    The logit difference is meaningless for a query without a counterfactual answer.

    Args:
      logits: logits after the patch.
      clean: the clean answers.
      counterfactual: the counterfactual answers; -1 if a query has none.
      whole: the logits of the clean run.
    """
    return {
        "logit_difference": logit_difference(logits, clean, counterfactual),
        "probability": probability(logits, clean),
        "divergence": divergence(logits, whole),
    }


def logit_difference(
    logits: Logits, clean: Tokens, counterfactual: Tokens
) -> Float[Array, "*cell example"]:
    """Return the logit of the clean answer minus the logit of the counterfactual answer."""
    return _at(logits, clean) - _at(logits, counterfactual)


def probability(logits: Logits, token: Tokens) -> Float[Array, "*cell example"]:
    """Return the probability of a token."""
    return jnp.exp(_at(jax.nn.log_softmax(logits), token))


def divergence(
    logits: Logits, clean: Float[Array, "example d_vocab"]
) -> Float[Array, "*cell example"]:
    """Return the KL divergence KL(clean run || patched run) in nats.

    Args:
      logits: logits of the patched run.
      clean: logits of the clean run.
    """
    clean = jax.nn.log_softmax(expand_to_rank(clean, logits))
    return (jnp.exp(clean) * (clean - jax.nn.log_softmax(logits))).sum(-1)


def _like(token: Tokens, logits: Logits) -> Int[Array, "*cell example"]:
    return jnp.broadcast_to(
        expand_to_rank(token, logits[..., 0]).astype(jnp.int32), logits.shape[:-1]
    )


def _at(logits: Logits, token: Tokens) -> Float[Array, "*cell example"]:
    index = _like(token, logits)[..., None]
    return jnp.take_along_axis(logits, index, axis=-1)[..., 0]
