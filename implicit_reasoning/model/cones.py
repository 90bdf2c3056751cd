"""Efficient patching: of a patched forward pass, compute only what the patch can change.

A patch at (layer, position) changes later layers at that position and at later positions, and
nothing else. All other values are those of the clean run and are read from the cache of its sites.

Layers are unrolled. A cell of a patching grid joins the batch at the layer where it starts, so a
grid over `depth` layers runs each block once. (With a traced layer number, every cell would run
all blocks.) `Block.run_cones` defines what a block recomputes for its cells.
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
"""Values of the sites of a run, as `Transformer.forward` or `wirings.forward_at` returns them.

The sites of the last block, except its input, keys and values, may hold the last position only.
"""


def cache_sites(model: Transformer, *, inside: bool = False) -> tuple[str, ...]:
    """Return the sites that `patched_logits` reads.

    Args:
      model: the model.
      inside: also return the sites that `Block.exchange_parts` reads.
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
    """Return the value of a site at a position.

    Raises:
      InputError: the cache holds the site at later positions only, as it may for the last block.
    """
    from_end = state(model, cache, 0).shape[1] - pos
    if from_end > cache[site].shape[1]:
        raise InputError(f"this cache holds {site} for the last position only, not for {pos}")
    return cache[site][:, -from_end]


def patched_logits(
    model: Transformer,
    params: Params,
    cache: Cache,
    starts: Mapping[Start, Float[Array, "_cell batch d_model"]],
) -> dict[Start, Float[Array, "_cell batch d_vocab"]]:
    """Compute the logits at the last position; each cell replaces one state `S[layer, pos]`.

    Args:
      model: the model; static under `jax.jit`, as are the keys of `starts`.
      params: the parameters of the patched run.
      cache: the cache of the patched run; see `cache_sites`.
      starts: the replacement states, by layer and position. Each is one cell.

    Returns:
      The logits of every cell, by the same keys. They equal those of `forward` with the same edit.

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
        # After the last block, only the last position is read, so a patch elsewhere has no effect.
        if at[0] == depth:
            own = new if at[1] == n_pos - 1 else jnp.broadcast_to(last, new.shape)
            cones[at] = own[:, :, None]
    logits = unflatten_cells(network.readout(flatten_cells(cones), HookContext()), cones)
    return {at: logits[at][:, :, 0] for at in starts}


def _check(starts: Iterable[Start], depth: int, n_pos: int) -> None:
    for layer, pos in starts:
        if not 0 <= pos < n_pos:
            raise InputError(f"cannot patch position {pos}; positions are 0 to {n_pos - 1}")
        if not 0 <= layer <= depth:
            raise InputError(f"cannot patch layer {layer}; layers of S are 0 to {depth}")
