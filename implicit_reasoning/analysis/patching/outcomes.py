"""Outcomes of a patch: three shares that add up to 1, and graded metrics.

A change of the answer alone does not distinguish an effect from damage. So each prediction is the
clean answer, the answer that the truth predicts for the patch (the counterfactual), or another
answer, which is damage.

Source of the graded metrics: Zhang and Nanda 2024, "Towards best practices of activation patching"
(logit difference, probability, KL divergence).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.model.edits import expand_to_rank

OUTCOMES = ("clean answer", "counterfactual", "other")
"""Kinds of outcomes. "clean answer" means "unchanged" in noising, and "restored" in denoising."""

GRADED_METRICS = ("logit_difference", "probability", "divergence")
"""Names of the metrics that `graded_metrics` returns."""

Logits = Float[Array, "*cell example d_vocab"]
Tokens = Int[Array, "example"]


def answers_with(logits: Logits, token: Tokens) -> Bool[Array, "*cell example"]:
    """Return whether a token has the highest logit.

    It is false for a tie, for nan logits, and for token -1, which means that there is no token.
    """
    own = _at(logits, token)[..., None]
    return ((~(logits < own)).sum(-1) == 1) & (_like(token, logits) >= 0)


def outcomes_of(
    logits: Logits, clean: Tokens, counterfactual: Tokens
) -> Bool[Array, "share *cell example"]:
    """Return which of `OUTCOMES` each prediction is, one-hot over the first axis.

    Args:
      logits: logits after the patch.
      clean: the clean answers.
      counterfactual: the counterfactual answers; -1 if there is none. They must differ from
        `clean`.
    """
    old, new = answers_with(logits, clean), answers_with(logits, counterfactual)
    return jnp.stack([old, new, ~(old | new)])


def graded_metrics(
    logits: Logits, clean: Tokens, counterfactual: Tokens, whole: Float[Array, "example d_vocab"]
) -> dict[str, Float[Array, "*cell example"]]:
    """Return the metrics of `GRADED_METRICS`, by name.

    The logit difference of a query without a counterfactual (-1) is meaningless.

    Args:
      logits: logits after the patch.
      clean: the clean answers.
      counterfactual: the counterfactual answers.
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
    """Return the logit of the clean answer minus the logit of the counterfactual."""
    return _at(logits, clean) - _at(logits, counterfactual)


def probability(logits: Logits, token: Tokens) -> Float[Array, "*cell example"]:
    """Return the probability of a token."""
    return jnp.exp(_at(jax.nn.log_softmax(logits), token))


def divergence(
    logits: Logits, clean: Float[Array, "example d_vocab"]
) -> Float[Array, "*cell example"]:
    """Return KL(clean run || this run), in nats; 0 if the clean distribution is restored."""
    clean = jax.nn.log_softmax(expand_to_rank(clean, logits))
    return (jnp.exp(clean) * (clean - jax.nn.log_softmax(logits))).sum(-1)


def _like(token: Tokens, logits: Logits) -> Int[Array, "*cell example"]:
    return jnp.broadcast_to(
        expand_to_rank(token, logits[..., 0]).astype(jnp.int32), logits.shape[:-1]
    )


def _at(logits: Logits, token: Tokens) -> Float[Array, "*cell example"]:
    index = _like(token, logits)[..., None]
    return jnp.take_along_axis(logits, index, axis=-1)[..., 0]
