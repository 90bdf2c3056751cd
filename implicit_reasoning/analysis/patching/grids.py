"""All cells of a patch: states, or what the parts of a block wrote, of one run put into another."""

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
    """Of the parts of a block, in the order of `patch_parts`."""
    return model.block.parts(model.spec)


def patch_states(
    model: Transformer,
    params: Params,
    base: Cache,
    donor: Cache,
    *,
    only: int | Array | None = None,
) -> Float[Array, "layer pos example d_vocab"]:
    """Logits at the end of `base` with `S[layer, pos]` of `donor`, for every layer and position.

    Layer `depth` is before the final norm, which then reads the state that was put there.

    Args:
      model: static.
      params: of both runs.
      base: the run that is patched; see `cache_sites`.
      donor: the run whose states are taken.
      only: the one position at which the two runs have another token, if there is one; it may be
        traced. Its embedding is then all that differs, so that putting it into `base` makes it
        `donor`; other embeddings, and states before it, change nothing. None of this is computed.
    """
    depth, n_pos = model.spec.depth, state(model, base, 0).shape[1]
    layers = range(depth + 1)
    base_says, donor_says = (_own_logits(model, params, run) for run in (base, donor))

    def cells(layers: Sequence[int], positions: Sequence[int]) -> Array:
        places = list(product(layers, positions))
        found = _cones(model, params, base, donor, [at for at in places if at[0] < depth])
        # After the last block nothing but the state at the end is read, and it is all that is.
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
    """Logits at the end of `base` when one part of one block writes what it did in `donor`.

    Arguments are those of `patch_states`.
    """
    depth, n_pos = model.spec.depth, state(model, base, 0).shape[1]
    says = _own_logits(model, params, base)
    same = jnp.broadcast_to(says, (len(part_names(model)), *says.shape))
    network, sites = model.bind(params), model.block.part_sites

    def start(block: int, pos: int) -> Array:
        """`S[block + 1, pos]` for each part."""
        own, other = (
            {name: value_at(model, run, f"blocks.{block}.{name}", pos) for name in sites}
            for run in (base, donor)
        )
        return network.block(block).exchange_parts(own, other)

    def cells(positions: Sequence[int]) -> Array:
        places = list(product(range(depth), positions))
        # What the last block writes elsewhere than at the end is read by nobody.
        read = [at for at in places if at[0] < depth - 1 or at[1] == n_pos - 1]
        starts = {(block + 1, pos): start(block, pos) for block, pos in read}
        found = patched_logits(model, params, base, starts)
        logits = jnp.stack([found.get((block + 1, pos), same) for block, pos in places])
        return jnp.swapaxes(logits.reshape(depth, len(positions), *same.shape), 1, 2)

    if only is None:
        return cells(range(n_pos))
    unchanged = jnp.broadcast_to(same[None, :, None], (depth, len(same), 1, *says.shape))

    def column(pos: int) -> Array:
        return jax.lax.cond(pos >= only, lambda: cells([pos]), lambda: unchanged)

    return jnp.concatenate([column(pos) for pos in range(n_pos)], axis=2)


def neuron_sites(model: Transformer) -> tuple[str, ...]:
    """The sites that `patch_neurons` reads in addition to those of `cache_sites`."""
    return tuple(f"blocks.{block}.mlp.hook_post" for block in range(model.spec.depth))


def patch_neurons(
    model: Transformer, params: Params, base: Cache, donor: Cache
) -> Float[Array, "block neuron pos example d_vocab"]:
    """Logits at the end of `base` when one neuron (`mlp.hook_post`) is as in `donor`.

    A neuron writes its activation times its row of `W_out` into the residual, which therefore
    changes by the difference of the activations times that row.
    """
    depth, n_pos = model.spec.depth, state(model, base, 0).shape[1]
    says = _own_logits(model, params, base)
    same = jnp.broadcast_to(says, (model.spec.d_mlp, *says.shape))

    def start(block: int, pos: int) -> Float[Array, "neuron example d_model"]:
        """`S[block + 1, pos]` for each neuron."""
        name = f"blocks.{block}."
        own, other = (value_at(model, run, name + "mlp.hook_post", pos) for run in (base, donor))
        weights = params["blocks"][str(block % model.spec.n_layers)]["mlp"]["W_out"]
        after = state(model, base, block + 1)[:, pos - n_pos]  # of the last block, the end only
        return after[None] + (other - own).T[:, :, None] * weights[:, None]

    places = list(product(range(depth), range(n_pos)))
    # What the last block writes elsewhere than at the end is read by nobody.
    read = [at for at in places if at[0] < depth - 1 or at[1] == n_pos - 1]
    found = patched_logits(
        model, params, base, {(block + 1, pos): start(block, pos) for block, pos in read}
    )
    logits = jnp.stack([found.get((block + 1, pos), same) for block, pos in places])
    return jnp.swapaxes(logits.reshape(depth, n_pos, *same.shape), 1, 2)


def _cones(
    model: Transformer, params: Params, base: Cache, donor: Cache, places: list[Start]
) -> dict[Start, Float[Array, "1 example d_vocab"]]:
    """Logits at the end of `base` with `S[layer, pos]` of `donor`, below the last layer."""
    if state(model, base, 0).shape[1] == 1:
        return dict.fromkeys(places, _own_logits(model, params, donor)[None])
    starts = {(n, pos): state(model, donor, n)[None, :, pos] for n, pos in places if pos}
    found = patched_logits(model, params, base, starts)
    # The first position sees no other: exchanged in one layer, it goes on as in the donor's run.
    # The second one, where nothing is exchanged, is then the first that has to be computed.
    starts = {(n, 1): state(model, base, n)[None, :, 1] for n, pos in places if not pos}
    after_first = patched_logits(model, params, _with_first(base, donor), starts)
    return found | {(n, 0): logits for (n, _), logits in after_first.items()}


def _with_first(base: Cache, donor: Cache) -> Cache:
    """`base`, but with the keys, values and states that `donor` has at the first position."""
    n_pos = base["blocks.0.hook_resid_pre"].shape[1]

    def joined(own: Array, other: Array) -> Array:
        trimmed = own.shape[1] < n_pos  # to the last position
        return own if trimmed else own.at[:, 0].set(other[:, 0])

    return {site: joined(own, donor[site]) for site, own in base.items()}


def _own_logits(model: Transformer, params: Params, run: Cache) -> Float[Array, "example d_vocab"]:
    """What the run itself says at its end."""
    last = state(model, run, model.spec.depth)[:, -1]
    return model.bind(params).readout(last, HookContext())


def noising_and_denoising(
    patch: Callable[[Transformer, Params, Cache, Cache], Array],
    model: Transformer,
    params: Params,
    one: Cache,
    other: Cache,
) -> Float[Array, " direction *grid"]:
    """The grid of `other` put into `one`, and the reverse; compiled once for both."""
    pairs = jax.tree.map(lambda *pair: jnp.stack(pair), (one, other), (other, one))
    grids: Array = jax.lax.map(lambda pair: patch(model, params, *pair), pairs)
    return grids
