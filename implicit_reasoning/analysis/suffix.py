"""The rest of a forward pass, up to the answer: from the tokens, or from an edited state on."""

from __future__ import annotations

from jaxtyping import Array, Float, Int

from implicit_reasoning.model import HookContext, Params, Transformer
from implicit_reasoning.model.wirings import forward_at


def final_logits(
    model: Transformer, params: Params, tokens: Int[Array, "batch pos"]
) -> Float[Array, "batch d_vocab"]:
    """Logits at the last position, where nothing else is wanted of a run."""
    return forward_at(model, params, tokens)[0][:, 0]


def logits_from_layer(
    model: Transformer,
    params: Params,
    resid: Float[Array, "batch pos d_model"],
    layer: int,
) -> Float[Array, "batch d_vocab"]:
    """Logits at the last position when `S[layer]` is `resid`; nothing before it is computed."""
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
    """The answer (a token) when `S[layer, pos]` becomes `states`, the rest of `S[layer]` stays."""
    return logits_from_layer(model, params, resid.at[:, pos].set(states), layer).argmax(-1)
