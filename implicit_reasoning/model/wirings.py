"""A forward pass that computes the last block only at the positions of the requested logits."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from jaxtyping import Array, Float, Int

from implicit_reasoning.model.edits import Edits
from implicit_reasoning.model.transformer import Params, Transformer


def forward_at(
    model: Transformer,
    params: Params,
    tokens: Int[Array | np.ndarray, "batch pos"],
    positions: Int[Array, "batch slot"] | None = None,
    *,
    edits: Edits | None = None,
    sites: Collection[str] = (),
) -> tuple[Float[Array, "batch slot d_vocab"], dict[str, Array]]:
    """Compute the logits of `Transformer.forward` only at some positions, at a lower cost.

    The last block computes keys and values at all positions. All other values of the last block,
    and the logits, are computed only at `positions`. For rows with 3 positions and one answer, this
    choice saves two thirds of the cost of the last MLP and of the unembedding. Except for keys and
    values, the sites (hook points) of the last block contain only `positions`.

    Args:
      model: the model.
      params: the parameters of one model.
      tokens: the prompts, `[batch, pos]`.
      positions: for each row, the positions at which to compute logits. The default is the last
        position.
      edits: one or several edits per site. Several edits are applied in order.
      sites: names of the sites whose (edited) values are returned.

    Returns:
      `(logits, {site: value})`, with float32 logits `[batch, slot, d_vocab]`.

    Raises:
      InputError: a token (if not traced) or a site does not exist in the model, or `sites` contains
        a site of `ln1` in a block where a per-head input is edited.
    """
    hooks = model.hook_context(edits, sites)
    network, last = model.bind(params), model.spec.depth - 1
    resid = network.embedding(tokens, hooks)
    for layer in range(last):
        resid = network.block(layer)(resid, hooks.within(f"blocks.{layer}."))
    resid = network.block(last).at(resid, positions, hooks.within(f"blocks.{last}."))
    return network.readout(resid, hooks), hooks.results()
