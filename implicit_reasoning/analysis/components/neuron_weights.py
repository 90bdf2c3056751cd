"""Read the weights of MLP neurons in the space of tokens.

The output weights of a neuron are a direction in the residual stream, which the unembedding maps to
logits. The input weights are compared with the embedding of every token. Both ignore the blocks in
between: a neuron of an early block can also write for later blocks, and it can read what heads
copied from other positions.

Sources: Geva et al. 2022 (values in vocabulary space); Dar et al. 2023 (embedding space).
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from implicit_reasoning.model import Params, Transformer, unembedding_matrix


def written_logits(
    model: Transformer, params: Params, block: int
) -> Float[Array, "neuron d_vocab"]:
    """Return the logits that each neuron of a block writes, per unit of its activation.

    The logits are `W_out W_U`, with the gain of the final norm. The norm's mean over dimensions is
    subtracted. The scale of the norm is left out, because it differs between prompts.
    """
    weights = params["blocks"][str(block % model.spec.n_layers)]["mlp"]["W_out"]
    directions = _gained(model, params.get("ln_final"), weights)
    return _product(directions, unembedding_matrix(params))


def embedded_inputs(
    model: Transformer, params: Params, block: int
) -> Float[Array, "neuron d_vocab"]:
    """Return how much the embedding of each token adds to the input of each neuron of a block.

    The result is `W_E W_in`, with the gain of the norm before the MLP and without its scale.
    """
    own = params["blocks"][str(block % model.spec.n_layers)]
    embeddings = _gained(model, own.get("ln2"), params["embed"]["W_E"])
    return _product(embeddings, own["mlp"]["W_in"]).T


def _gained(model: Transformer, norm: Any, rows: Float[Array, "row d_model"]) -> Array:
    """Subtract the mean of each row, and multiply with the weight of a norm."""
    if model.spec.normalization != "LN":
        return rows
    return (rows - rows.mean(-1, keepdims=True)) * norm["w"][None]


def _product(one: Array, other: Array) -> Array:
    return jnp.matmul(one, other, precision="highest")
