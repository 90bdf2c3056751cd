"""What a model makes of an edited state: it is run from `S[layer]` on, to the answer."""

from __future__ import annotations

from jaxtyping import Array, Float, Int

from implicit_reasoning.model import Params, Taps, Transformer


def answer_logits(
    model: Transformer,
    params: Params,
    resid: Float[Array, "batch pos d_model"],
    layer: int,
) -> Float[Array, "batch d_vocab"]:
    """Logits at the last position when `S[layer]` is `resid`; nothing before it is computed."""
    network = model.bind(params)
    for later in range(layer, model.spec.depth):
        resid = network.block(later)(resid, Taps())
    return network.readout(resid[:, -1], Taps())


def answer_from(
    model: Transformer,
    params: Params,
    resid: Float[Array, "batch pos d_model"],
    layer: int,
    pos: Int[Array, ""] | int,
    states: Float[Array, "batch d_model"],
) -> Int[Array, "batch"]:
    """The answer (a token) when `S[layer, pos]` becomes `states`, the rest of `S[layer]` stays."""
    return answer_logits(model, params, resid.at[:, pos].set(states), layer).argmax(-1)
