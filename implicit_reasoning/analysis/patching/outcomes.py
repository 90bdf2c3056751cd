"""Classify the answer after a patch, and compute continuous metrics of the logits.

A patch can change an answer in two ways: it inserts information, or it damages the computation. To
distinguish the two, each answer after a patch is classified:

- the clean answer;
- the counterfactual answer, which is the right answer according to the inserted information;
- any other answer, which shows damage.

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
    """Return whether the logit of a token is above all other logits.

    The result is false for a tie, for nan logits, and for token -1 (no answer).
    """
    own = _at(logits, token)[..., None]
    return ((~(logits < own)).sum(-1) == 1) & (_like(token, logits) >= 0)


def outcomes_of(
    logits: Logits, clean: Tokens, counterfactual: Tokens
) -> Bool[Array, "share *cell example"]:
    """Classify the answer after each patch as one of `OUTCOMES`.

    Args:
      logits: the logits after each patch.
      clean: the clean answer of each query.
      counterfactual: the counterfactual answer of each query, which must differ from `clean`; -1 if
        a query has no counterfactual answer.

    Returns:
      A one-hot bool array. The first axis is the outcome, in the order of `OUTCOMES`.
    """
    old, new = answers_with(logits, clean), answers_with(logits, counterfactual)
    return jnp.stack([old, new, ~(old | new)])


def graded_metrics(
    logits: Logits, clean: Tokens, counterfactual: Tokens, whole: Float[Array, "example d_vocab"]
) -> dict[str, Float[Array, "*cell example"]]:
    """Return the metrics in `GRADED_METRICS`, by name.

    The metrics are the logit difference between the clean and the counterfactual answer, the
    probability of the clean answer, and KL(p_clean || p_patched). Ignore the logit difference of a
    query without a counterfactual answer.

    Args:
      logits: the logits after each patch.
      clean: the clean answer of each query.
      counterfactual: the counterfactual answer of each query; -1 if there is no such answer.
      whole: the logits of the clean query without a patch.
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


def margin(logits: Logits, token: Tokens) -> Float[Array, "*cell example"]:
    """Return the logit of a token minus the highest logit of all other tokens."""
    is_token = jax.nn.one_hot(_like(token, logits), logits.shape[-1], dtype=bool)
    return _at(logits, token) - jnp.where(is_token, -jnp.inf, logits).max(-1)


def probability(logits: Logits, token: Tokens) -> Float[Array, "*cell example"]:
    """Return the probability of a token."""
    return jnp.exp(_at(jax.nn.log_softmax(logits), token))


def divergence(
    logits: Logits, clean: Float[Array, "example d_vocab"]
) -> Float[Array, "*cell example"]:
    """Return the KL divergence KL(p_clean || p_patched) in nats.

    Args:
      logits: the logits after each patch.
      clean: the logits of the clean query without a patch.
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
