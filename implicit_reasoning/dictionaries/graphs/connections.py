"""Connections between features that follow from the weights alone, and de-embeddings.

A feature reads the residual stream with its encoder, and writes with its decoder. The connection
from one feature to a later one is the product of both vectors, directly or through the OV matrix of
a head. It is the change of the later pre-activation for each unit of activation, apart from two
factors that depend on the prompt: the scales of norms, and the pattern of the head. A de-embedding
replaces the earlier feature by the embeddings of all tokens. Paths through skip connections of
transcoders are not included.

    read = reading_vectors(model, model_params, weights)
    direct = connections(weights, read[1], 0, before=1)
    moved = connections(weights, through_heads(model, model_params, read[1])[1], 0, before=1)

Source: Dunefsky, Chlenski and Nanda 2024, "Transcoders find interpretable LLM feature circuits",
arXiv 2406.11944 (input-invariant connections; de-embeddings).
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from implicit_reasoning.dictionaries.replacement import Weights
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Params, Transformer, unembedding_matrix
from implicit_reasoning.model.factored import ov_matrices
from implicit_reasoning.runtime.machine import highest_precision

Vectors = Float[Array, "*rest d_model feature"]


def before_norm(
    model: Transformer, norm: Params | None, vectors: Float[Array, "*rest d_model vector"]
) -> Float[Array, "*rest d_model vector"]:
    """Pull vectors that multiply a normalized state back to the state divided by its scale.

    Args:
      model: the model, which says whether there is a norm.
      norm: the parameters of the norm; not read in a model without norms.
      vectors: vectors that multiply the output of the norm.
    """
    if norm is None or model.spec.normalization != "LN":
        return vectors
    weighed = norm["w"][:, None] * vectors
    return weighed - weighed.mean(-2, keepdims=True)


def reading_vectors(
    model: Transformer, model_params: Params, weights: Weights
) -> Float[Array, "layer d_model feature"]:
    """Return the vector with which each feature reads the residual stream.

    The product of the vector and the state, divided by the scale of `ln2`, is the pre-activation
    apart from the bias.

    Args:
      model: the model. A looped model has one layer for each unrolled block.
      model_params: the parameters of one model.
      weights: the weights of the transcoders.
    """
    blocks = [model_params["blocks"][str(n % model.spec.n_layers)] for n in range(model.spec.depth)]
    layers = [
        before_norm(model, block.get("ln2"), encoder)
        for block, encoder in zip(blocks, weights.encoder, strict=True)
    ]
    return jnp.stack(layers)


def logit_vectors(model: Transformer, model_params: Params) -> Float[Array, "d_model d_vocab"]:
    """Return the vector with which each logit reads the last state.

    The mean over the vocabulary is subtracted, as for the logit nodes of attribution graphs.
    """
    unembed = unembedding_matrix(model_params)
    centred = unembed - unembed.mean(1, keepdims=True)
    return before_norm(model, model_params.get("ln_final"), centred)


@highest_precision
def through_heads(
    model: Transformer, model_params: Params, vectors: Float[Array, "d_model vector"]
) -> Float[Array, "block head d_model vector"]:
    """Pull reading vectors back through the OV matrix of every head.

    A head that attends to one position with weight 1 adds the product of the result and the state
    at this position, divided by the scale of `ln1`.
    """
    matrices = ov_matrices(model, model_params, fold_norm=True)
    return jnp.einsum("bhdk,bhke,ev->bhdv", matrices.A, matrices.B, vectors)


@highest_precision
def connections(
    weights: Weights,
    vectors: Float[Array, "*rest d_model vector"],
    source: int,
    *,
    before: int,
) -> Float[Array, "*rest feature vector"]:
    """Return what each feature of a layer adds to the product of later states and some vectors.

    Args:
      weights: the weights of the transcoders.
      vectors: vectors that read the residual stream, from `reading_vectors`, `logit_vectors` or
        `through_heads`.
      source: the layer of the features.
      before: the number of MLPs that write before the vectors read: the layer of a feature, the
        block of a head, or the number of layers for logits. A feature of a cross-layer transcoder
        writes to several layers, and those from `before` on do not count.

    Raises:
      InputError: the layer of the features is not below `before`.
    """
    if not 0 <= source < before <= len(weights.encoder):
        raise InputError(
            f"features of layer {source} are not read after {before} MLPs; the layer must be "
            f"below the number of MLPs, and there are {len(weights.encoder)}"
        )
    written = weights.decoder[source, :, source:before].sum(1)
    return jnp.einsum("fd,...dv->...fv", written, vectors)


@highest_precision
def de_embeddings(
    model_params: Params, vectors: Float[Array, "*rest d_model vector"]
) -> Float[Array, "*rest d_vocab vector"]:
    """Return what the embedding of each token adds to the product of a state and some vectors.

    With `reading_vectors`, this is the score of each token for a feature. With `through_heads`, it
    is the score of each token at the position to which a head attends.
    """
    return jnp.einsum("td,...dv->...tv", model_params["embed"]["W_E"], vectors)


def head_relevance(
    model: Transformer, model_params: Params, vectors: Float[Array, "d_model vector"]
) -> Float[Array, "block head vector"]:
    """Return how much each head can move into some reading vectors: the norm of `W_OV v`."""
    pulled = through_heads(model, model_params, vectors)
    return jnp.sqrt((pulled**2).sum(-2))
