"""Outcomes of a patch: three shares that add up to 1, and graded metrics.

A changed answer may be the effect of the patched information, or damage. Each prediction is
therefore one of three outcomes: the clean answer; the counterfactual, which is the answer that the
world predicts for the patch; or any other answer, which is damage.

Source of the graded metrics: Zhang and Nanda 2024, "Towards best practices of activation patching"
(logit difference, probability, KL divergence).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.model.edits import expand_to_rank

OUTCOMES = ("clean answer", "counterfactual", "other")
"""Outcomes. In noising, "clean answer" means unchanged. In denoising, it means restored."""

GRADED_METRICS = ("logit_difference", "probability", "divergence")
"""Names of the metrics that `graded_metrics` returns."""

Logits = Float[Array, "*cell example d_vocab"]
Tokens = Int[Array, "example"]


def answers_with(logits: Logits, token: Tokens) -> Bool[Array, "*cell example"]:
    """Return whether a token has the highest logit.

    The result is false if another token has the same logit, if logits are nan, or if the token is
    -1. Token -1 means that there is no answer.
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
      A bool array. Its first axis has the order of `OUTCOMES` and is one-hot.
    """
    old, new = answers_with(logits, clean), answers_with(logits, counterfactual)
    return jnp.stack([old, new, ~(old | new)])


def graded_metrics(
    logits: Logits, clean: Tokens, counterfactual: Tokens, whole: Float[Array, "example d_vocab"]
) -> dict[str, Float[Array, "*cell example"]]:
    """Return the metrics of `GRADED_METRICS`, by name.

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
    """Return KL(clean run || patched run) in nats. It is 0 if both distributions are equal.

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
