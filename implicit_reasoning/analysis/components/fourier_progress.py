"""Measure the progress of a model towards the Fourier circuit for modular addition.

A trained model computes (a + b) mod p from waves of a few key frequencies: the logit of the residue
c is a sum of cos(w (a + b - c)). The key frequencies are those of the last checkpoint. Two losses
say how far the circuit has formed at each checkpoint:

- Restricted loss: only the waves of a + b with the key frequencies remain in the logits. It falls
  while the circuit forms, also before the test loss falls.
- Excluded loss: these waves are removed from the logits. It rises when the model stops using
  memorized pairs.

Source: Nanda et al. 2023, "Progress measures for grokking via mechanistic interpretability",
section 5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Bool, Float, Int, Key

from implicit_reasoning.analysis.components.fourier import (
    component,
    gini,
    key_frequencies,
    squared_norms,
)
from implicit_reasoning.analysis.components.fourier_figures import draw_losses, draw_weights
from implicit_reasoning.analysis.components.losses import cross_entropy
from implicit_reasoning.analysis.instrument import Examples, Instrument, NotApplicable
from implicit_reasoning.analysis.suffix import final_logits
from implicit_reasoning.figures import Figure
from implicit_reasoning.model import Params, Transformer, unembedding_matrix
from implicit_reasoning.model.blocks import require_gpt2
from implicit_reasoning.worlds import Dataset

GROUPS = ("train_pairs", "test_pairs", "all_pairs")
MATRICES = ("W_E", "W_L")
KEY_SHARE = 0.9
"""The key frequencies carry more than this share of the squared norm of W_L (Nanda et al. 2023)."""

N_DRAWS = 20
"""Number of sets of other frequencies in the null control."""

_SEED = 0


class FourierProgress(Instrument):
    """Instrument that measures the progress measures of Nanda et al. 2023 for modular addition."""

    name = "fourier_progress"
    definition = (
        "Task: (a + b) mod p. Losses are cross-entropies in nats over the p residues; the logits "
        "of other tokens are ignored. full_loss: loss of the model. The key frequencies are the "
        "fewest frequencies that carry more than 90% of the squared norm of W_L of the last "
        "checkpoint, where W_L is the product of W_out of the last block and W_U, and the "
        "constant is left out. restricted_loss: the logits are replaced by their mean over all "
        "pairs plus their components along cos and sin of 2 pi k (a + b) / p, where k are the key "
        "frequencies. excluded_loss: these components are subtracted from the logits. null_...: "
        "the same with as many other frequencies, in 20 random draws. The published restricted "
        "loss is that of all_pairs, and the published excluded loss is that of train_pairs. norm: "
        "share of the squared norm of W_E or W_L at each frequency. key_norm: share at the key "
        "frequencies. gini: Gini coefficient of the norms of the frequencies. squared_weights: sum "
        "of squares of all parameters. A cluster of examples is the pairs with one sum."
    )
    outputs = {
        "full_loss": ("example",),
        "correct": ("example",),
        "restricted_loss": ("example",),
        "excluded_loss": ("example",),
        "null_restricted_loss": ("draw", "example"),
        "null_excluded_loss": ("draw", "example"),
        "norm": ("matrix", "frequency"),
        "is_key": ("frequency",),
        "key_norm": ("matrix",),
        "gini": ("matrix",),
        "squared_weights": (),
    }
    nulls = {
        "as many other frequencies, restricted": "null_restricted_loss",
        "as many other frequencies, excluded": "null_excluded_loss",
    }
    default = False
    reference = True

    def examples(self, model: Transformer, dataset: Dataset) -> Examples:
        """Take all pairs (a, b), each as a training or test pair and in the group of all pairs.

        Raises:
          NotApplicable: the task is not modular addition, or the blocks are not `gpt2`.
        """
        modulus = modulus_of(dataset)
        require_gpt2(model.spec, f"the instrument {self.name!r}", NotApplicable)
        if modulus < 5:
            raise NotApplicable(
                f"the instrument {self.name!r} compares key frequencies with others, which needs a "
                f"modulus of at least 5; the modulus is {modulus}"
            )
        a, b = np.divmod(np.arange(modulus**2), modulus)
        of_train = [dataset.truth[name][: dataset.n_train] for name in ("a", "b")]
        is_test = np.ones(modulus**2, bool)
        is_test[of_train[0] * modulus + of_train[1]] = False
        kind = np.concatenate([is_test, np.full(modulus**2, 2)])
        there = np.unique(kind)
        total = (a + b) % modulus
        draws = np.random.default_rng(_SEED).random((N_DRAWS, modulus // 2))
        inputs = {
            "tokens": np.stack([a, b, np.full_like(a, modulus)], axis=1).astype(np.int32),
            "total": total.astype(np.int32),
            "draws": draws.astype(np.float32),
        }
        return Examples(
            inputs,
            groups=tuple(GROUPS[number] for number in there),
            group=np.searchsorted(there, kind),
            clusters=np.tile(total, 2),
        )

    def coords(self, model: Transformer, dataset: Dataset) -> dict[str, Sequence[Any]]:
        """Return the labels of the draws, matrices and frequencies."""
        frequencies = range(1, modulus_of(dataset) // 2 + 1)
        return {"draw": range(N_DRAWS), "matrix": MATRICES, "frequency": frequencies}

    def sites(self, model: Transformer) -> tuple[str, ...]:
        """Return no sites, because the instrument reads weights and logits."""
        return ()

    def measure(
        self, model: Transformer, params: Params, inputs: Any, key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Compute all progress measures of one checkpoint."""
        total = jnp.asarray(inputs["total"])
        modulus = math.isqrt(total.shape[0])
        is_key = key_frequencies(
            squared_norms(neuron_logit_map(inputs["reference"], modulus)), KEY_SHARE
        )
        logits = final_logits(model, params, inputs["tokens"])[:, :modulus]
        sets = jnp.concatenate([is_key[None], other_frequencies(is_key, inputs["draws"])])
        restricted, excluded = jax.lax.map(lambda one: split_losses(logits, total, one), sets)
        by_pair = {
            "full_loss": cross_entropy(logits, total),
            "correct": logits.argmax(-1) == total,
            "restricted_loss": restricted[0],
            "excluded_loss": excluded[0],
            "null_restricted_loss": restricted[1:],
            "null_excluded_loss": excluded[1:],
        }
        embeddings = params["embed"]["W_E"][:modulus].T
        matrices = (embeddings, neuron_logit_map(params, modulus))
        norms = jnp.stack([squared_norms(matrix) for matrix in matrices])
        norm = norms / norms.sum(-1, keepdims=True)
        return {
            # A pair is an example of its split, and an example of the group of all pairs.
            **{name: jnp.concatenate([x, x], axis=-1) for name, x in by_pair.items()},
            "norm": norm,
            "is_key": is_key,
            "key_norm": (norm * is_key[None]).sum(-1),
            "gini": jnp.stack([gini(jnp.sqrt(one)) for one in norms]),
            "squared_weights": sum((leaf**2).sum() for leaf in jax.tree.leaves(params)),
        }

    def figures(self, result: xr.Dataset) -> list[Figure]:
        """Draw the losses over training, and the norms of the weights."""
        return [draw_losses(result), draw_weights(result)]


