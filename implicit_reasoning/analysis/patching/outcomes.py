"""What became of an answer: three shares, which add up to one, and graded measures.

Flips alone count damage, too. So a prediction is the clean answer, or the one that truth predicts
of the exchange (the counterfactual), or anything else, which is damage.

Source of the graded measures: Zhang and Nanda 2024, "Towards best practices of activation patching"
(logit difference, probability, KL divergence).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.model.edits import expand_to_rank

OUTCOMES = ("clean answer", "counterfactual", "other")
"""In noising, "clean answer" is "unchanged"; in denoising, it is "restored"."""

GRADED_METRICS = ("logit_difference", "probability", "divergence")
"""What `graded` returns."""

Logits = Float[Array, "*cell example d_vocab"]
Tokens = Int[Array, "example"]


def answers_with(logits: Logits, token: Tokens) -> Bool[Array, "*cell example"]:
    """Whether a token (-1: none) has the highest logit; a tie counts against it, and so do nans."""
    own = _at(logits, token)[..., None]
    return ((~(logits < own)).sum(-1) == 1) & (_like(token, logits) >= 0)


def outcomes_of(
    logits: Logits, clean: Tokens, counterfactual: Tokens
) -> Bool[Array, "share *cell example"]:
    """Which of `SHARES` each prediction is; the two answers must differ."""
    old, new = answers_with(logits, clean), answers_with(logits, counterfactual)
    return jnp.stack([old, new, ~(old | new)])


def graded_metrics(
    logits: Logits, clean: Tokens, counterfactual: Tokens, whole: Float[Array, "example d_vocab"]
) -> dict[str, Float[Array, "*cell example"]]:
    """The graded measures, by name; `whole` are the logits of the clean run.

    The logit difference of a question without a counterfactual (-1) means nothing.
    """
    return {
        "logit_difference": logit_difference(logits, clean, counterfactual),
        "probability": probability(logits, clean),
        "divergence": divergence(logits, whole),
    }


def logit_difference(
    logits: Logits, clean: Tokens, counterfactual: Tokens
) -> Float[Array, "*cell example"]:
    """Logit of the clean answer minus that of the counterfactual."""
    return _at(logits, clean) - _at(logits, counterfactual)


def probability(logits: Logits, token: Tokens) -> Float[Array, "*cell example"]:
    """Probability of a token."""
    return jnp.exp(_at(jax.nn.log_softmax(logits), token))


def divergence(
    logits: Logits, clean: Float[Array, "example d_vocab"]
) -> Float[Array, "*cell example"]:
    """KL(clean run || this run), nats: 0 where the clean run's distribution is restored."""
    clean = jax.nn.log_softmax(expand_to_rank(clean, logits))
    return (jnp.exp(clean) * (clean - jax.nn.log_softmax(logits))).sum(-1)


def _like(token: Tokens, logits: Logits) -> Int[Array, "*cell example"]:
    return jnp.broadcast_to(
        expand_to_rank(token, logits[..., 0]).astype(jnp.int32), logits.shape[:-1]
    )


def _at(logits: Logits, token: Tokens) -> Float[Array, "*cell example"]:
    index = _like(token, logits)[..., None]
    return jnp.take_along_axis(logits, index, axis=-1)[..., 0]
