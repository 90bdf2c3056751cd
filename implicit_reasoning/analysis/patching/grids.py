"""Patch each state, block part or neuron of a donor run into a base run, one at a time.

A run means a forward pass in this module. A block part is the attention, the MLP or one head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from implicit_reasoning.model import HookContext, Params, Transformer
from implicit_reasoning.model.blocks.cells import Start
from implicit_reasoning.model.cones import Cache, patched_logits, state, value_at


def part_names(model: Transformer) -> tuple[str, ...]:
    """Return the names of the parts of a block, such as the attention and the MLP.

    The axis `part` of `patch_parts` has the same order.
    """
    return model.block.parts(model.spec)


def patch_states(
    model: Transformer,
    params: Params,
    base: Cache,
    donor: Cache,
    *,
    only: int | Array | None = None,
) -> Float[Array, "layer pos example d_vocab"]:
    """Patch each state of the donor run into the base run, one at a time.

    A state is the residual stream at one (layer, position). Layer 0 is the sum of the embeddings.
    Layer `depth` is the input of the final norm.

    Args:
      model: the model; static.
      params: parameters of both runs.
      base: cached activations of the base run, at the sites from `cache_sites`.
      donor: cached activations of the donor run, at the same sites as `base`.
      only: the position of the only token that differs between the two runs; may be traced. None
        means that several tokens may differ. If `only` is given, the function skips patches whose
        logits are known. A patch at layer 0 and position `only` gives the logits of `donor`.
        Patches at layer 0 and any other position give the logits of `base`. Patches at positions
        before `only` also give the logits of `base`.

    Returns:
      The logits at the last position after each patch.
    """
    depth, n_pos = model.spec.depth, state(model, base, 0).shape[1]
    layers = range(depth + 1)
    base_says, donor_says = (_own_logits(model, params, run) for run in (base, donor))

    def cells(layers: Sequence[int], positions: Sequence[int]) -> Array:
        places = list(product(layers, positions))
        found = _cones(model, params, base, donor, [at for at in places if at[0] < depth])
        # After the last block, only the state at the last position is read. It determines the
        # logits.
        for pos in positions:
            found[depth, pos] = (donor_says if pos == n_pos - 1 else base_says)[None]
        logits = jnp.concatenate([found[at] for at in places])
        return logits.reshape(len(layers), len(positions), *base_says.shape)

    if only is None:
        return cells(layers, range(n_pos))
    same = jnp.broadcast_to(base_says, (depth, 1, *base_says.shape))

    def column(pos: int) -> Array:
        first = jnp.where(pos == only, donor_says, base_says)[None, None]
        later = jax.lax.cond(pos >= only, lambda: cells(layers[1:], [pos]), lambda: same)
        return jnp.concatenate([first, later])

    return jnp.concatenate([column(pos) for pos in range(n_pos)], axis=1)


def patch_parts(
    model: Transformer,
    params: Params,
    base: Cache,
    donor: Cache,
    *,
    only: int | Array | None = None,
) -> Float[Array, "block part pos example d_vocab"]:
    """Patch each block part of the donor run into the base run, one at a time.

    A patch replaces the output of one part of one block at one position. `patch_states` describes
    the arguments.

    Returns:
      The logits at the last position after each patch.
    """
    n_pos, says = state(model, base, 0).shape[1], _own_logits(model, params, base)
    same = jnp.broadcast_to(says, (len(part_names(model)), *says.shape))
    network, sites = model.bind(params), model.block.part_sites

    def start(block: int, pos: int) -> Array:
        """Return `S[block + 1, pos]` for each patched part."""
        own, other = (
            {name: value_at(model, run, f"blocks.{block}.{name}", pos) for name in sites}
            for run in (base, donor)
        )
        return network.block(block).exchange_parts(own, other)

    def cells(positions: Sequence[int]) -> Array:
        return _after_blocks(model, params, base, start, same, positions)

    if only is None:
        return cells(range(n_pos))
    unchanged = jnp.broadcast_to(same[None, :, None], (model.spec.depth, len(same), 1, *says.shape))

    def column(pos: int) -> Array:
        return jax.lax.cond(pos >= only, lambda: cells([pos]), lambda: unchanged)

    return jnp.concatenate([column(pos) for pos in range(n_pos)], axis=2)


def patch_neurons(
    model: Transformer, params: Params, base: Cache, donor: Cache
) -> Float[Array, "block neuron pos example d_vocab"]:
    """Patch each neuron of the donor run into the base run, one at a time.

    A neuron is an element of `mlp.hook_post` of one block at one position. It adds `activation *
    W_out[neuron]` to the residual stream. A patch therefore adds `(donor activation - base
    activation) * W_out[neuron]`.

    Returns:
      The logits at the last position after each patch.
    """
    n_pos, says = state(model, base, 0).shape[1], _own_logits(model, params, base)
    same = jnp.broadcast_to(says, (model.spec.d_mlp, *says.shape))

    def start(block: int, pos: int) -> Float[Array, "neuron example d_model"]:
        """Return `S[block + 1, pos]` for each patched neuron."""
        name = f"blocks.{block}."
        own, other = (value_at(model, run, name + "mlp.hook_post", pos) for run in (base, donor))
        weights = params["blocks"][str(block % model.spec.n_layers)]["mlp"]["W_out"]
        # The sites of the last block may hold only the last position, so index from the end.
        after = state(model, base, block + 1)[:, pos - n_pos]
        return after[None] + (other - own).T[:, :, None] * weights[:, None]

    return _after_blocks(model, params, base, start, same, range(n_pos))


def _after_blocks(
    model: Transformer,
    params: Params,
    base: Cache,
    start: Callable[[int, int], Array],
    same: Float[Array, "patch example d_vocab"],
    positions: Sequence[int],
) -> Float[Array, "block patch pos example d_vocab"]:
    """Return the logits after each patch of the output of each block, at some positions.

    Args:
      model: the model; static.
      params: parameters of both runs.
      base: sites of the run to patch.
      start: function of a block and a position; returns `S[block + 1, pos]` for each patch.
      same: the logits without a patch, repeated for each patch.
      positions: the positions to patch.
    """
    depth, last = model.spec.depth, state(model, base, 0).shape[1] - 1
    places = list(product(range(depth), positions))
    # The output of the last block is read at the last position only.
    read = [at for at in places if at[0] < depth - 1 or at[1] == last]
    starts = {(block + 1, pos): start(block, pos) for block, pos in read}
    found = patched_logits(model, params, base, starts)
    logits = jnp.stack([found.get((block + 1, pos), same) for block, pos in places])
    return jnp.swapaxes(logits.reshape(depth, len(positions), *same.shape), 1, 2)


def _cones(
    model: Transformer, params: Params, base: Cache, donor: Cache, places: list[Start]
) -> dict[Start, Float[Array, "1 example d_vocab"]]:
    """Return logits of `base` with `S[layer, pos]` of `donor`, for layers below `depth`."""
    if state(model, base, 0).shape[1] == 1:
        return dict.fromkeys(places, _own_logits(model, params, donor)[None])
    starts = {(n, pos): state(model, donor, n)[None, :, pos] for n, pos in places if pos}
    found = patched_logits(model, params, base, starts)
    # Position 0 attends to itself only. If position 0 is patched in one layer, its states in later
    # layers are those of the donor run. The computation therefore starts at position 1, which is
    # not patched.
    starts = {(n, 1): state(model, base, n)[None, :, 1] for n, pos in places if not pos}
    after_first = patched_logits(model, params, _with_first(base, donor), starts)
    return found | {(n, 0): logits for (n, _), logits in after_first.items()}


def _with_first(base: Cache, donor: Cache) -> Cache:
    """Return `base` with the keys, values and states of `donor` at the first position."""
    n_pos = base["blocks.0.hook_resid_pre"].shape[1]

    def joined(own: Array, other: Array) -> Array:
        trimmed = own.shape[1] < n_pos  # this site holds only the last position
        return own if trimmed else own.at[:, 0].set(other[:, 0])

    return {site: joined(own, donor[site]) for site, own in base.items()}


def _own_logits(model: Transformer, params: Params, run: Cache) -> Float[Array, "example d_vocab"]:
    """Return the logits of an unpatched run at its last position."""
    last = state(model, run, model.spec.depth)[:, -1]
    return model.bind(params).readout(last, HookContext())


def noising_and_denoising(
    patch: Callable[[Transformer, Params, Cache, Cache], Array],
    model: Transformer,
    params: Params,
    one: Cache,
    other: Cache,
) -> Float[Array, " direction *grid"]:
    """Patch from `other` into `one`, and then from `one` into `other`.

    `patch` is compiled once for both directions.

    Args:
      patch: function such as `patch_states`, which takes the base run before the donor run.
      model: the model; static.
      params: parameters of both runs.
      one: cached activations of the first run, which is the base run in the first direction.
      other: cached activations of the second run, which is the donor run in the first direction.

    Returns:
      The logits of both directions, stacked along a new first axis.
    """
    pairs = jax.tree.map(lambda *pair: jnp.stack(pair), (one, other), (other, one))
    grids: Array = jax.lax.map(lambda pair: patch(model, params, *pair), pairs)
    return grids
