"""The suffix-and-cone wiring: of a patched forward pass, only what the patch can change.

A state exchanged at (layer, position) reaches later layers, there and at later positions, and
nothing else: what others read is that of the clean run, whose sites are the cache. In the block
where a cone starts, even queries, keys and values of later positions are still the clean ones.

Layers are unrolled, and the cells of a grid join the batch at the layer where they start: a grid of
`depth` layers runs each block once. (A traced layer number would run all blocks for every cell.)
What a block does to each position by itself, nearly all of its work, it does to all cells of all
positions in one product; only attention is told apart by position.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from implicit_reasoning.errors import InputError
from implicit_reasoning.model.edits import HookContext
from implicit_reasoning.model.transformer import Block, Params, Transformer

Cache = Mapping[str, Array]
"""Values of the sites of a run, as `Transformer.forward` or `wirings.forward_at` returns them: what
the last block writes, and its queries, may be there for the last position only."""
Start = tuple[int, int]
"""Layer (0 to `depth`) and position of `S[layer, pos]`, where other states are put."""

_Cones = dict[Start, Float[Array, "_cell batch _own_pos ..."]]

_CONE = ("hook_resid_pre", "attn.hook_q", "attn.hook_k", "attn.hook_v")
_INSIDE = ("attn.hook_z", "hook_attn_out", "hook_resid_mid", "hook_mlp_out")


def cache_sites(model: Transformer, *, inside: bool = False) -> tuple[str, ...]:
    """The sites that `patched_logits` reads; with `inside`, those of starts inside blocks too."""
    names = _CONE + (_INSIDE if inside else ())
    depth = model.spec.depth
    blocks = tuple(f"blocks.{layer}.{name}" for layer in range(depth) for name in names)
    return (*blocks, f"blocks.{depth - 1}.hook_resid_post")


def state(model: Transformer, cache: Cache, layer: int) -> Float[Array, "batch pos d_model"]:
    """`S[layer]` of a cache: the residual after `layer` blocks, before the final norm."""
    last = layer == model.spec.depth
    return cache[f"blocks.{layer - 1}.hook_resid_post" if last else f"blocks.{layer}.{_CONE[0]}"]


def value_at(model: Transformer, cache: Cache, site: str, pos: int) -> Float[Array, "batch ..."]:
    """The value of a site at a position, which of the last block may be there for the end only."""
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
    """Logits at the last position, for states put in place of `S[layer, pos]`, one after the other.

    Args:
      model: static, like the keys of `starts`.
      params: of the run that is patched.
      cache: of the run that is patched; see `cache_sites`.
      starts: by layer and position, the states that are put there: a cell each.

    Returns:
      Of every cell, by the same keys; what `forward` gives with the same edit.

    Raises:
      InputError: a layer or a position that is not there.
    """
    n_pos, depth = state(model, cache, 0).shape[1], model.spec.depth
    _check(starts, depth, n_pos)
    if not starts:
        return {}
    network = model.bind(params)
    cones: _Cones = {}
    for layer in range(depth):
        cones |= {at: new[:, :, None] for at, new in starts.items() if at[0] == layer}
        clean = {name: cache[f"blocks.{layer}.{name}"] for name in _CONE}
        if cones:
            cones = _after_block(network.block(layer), cones, clean, only_end=layer == depth - 1)
    last = state(model, cache, depth)[:, -1]
    for at, new in starts.items():
        if at[0] == depth:  # nobody reads its other positions any more
            own = new if at[1] == n_pos - 1 else jnp.broadcast_to(last, new.shape)
            cones[at] = own[:, :, None]
    logits = _unflat(network.readout(_flat(cones), HookContext()), cones)
    return {at: logits[at][:, :, 0] for at in starts}


def _check(starts: Iterable[Start], depth: int, n_pos: int) -> None:
    for layer, pos in starts:
        if not 0 <= pos < n_pos:
            raise InputError(f"cannot patch position {pos}; there are 0 to {n_pos - 1}")
        if not 0 <= layer <= depth:
            raise InputError(f"cannot patch layer {layer}; S has the layers 0 to {depth}")


def _after_block(
    block: Block,
    cones: _Cones,
    clean: Mapping[str, Float[Array, "batch _pos ..."]],
    *,
    only_end: bool,
) -> _Cones:
    """One block, over the cells of all starts.

    Args:
      block: to run.
      cones: by start, what is not as in the clean run: states of the start's position and all after
        it or, of a cone that starts here, of that position alone.
      clean: the clean run in this block.
      only_end: states are wanted of the last position only; else of the start's and all after it.
    """
    n_pos = clean["hook_resid_pre"].shape[1]
    first = {at: n_pos - 1 if only_end else at[1] for at in cones}
    wanted = {at: own[:, :, first[at] - at[1] :] for at, own in cones.items()}

    read = block.ln1(_flat(cones), HookContext())
    asking = block.ln1(_flat(wanted), HookContext()) if only_end else read
    projected = block.attn.project(asking, read, read, HookContext())
    q, k, v = map(_unflat, projected, (wanted, cones, cones))
    for at in cones:
        rest = slice(first[at] - n_pos, None)
        q[at] = _among(clean["attn.hook_q"][:, rest], q[at], 0)
        k[at] = _among(clean["attn.hook_k"], k[at], at[1])
        v[at] = _among(clean["attn.hook_v"], v[at], at[1])
        wanted[at] = _among(clean["hook_resid_pre"][:, rest], wanted[at], 0)
    attn_out = block.attn.output(_flat(_mixed(block, q, k, v)), HookContext())
    return _unflat(block.after_attention(_flat(wanted), attn_out, HookContext()), wanted)


def _mixed(block: Block, q: _Cones, k: _Cones, v: _Cones) -> _Cones:
    """What the heads mix; queries stand at the last of the keys' positions."""
    z: _Cones = {}
    for pos in dict.fromkeys(pos for _, pos in q):
        here = [at for at in q if at[1] == pos]
        cells = [jnp.concatenate([x[at] for at in here]) for x in (q, k, v)]
        asked, seen = (x.shape[2] for x in cells[:2])
        queries, keys, values = (x.reshape(-1, *x.shape[2:]) for x in cells)
        positions = jnp.arange(seen - asked, seen)[None]
        mixed = block.attn.mix(queries, keys, values, HookContext(), query_positions=positions)
        sizes = np.cumsum([len(q[at]) for at in here])[:-1]
        parts = jnp.split(mixed.reshape(cells[0].shape), sizes)
        z |= dict(zip(here, parts, strict=True))
    return {at: z[at] for at in q}


def _among(
    clean: Float[Array, "batch _pos ..."], own: Float[Array, "cell batch own_pos ..."], at: int
) -> Float[Array, "cell batch _pos ..."]:
    """The clean values, with `own` in their place from position `at` on."""
    clean = jnp.broadcast_to(clean[None], (len(own), *clean.shape)).astype(own.dtype)
    return jnp.concatenate([clean[:, :, :at], own, clean[:, :, at + own.shape[2] :]], axis=2)


def _flat(cones: _Cones) -> Float[Array, "1 row ..."]:
    """All cells, examples and positions in one row, for what is done to each of them alike."""
    return jnp.concatenate([x.reshape(1, -1, *x.shape[3:]) for x in cones.values()], axis=1)


def _unflat(flat: Float[Array, "1 row ..."], like: _Cones) -> _Cones:
    """The reverse, for any last axes."""
    sizes = np.cumsum([np.prod(x.shape[:3]) for x in like.values()])[:-1]
    parts = jnp.split(flat[0], sizes)
    return {
        at: part.reshape(*x.shape[:3], *flat.shape[2:])
        for (at, x), part in zip(like.items(), parts, strict=True)
    }
