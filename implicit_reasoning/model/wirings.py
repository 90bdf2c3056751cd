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
    """Return `forward`'s logits at some positions; the last block runs at these positions only.

    The last block needs keys and values at all positions. Its queries, output and MLP, and the
    unembedding, run only at `positions`. With 3 positions and one answer, this saves two thirds of
    the cost of the last block and of the unembedding. The sites of the last block then hold these
    positions only.

    Args:
      model: the model.
      params: the parameters of one model.
      tokens: the prompts, `[batch, pos]`.
      positions: the positions at which to compute logits, in each row; by default the last.
      edits: see `Transformer.forward`.
      sites: see `Transformer.forward`.

    Returns:
      `(logits, {site: value})`, with float32 logits `[batch, slot, d_vocab]`.

    Raises:
      InputError: the model does not have a token (if tokens are not traced) or a site, or this
        forward pass does not pass an edited or wanted site.
    """
    hooks = model.hook_context(edits, sites)
    network, last = model.bind(params), model.spec.depth - 1
    resid = network.embedding(tokens, hooks)
    for layer in range(last):
        resid = network.block(layer)(resid, hooks.within(f"blocks.{layer}."))
    resid = network.block(last).at(resid, positions, hooks.within(f"blocks.{last}."))
    return network.readout(resid, hooks), hooks.results()
