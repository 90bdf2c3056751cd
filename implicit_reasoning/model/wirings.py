"""Forward passes that run the last block only at the positions whose output is read."""

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
    """Return the logits of `Transformer.forward` at some positions, at a lower cost.

    The last block computes keys and values at all positions. Its queries, output and MLP, and the
    unembedding, are computed at `positions` only. For rows with 3 positions and one answer, this
    saves two thirds of the cost of the MLP of the last block and of the unembedding. The other
    sites of the last block hold the values at `positions` only.

    Args:
      model: the model.
      params: the parameters of one model.
      tokens: the prompts, `[batch, pos]`.
      positions: for each row, the positions at which to compute logits; by default the last one.
      edits: see `Transformer.forward`.
      sites: see `Transformer.forward`.

    Returns:
      `(logits, {site: value})`, with float32 logits `[batch, slot, d_vocab]`.

    Raises:
      InputError: the model does not have a token (if tokens are not traced) or a site, or `edits`
        or `sites` has a site that this forward pass does not compute.
    """
    hooks = model.hook_context(edits, sites)
    network, last = model.bind(params), model.spec.depth - 1
    resid = network.embedding(tokens, hooks)
    for layer in range(last):
        resid = network.block(layer)(resid, hooks.within(f"blocks.{layer}."))
    resid = network.block(last).at(resid, positions, hooks.within(f"blocks.{last}."))
    return network.readout(resid, hooks), hooks.results()
