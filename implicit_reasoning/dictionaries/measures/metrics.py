"""Compute reconstruction quality and sparsity of a dictionary, with SAELens's names.

Explained variance is relative to the mean of the targets:
`1 - sum ||y - y^||^2 / sum ||y - mean(y)||^2`. From March 2025 to March 2026, SAELens computed
explained variance relative to zero, which counts a constant offset as explained variance.
`explained_variance_legacy` is computed for each state separately. SAEBench's paper reports the mean
of these values.
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
"""A feature is dense if it is active on more than this share of states."""

MIN_ABLATION_LOSS = 0.01
"""Minimum increase of the loss by an ablation, in nats, for which `recovered` is defined."""

Scalar = Float[Array, ""]
Losses = Float[np.ndarray, "*any"]


class Quality(NamedTuple):
    """Reconstruction quality and sparsity of one dictionary on some states.

    Attributes:
      l0: number of active features.
      l1: sum of activations.
      mse: squared error, summed over dimensions.
      explained_variance: one number for all states, relative to the mean of the targets.
      explained_variance_legacy: one number for each state.
      cossim: cosine of target and output.
      l2_ratio: norm of the output divided by the norm of the target.
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
      density: share of states on which each feature is active.
      dead: share of features that are never active.
      dense: share of features that are active on more than `MIN_DENSE` of states.
    """

    density: Float[Array, " d_sae"]
    dead: Scalar
    dense: Scalar


def activity(acts: Features) -> Activity:
    """Compute how often features are active. `acts` should be the activations on all states."""
    density = (acts > 0).mean(0)
    return Activity(density, (density == 0).mean(), (density > MIN_DENSE).mean())


def quality(finished: InferenceDictionary, params: Params, x: Inputs, y: Outputs) -> Quality:
    """Compute reconstruction quality and sparsity of a dictionary on some states."""
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
    """Scores of a model's answers to questions.

    Attributes:
      ce: cross-entropy of the right answer, in nats.
      kl: the KL divergence KL(clean model || model), in nats.
      correct: 1 if the right answer is the most likely token, else 0.
    """

    ce: Float[Array, " question"]
    kl: Float[Array, " question"]
    correct: Float[Array, " question"]


def answers(
    logits: Float[Array, "question d_vocab"],
    clean: Float[Array, "question d_vocab"],
    right: Float[Array, " question"] | Array,
) -> Answers:
    """Compare logits with those of the clean model and with the right answers.

    Args:
      logits: [question, d_vocab] logits of the model.
      clean: [question, d_vocab] logits of the clean model.
      right: int [question], tokens of the right answers.
    """
    here, there = jax.nn.log_softmax(logits), jax.nn.log_softmax(clean)
    ce = -jnp.take_along_axis(here, right[:, None], axis=-1)[:, 0]
    kl = (jnp.exp(there) * (there - here)).sum(-1)
    return Answers(ce, kl, (logits.argmax(-1) == right).astype(jnp.float32))


def recovered(spliced: Losses, clean: Losses, ablated: Losses) -> Losses:
    """Return the share of loss that the dictionary recovers.

    The share is `(ablated - spliced) / (ablated - clean)`. The value is 1 if the model with the
    dictionary has the loss of the clean model, and 0 if it has the loss of the ablated model. For
    cross-entropies, this is SAELens's `ce_loss_score`. For KL divergences, for which `clean` is 0,
    it is SAELens's `kl_div_score`. The value is nan where the ablation increases the loss by less
    than `MIN_ABLATION_LOSS` nats, as in an untrained model.

    Args:
      spliced: losses with the dictionary spliced in, in nats.
      clean: losses of the clean model.
      ablated: losses with the site ablated.
    """
    lost = ablated - clean
    return np.where(
        lost >= MIN_ABLATION_LOSS,
        (ablated - spliced) / np.where(lost >= MIN_ABLATION_LOSS, lost, 1),
        np.nan,
    )
