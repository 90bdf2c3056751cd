"""Compute the logits at the last position, from the tokens or from the states of a layer."""

from __future__ import annotations

from jaxtyping import Array, Float, Int

from implicit_reasoning.model import HookContext, Params, Transformer
from implicit_reasoning.model.wirings import forward_at


def final_logits(
    model: Transformer, params: Params, tokens: Int[Array, "batch pos"]
) -> Float[Array, "batch d_vocab"]:
    """Compute the logits at the last position of each prompt."""
    return forward_at(model, params, tokens)[0][:, 0]


def logits_from_layer(
    model: Transformer,
    params: Params,
    resid: Float[Array, "batch pos d_model"],
    layer: int,
) -> Float[Array, "batch d_vocab"]:
    """Compute the logits at the last position from the states of one layer.

    Only the blocks after this layer are computed.

    Args:
      model: the model; static.
      params: parameters of one checkpoint.
      resid: the residual stream after `layer` blocks.
      layer: the number of blocks before `resid`, from 0 to `depth`.
    """
    network, depth = model.bind(params), model.spec.depth
    for later in range(layer, depth - 1):
        resid = network.block(later)(resid, HookContext())
    if layer < depth:
        resid = network.block(depth - 1).at(resid, None, HookContext())
    return network.readout(resid[:, -1], HookContext())


def answer_after_patch(
    model: Transformer,
    params: Params,
    resid: Float[Array, "batch pos d_model"],
    layer: int,
    pos: Int[Array, ""] | int,
    states: Float[Array, "batch d_model"],
) -> Int[Array, " batch"]:
    """Patch the states at one position, and return the predicted answers.

    Args:
      model: the model; static.
      params: parameters of one checkpoint.
      resid: the residual stream after `layer` blocks, before the patch.
      layer: layer of the patch, from 0 to `depth`.
      pos: position of the patch; may be traced.
      states: the states that replace `resid[:, pos]`.

    Returns:
      The token with the highest logit at the last position.
    """
    return logits_from_layer(model, params, resid.at[:, pos].set(states), layer).argmax(-1)
