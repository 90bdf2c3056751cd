"""How well a dictionary writes, and with how few features: numbers under SAELens's names.

Explained variance is about the mean of the targets, `1 - sum ||y - y^||^2 / sum ||y - mean(y)||^2`:
about zero, as SAELens computed it from March 2025 to March 2026, a constant offset counts as
variance explained. `explained_variance_legacy` is the same ratio state by state, whose mean
SAEBench's paper reports.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from implicit_reasoning.dictionaries.architectures import Features, Inputs, Outputs
from implicit_reasoning.dictionaries.dictionary import InferenceDictionary
from implicit_reasoning.model import Params

MIN_DENSE = 0.1
"""A feature that is active on more than this share of states is dense."""

MIN_ABLATION_LOSS = 0.01
"""Nats that ablation must lose, for the share of it that is recovered to mean something."""

Scalar = Float[Array, ""]
Losses = Float[np.ndarray, "*any"]


class Quality(NamedTuple):
    """Of one dictionary on some states; see the module.

    Attributes:
      l0: active features.
      l1: sum of activations.
      mse: squared error, summed over dimensions.
      explained_variance: about the mean, of all states together.
      explained_variance_legacy: of each state.
      cossim: cosine of target and output.
      l2_ratio: norm of the output over norm of the target.
    """

    l0: Float[Array, " state"]
    l1: Float[Array, " state"]
    mse: Float[Array, " state"]
    explained_variance: Scalar
    explained_variance_legacy: Float[Array, " state"]
    cossim: Float[Array, " state"]
    l2_ratio: Float[Array, " state"]


class Activity(NamedTuple):
    """How often features are active.

    Attributes:
      density: by feature, share of states where it is active.
      dead: share of features that are never active.
      dense: share of features that are active more often than `MIN_DENSE`.
    """

    density: Float[Array, " d_sae"]
    dead: Scalar
    dense: Scalar


def activity(acts: Features) -> Activity:
    """On all states there are; traced."""
    density = (acts > 0).mean(0)
    return Activity(density, (density == 0).mean(), (density > MIN_DENSE).mean())


def quality(finished: InferenceDictionary, params: Params, x: Inputs, y: Outputs) -> Quality:
    """Measure a dictionary, state by state; traced."""
    acts = finished.encode(params, x)
    out = finished.decode(params, acts, x)
    error = ((out - y) ** 2).sum(-1)
    spread = ((y - y.mean(0, keepdims=True)) ** 2).sum(-1)
    norm_out, norm_y = (jnp.linalg.norm(value, axis=-1) for value in (out, y))
    return Quality(
        l0=(acts > 0).sum(-1).astype(jnp.float32),
        l1=acts.sum(-1),
        mse=error,
        explained_variance=1 - error.sum() / spread.sum(),
        explained_variance_legacy=1 - error / jnp.maximum(spread, 1e-12),
        cossim=(out * y).sum(-1) / jnp.maximum(norm_out * norm_y, 1e-12),
        l2_ratio=norm_out / jnp.maximum(norm_y, 1e-12),
    )


class Answers(NamedTuple):
    """What a model answers to some questions.

    Attributes:
      ce: cross-entropy of the right answer, nats.
      kl: KL(clean model || this one), nats.
      correct: whether the right answer is the most likely token.
    """

    ce: Float[Array, " question"]
    kl: Float[Array, " question"]
    correct: Float[Array, " question"]


def answers(
    logits: Float[Array, "question d_vocab"],
    clean: Float[Array, "question d_vocab"],
    right: Float[Array, " question"] | Array,
) -> Answers:
    """Compare logits with the clean model's and with the truth."""
    here, there = jax.nn.log_softmax(logits), jax.nn.log_softmax(clean)
    ce = -jnp.take_along_axis(here, right[:, None], axis=-1)[:, 0]
    kl = (jnp.exp(there) * (there - here)).sum(-1)
    return Answers(ce, kl, (logits.argmax(-1) == right).astype(jnp.float32))


def recovered(spliced: Losses, clean: Losses, ablated: Losses) -> Losses:
    """Share of a loss that comes back when the dictionary writes, not nothing: 1 is all of it.

    `(ablated - spliced) / (ablated - clean)`, SAELens's `ce_loss_score`, and with KL, whose clean
    value is 0, its `kl_div_score`. nan where ablation loses less than `MIN_ABLATION_LOSS` nats: an
    untrained model has nothing to lose.
    """
    lost = ablated - clean
    return np.where(
        lost >= MIN_ABLATION_LOSS,
        (ablated - spliced) / np.where(lost >= MIN_ABLATION_LOSS, lost, 1),
        np.nan,
    )
