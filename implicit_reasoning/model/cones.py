"""Efficient activation patching, which computes only the states that the patch can change.

A patch at a layer and position changes only later layers, at this position and at later positions.
All other values are read from a cache of the clean run.

A cell of a patching grid is a run in which one state is patched. The loop over the layers is
unrolled, and a cell joins the batch at the patched layer. A grid over `depth` layers therefore runs
each block once. (If the layer were a traced number, every cell would run all blocks.)
`Block.run_cones` is the computation of one block.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from implicit_reasoning.errors import InputError
from implicit_reasoning.model.blocks.cells import Cones, Start, flatten_cells, unflatten_cells
from implicit_reasoning.model.edits import HookContext
from implicit_reasoning.model.transformer import Params, Transformer

Cache = Mapping[str, Array]
"""Site values of one run, as `Transformer.forward` or `wirings.forward_at` returns them.

In the last block, all sites except the block's input, keys and values may hold the last position
only.
"""


def cache_sites(model: Transformer, *, inside: bool = False) -> tuple[str, ...]:
    """Return the names of the sites (hook points) that `patched_logits` reads.

    Args:
      model: the model.
      inside: whether to also return the sites that `Block.exchange_parts` reads.
    """
    block, depth = model.block, model.spec.depth
    names = block.cone_sites + (block.part_sites if inside else ())
    sites = [f"blocks.{layer}.{name}" for layer in range(depth) for name in names]
    return tuple(dict.fromkeys((*sites, f"blocks.{depth - 1}.hook_resid_post")))


def state(model: Transformer, cache: Cache, layer: int) -> Float[Array, "batch pos d_model"]:
    """Return `S[layer]` from a cache: the residual after `layer` blocks, before the final norm."""
    if layer == model.spec.depth:
        return cache[f"blocks.{layer - 1}.hook_resid_post"]
    return cache[f"blocks.{layer}.hook_resid_pre"]


def value_at(model: Transformer, cache: Cache, site: str, pos: int) -> Float[Array, "batch ..."]:
    """Return the value of a site (hook point) at a position.

    Raises:
      InputError: the cache does not contain the site at this position. (For most sites of the last
        block, a cache may be limited to the last position.)
    """
    from_end = state(model, cache, 0).shape[1] - pos
    if from_end > cache[site].shape[1]:
        raise InputError(
            f"the cache contains {site} only at the last position, not at position {pos}; create "
            "the cache with `Transformer.forward`"
        )
    return cache[site][:, -from_end]


def patched_logits(
    model: Transformer,
    params: Params,
    cache: Cache,
    starts: Mapping[Start, Float[Array, "_cell batch d_model"]],
) -> dict[Start, Float[Array, "_cell batch d_vocab"]]:
    """Compute the logits at the last position of many patched runs (cells).

    A cell replaces one state `S[layer, pos]`, the residual after `layer` blocks.

    Args:
      model: the model. The model and the keys of `starts` are static under `jax.jit`.
      params: the parameters of the model.
      cache: the values of the sites `cache_sites(model)` in the clean run.
      starts: for each place `(layer, pos)` of a patch, the new states, one per cell.

    Returns:
      The logits of every cell, with the keys of `starts`. The logits equal the result of
      `Transformer.forward` with an edit that writes the new state.

    Raises:
      InputError: a layer or a position does not exist.
    """
    n_pos, depth = state(model, cache, 0).shape[1], model.spec.depth
    _check(starts, depth, n_pos)
    if not starts:
        return {}
    network = model.bind(params)
    cones: Cones = {}
    for layer in range(depth):
        cones |= {at: new[:, :, None] for at, new in starts.items() if at[0] == layer}
        clean = {name: cache[f"blocks.{layer}.{name}"] for name in model.block.cone_sites}
        if cones:
            cones = network.block(layer).run_cones(cones, clean, only_end=layer == depth - 1)
    last = state(model, cache, depth)[:, -1]
    for at, new in starts.items():
        # The logits read `S[depth]` at the last position only, so a patch of `S[depth]` at another
        # position has no effect.
        if at[0] == depth:
            own = new if at[1] == n_pos - 1 else jnp.broadcast_to(last, new.shape)
            cones[at] = own[:, :, None]
    logits = unflatten_cells(network.readout(flatten_cells(cones), HookContext()), cones)
    return {at: logits[at][:, :, 0] for at in starts}


def _check(starts: Iterable[Start], depth: int, n_pos: int) -> None:
    for layer, pos in starts:
        if not 0 <= pos < n_pos:
            raise InputError(
                f"cannot patch position {pos}; choose a position from 0 to {n_pos - 1}"
            )
        if not 0 <= layer <= depth:
            raise InputError(
                f"cannot patch layer {layer}; choose a layer of S[layer, pos] from 0 to {depth}"
            )