def modulus_of(dataset: Dataset) -> int:
    """Return p if the task of a dataset is (a + b) mod p.

    Raises:
      NotApplicable: the task is another task.
    """
    truth, modulus = dataset.truth, dataset.n_vocab - 1
    if dataset.positions != ("a", "b", "=") or not {"a", "b"} <= truth.keys():
        raise NotApplicable("this instrument needs the task modular_addition")
    if not np.array_equal(truth["answer"], (truth["a"] + truth["b"]) % modulus):
        raise NotApplicable("this instrument needs a task whose answers are (a + b) mod p")
    return modulus


def neuron_logit_map(params: Params, modulus: int) -> Float[Array, "neuron residue"]:
    """Return W_L, the product of W_out of the last block and the unembedding of the residues.

    A final norm is ignored.
    """
    last = params["blocks"][max(params["blocks"], key=int)]
    return last["mlp"]["W_out"] @ unembedding_matrix(params)[:, :modulus]


def other_frequencies(
    is_key: Bool[Array, " frequency"], draws: Float[Array, "draw frequency"]
) -> Bool[Array, "draw frequency"]:
    """Return random sets of as many frequencies as there are key frequencies, without these.

    If there are fewer other frequencies than key frequencies, all other frequencies are returned.

    Args:
      is_key: whether each frequency is a key frequency.
      draws: random numbers below 1. Each row chooses the frequencies with the lowest numbers.
    """
    rank = jnp.argsort(jnp.argsort(draws + is_key[None], axis=-1), axis=-1)
    return (rank < is_key.sum()) & ~is_key[None]


def split_losses(
    logits: Float[Array, "pair residue"],
    total: Int[Array, " pair"],
    chosen: Bool[Array, " frequency"],
) -> tuple[Float[Array, " pair"], Float[Array, " pair"]]:
    """Return the restricted and the excluded loss of every pair for a set of frequencies.

    The component of the logits along the waves of a + b depends on the pair only through its sum.
    It is computed from the means of the logits over the pairs with one sum.

    Args:
      logits: the logits of all p * p pairs (a, b).
      total: a + b mod p of each pair.
      chosen: the frequencies of the waves.
    """
    modulus = logits.shape[1]
    # Each sum has p pairs, so the stable order by sum is a table [sum, pair].
    pairs = jnp.argsort(total, stable=True).reshape(modulus, modulus)
    means = logits[pairs].mean(1)
    kept = component(means, chosen)
    restricted = cross_entropy(means.mean(0, keepdims=True) + kept, jnp.arange(modulus))
    return restricted[total], cross_entropy(logits - kept[total], total)
