"""Short wirings of the forward pass: the last block runs only where its output is read."""

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
    """`forward`'s logits at some positions, by default the last; the last block runs only there.

    The last block's keys and values are needed everywhere, its queries, output, MLP and the
    unembedding only where somebody reads them: with 3 positions and one answer this saves two
    thirds of the last block and of the unembedding. Its sites hold these positions only.

    Raises:
      InputError: a token (if tokens are not traced) or a site that the model does not have, or an
        edited or wanted site that this wiring does not pass.
    """
    hooks = model.hook_context(edits, sites)
    network, last = model.bind(params), model.spec.depth - 1
    resid = network.embedding(tokens, hooks)
    for layer in range(last):
        resid = network.block(layer)(resid, hooks.within(f"blocks.{layer}."))
    resid = network.block(last).at(resid, positions, hooks.within(f"blocks.{last}."))
    return network.readout(resid, hooks), hooks.results()
