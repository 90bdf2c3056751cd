"""Run a model with the output of a component replaced by a replacement value.

A component is the attention, the MLP or one head of a block, or the whole block. The replacement is
zero, a mean over other prompts, or the value in the forward pass on another prompt. A *donor* is a
cache of site values that holds the replacement values of all components.
"""

from __future__ import annotations

from itertools import product

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.analysis.suffix import logits_from_layer
from implicit_reasoning.model import Edit, HookContext, Params, Transformer, mask
from implicit_reasoning.model.cones import Cache, cache_sites, patched_logits, state, value_at
from implicit_reasoning.model.wirings import forward_at

ALL_POSITIONS = "all"
"""Label of the ablation of a component at every position of the prompt together."""


def component_names(model: Transformer) -> tuple[str, ...]:
    """Return the names of the components of a block.

    The parts of the block come first, then `block` (the sum of all outputs of the block) and
    `state` (the residual stream after the block). The axis `part` of `ablate_components` has the
    same order.
    """
    return (*model.block.parts(model.spec), "block", "state")


def run(
    model: Transformer, params: Params, tokens: Int[Array, "batch pos"]
) -> tuple[Float[Array, "batch d_vocab"], Cache]:
    """Return the logits at the last position, and the values that the other functions read."""
    logits, cache = forward_at(model, params, tokens, sites=cache_sites(model, inside=True))
    return logits[:, 0], cache


def mean_run(model: Transformer, params: Params, tokens: Int[Array, "prompt pos"]) -> Cache:
    """Return the mean of every site over prompts, for each position.

    The batch axis of the returned values has size 1.
    """
    _, cache = run(model, params, tokens)
    return {site: values.mean(0, keepdims=True) for site, values in cache.items()}


def make_donors(
    model: Transformer,
    params: Params,
    base: Cache,
    mean: Cache,
    tokens: Int[Array, "donor batch pos"],
) -> Cache:
    """Return the values that replace outputs of components, stacked along a new first axis.

    Args:
      model: the model; static.
      params: the parameters of all runs.
      base: the values of the run to ablate.
      mean: the result of `mean_run`.
      tokens: other prompts for each prompt of the batch.

    Returns:
      For each site, the values `[2 + donor, batch, ...]`: zeros, means, and the values of the runs
      on the other prompts.
    """
    others = jax.lax.map(lambda prompts: run(model, params, prompts)[1], tokens)

    def stacked(site: str) -> Array:
        own = base[site]
        constant = [jnp.zeros_like(own), jnp.broadcast_to(mean[site], own.shape)]
        return jnp.concatenate([jnp.stack(constant), others[site]])

    return {site: stacked(site) for site in base}


def ablate_components(
    model: Transformer, params: Params, base: Cache, donor: Cache
) -> Float[Array, "block part place example d_vocab"]:
    """Replace the output of each component by that of the donor, one component at a time.

    Args:
      model: the model; static.
      params: the parameters of the run to ablate.
      base: the values of the run to ablate, from `run`.
      donor: the replacement values, from `make_donors`, without the axis of donors.

    Returns:
      The logits at the last position. Components have the order of `component_names`. The places
      are the positions of the prompt and, last, all positions together. All later computations run
      on the replaced values.
    """
    network, depth = model.bind(params), model.spec.depth
    n_pos, sites = state(model, base, 0).shape[1], model.block.part_sites

    def start(block: int, pos: int) -> Float[Array, "part example d_model"]:
        """Return `S[block + 1, pos]` for each ablated component."""
        own, other = (
            {name: value_at(model, cache, f"blocks.{block}.{name}", pos) for name in sites}
            for cache in (base, donor)
        )
        parts = network.block(block).exchange_parts(own, other)
        # The sites of the last block may hold only the last position, so index from the end.
        before, after = (state(model, donor, block + n)[:, pos - n_pos] for n in (0, 1))
        whole = state(model, base, block)[:, pos - n_pos] + after - before
        return jnp.concatenate([parts, whole[None], after[None]])

    # The output of the last block is read at the last position only.
    everywhere = product(range(depth), range(n_pos))
    places = [at for at in everywhere if at[0] < depth - 1 or at[1] == n_pos - 1]
    starts = {(block + 1, pos): start(block, pos) for block, pos in places}
    single = patched_logits(model, params, base, starts)
    unchanged = network.readout(state(model, base, depth)[:, -1], HookContext())
    unchanged = jnp.broadcast_to(unchanged[None], single[depth, n_pos - 1].shape)

    def together(block: int) -> Float[Array, "part example d_vocab"]:
        if block == depth - 1:
            return single[depth, n_pos - 1]
        resid = jnp.stack([starts[block + 1, pos] for pos in range(n_pos)], axis=2)
        flat = resid.reshape(-1, *resid.shape[2:])
        return logits_from_layer(model, params, flat, block + 1).reshape(unchanged.shape)

    def of_block(block: int) -> Float[Array, "part place example d_vocab"]:
        alone = [single.get((block + 1, pos), unchanged) for pos in range(n_pos)]
        return jnp.stack([*alone, together(block)], axis=1)

    return jnp.stack([of_block(block) for block in range(depth)])


def ablate_heads(
    model: Transformer,
    params: Params,
    tokens: Int[Array, "example pos"],
    donor: Cache,
    ablated: Bool[Array, "example block head"],
) -> Float[Array, "example d_vocab"]:
    """Replace the outputs of several heads together, at all positions.

    Args:
      model: the model; static.
      params: the parameters.
      tokens: the prompts.
      donor: the replacement values, from `make_donors`, without the axis of donors.
      ablated: whether to replace each head; may differ between examples.
    """
    edits = {}
    for block in range(model.spec.depth):
        site = f"blocks.{block}.attn.hook_z"
        edits[site] = Edit(mask, (ablated[:, None, block, :, None], donor[site]))
    return forward_at(model, params, tokens, edits=edits)[0][:, 0]
