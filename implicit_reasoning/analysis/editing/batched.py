"""Many edits in one model, spread over the MLPs of several blocks (like MEMIT).

The target of an edit is the state after the last of the blocks, at r1 of the prompt (e1, r1): its
old value plus the change that the search of ROME found. The blocks are changed one after the other.
Each one moves the states by an equal share of what is still missing. The change of a block is the
least squares solution for all edits together, with the keys K [edit, d_mlp], the missing shares R
[edit, d_model] and the second moment C of other keys:

    W' = W + (K^T K + weight C)^-1 K^T R

Source: Meng et al. 2023, "Mass-editing memory in a transformer", section 4 and equation 14. There,
C is a second moment as here, and the weight is 15,000 for thousands of edits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from implicit_reasoning.analysis.editing.rank_one import memory, second_moment
from implicit_reasoning.analysis.editing.value_search import FactPrompts
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.surgery import LowRankChange, write_change


def edit_together(
    model: Transformer,
    params: Params,
    prompts: FactPrompts,
    added: Float[Array, "edit d_model"],
    moment: dict[str, Any],
    layers: Sequence[int],
    weight: float = 1.0,
) -> Params:
    """Return the parameters of one model with all edits.

    Args:
      model: the model.
      params: the parameters without any edit.
      prompts: the prompts of the facts.
      added: the change of the state after the last of the blocks, for each edit.
      moment: the prompts of the second moment, arguments of `second_moment`.
      layers: the unrolled depths of the blocks, in ascending order.
      weight: the weight of the second moment. A larger weight preserves other outputs better, and
        edits are less exact.
    """
    tokens, last = prompts.tokens[:, 0], f"blocks.{layers[-1]}.hook_resid_post"
    target = _at_end(model, params, tokens, last) + added
    edited = params
    for number, layer in enumerate(layers):
        keys = _at_end(model, edited, tokens, f"blocks.{layer}.mlp.hook_post")
        missing = (target - _at_end(model, edited, tokens, last)) / (len(layers) - number)
        others = second_moment(model, params, **moment, layer=layer)[0]
        inner = jnp.matmul(keys.T, keys, precision="highest") + weight * others
        change = LowRankChange(memory(inner).solve(keys), missing)
        edited = write_change(model, edited, layer, change)
    return edited


def _at_end(
    model: Transformer, params: Params, tokens: Any, site: str
) -> Float[Array, "edit width"]:
    """Return the values of a site at the last position of the prompts."""
    found: Array = model.forward(params, tokens, sites=(site,))[1][site][:, -1]
    return found
