"""Compute reconstruction quality and sparsity of a dictionary.

The metrics have SAELens's names. Explained variance is `1 - sum ||y - y^||^2 / sum ||y -
mean(y)||^2`. Here y^ is the dictionary's output for the target y. From March 2025 to March 2026,
SAELens omitted `mean(y)`. Without `mean(y)`, a constant offset counts as explained variance.
`explained_variance_legacy` is computed for each state separately. The SAEBench paper reports the
mean of these values over states.
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
      l0: number of active features per state.
      l1: sum of activations per state.
      mse: squared error per state, summed over dimensions.
      explained_variance: explained variance of all states together.
      explained_variance_legacy: explained variance of each state separately.
      cossim: cosine similarity of target and output.
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
    """Statistics of how often features are active.

    Attributes:
      density: for each feature, the share of states on which the feature is active.
      dead: share of features that are not active on any state.
      dense: share of features whose density exceeds `MIN_DENSE`.
    """

    density: Float[Array, " d_sae"]
    dead: Scalar
    dense: Scalar


def activity(acts: Features) -> Activity:
    """Compute how often features are active, from activations on all states."""
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
    """Scores of a model's answers to several questions.

    The model may contain edits, such as a spliced dictionary.

    Attributes:
      ce: cross-entropy of the right answer, in nats.
      kl: KL divergence KL(clean model || model), in nats.
      correct: 1 if the right answer is the most likely token, and 0 otherwise.
    """

    ce: Float[Array, " question"]
    kl: Float[Array, " question"]
    correct: Float[Array, " question"]


def answers(
    logits: Float[Array, "question d_vocab"],
    clean: Float[Array, "question d_vocab"],
    right: Float[Array, " question"] | Array,
) -> Answers:
    """Score a model's logits against the clean model and the right answers.

    Args:
      logits: [question, d_vocab] logits of the model to score.
      clean: [question, d_vocab] logits of the model without edits.
      right: int [question], tokens of the right answers.
    """
    here, there = jax.nn.log_softmax(logits), jax.nn.log_softmax(clean)
    ce = -jnp.take_along_axis(here, right[:, None], axis=-1)[:, 0]
    kl = (jnp.exp(there) * (there - here)).sum(-1)
    return Answers(ce, kl, (logits.argmax(-1) == right).astype(jnp.float32))


def recovered(spliced: Losses, clean: Losses, ablated: Losses) -> Losses:
    """Return the share of the ablation loss that the dictionary recovers.

    The share is `(ablated - spliced) / (ablated - clean)`. The share is 1 if `spliced` equals
    `clean`, and 0 if `spliced` equals `ablated`. With cross-entropies, the share is SAELens's
    `ce_loss_score`. With KL divergences, `clean` is 0, and the share is SAELens's `kl_div_score`.
    The share is nan if `ablated - clean` is less than `MIN_ABLATION_LOSS` nats, for example in an
    untrained model.

    Args:
      spliced: losses of the model with the dictionary spliced in, in nats.
      clean: losses of the clean model, in nats.
      ablated: losses of the model with the site ablated, in nats.
    """
    lost = ablated - clean
    return np.where(
        lost >= MIN_ABLATION_LOSS,
        (ablated - spliced) / np.where(lost >= MIN_ABLATION_LOSS, lost, 1),
        np.nan,
    )
