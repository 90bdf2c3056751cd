"""Low-rank changes of the output matrix of an MLP, as traced factors.

The output matrix of an MLP is read as a memory: a vector of neuron activations is a key, and the
output is the value that is stored for this key. A change of rank k adds k pairs of a key and a
value. `change_edits` returns a change as edits of activations, and `write_change` writes it into
the parameters. Both give the same model. Edits need no copy of the parameters, so thousands of
changed models are one `jax.vmap` over the factors.

    change = LowRankChange(keys, values)
    logits, _ = model.forward(params, tokens, edits=change_edits(model, 0, change))
    logits, _ = model.forward(write_change(model, params, 0, change), tokens)  # the same

In a looped model, the blocks of all loops share their parameters. A change therefore applies at
every unrolled depth of its block.

Source of the view of an MLP as a memory: Geva et al. 2021; Meng et al. 2022 (ROME), section 3.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from implicit_reasoning.errors import InputError
from implicit_reasoning.model.blocks import require_gpt2
from implicit_reasoning.model.blocks.base import position_selector
from implicit_reasoning.model.edits import Edit, HookContext
from implicit_reasoning.model.transformer import Params, Transformer


class LowRankChange(NamedTuple):
    """The change `keys.T @ values` of a matrix `W_out` [d_mlp, d_model].

    Attributes:
      keys: the vectors that neuron activations are multiplied with.
      values: the vector that each key adds to the output of the MLP.
    """

    keys: Float[Array, "rank d_mlp"]
    values: Float[Array, "rank d_model"]

    def norm(self) -> Float[Array, ""]:
        """Return the Frobenius norm of the change."""
        keys, values = (jnp.matmul(x, x.T, precision="highest") for x in self)
        return jnp.sqrt(jnp.maximum((keys * values).sum(), 0))


class ChangePoint(NamedTuple):
    """Activations of prompts at the first place that a change of `W_out` can affect.

    Attributes:
      resid: `hook_resid_post` of the block at its first unrolled depth.
      acts: `mlp.hook_post` of the block at its first unrolled depth.
    """

    resid: Float[Array, "batch pos d_model"]
    acts: Float[Array, "batch pos d_mlp"]


def changed_depths(model: Transformer, layer: int) -> tuple[int, ...]:
    """Return all unrolled depths of the block at one unrolled depth, in ascending order.

    Args:
      model: the model.
      layer: an unrolled depth of the block.

    Raises:
      InputError: the model has no such block, or its blocks have no MLP of the kind `gpt2`.
    """
    require_gpt2(model.spec, "a change of W_out")
    if not 0 <= layer < model.spec.depth:
        raise InputError(f"layer is {layer}; the model has the blocks 0 to {model.spec.depth - 1}")
    return tuple(range(layer % model.spec.n_layers, model.spec.depth, model.spec.n_layers))


def change_edits(model: Transformer, layer: int, change: LowRankChange) -> dict[str, Edit]:
    """Return a change of the `W_out` of one block as edits of the outputs of its MLP.

    Args:
      model: the model.
      layer: an unrolled depth of the block.
      change: the change. Its arrays are traced, so they can be vmapped and differentiated.

    Raises:
      InputError: the model has no such block, or its blocks have no MLP of the kind `gpt2`.
    """
    return _edits_at(model, changed_depths(model, layer), change)


def write_change(model: Transformer, params: Params, layer: int, change: LowRankChange) -> Params:
    """Return parameters in which a change was added to the `W_out` of one block.

    Args:
      model: the model.
      params: the parameters, which are not changed.
      layer: an unrolled depth of the block.
      change: the change.

    Raises:
      InputError: the model has no such block, or its blocks have no MLP of the kind `gpt2`.
    """
    product = jnp.matmul(change.keys.T, change.values, precision="highest")
    return with_output_matrix(model, params, layer, output_matrix(model, params, layer) + product)


def output_matrix(model: Transformer, params: Params, layer: int) -> Float[Array, "d_mlp d_model"]:
    """Return the `W_out` of the block at an unrolled depth.

    Raises:
      InputError: the model has no such block, or its blocks have no MLP of the kind `gpt2`.
    """
    found: Array = params["blocks"][str(changed_depths(model, layer)[0])]["mlp"]["W_out"]
    return found


def with_output_matrix(
    model: Transformer, params: Params, layer: int, matrix: Float[Array, "d_mlp d_model"]
) -> Params:
    """Return parameters with another `W_out` in one block.

    Args:
      model: the model.
      params: the parameters, which are not changed.
      layer: an unrolled depth of the block.
      matrix: the new `W_out`.

    Raises:
      InputError: the model has no such block, or its blocks have no MLP of the kind `gpt2`.
    """
    name = str(changed_depths(model, layer)[0])
    block = params["blocks"][name]
    block = block | {"mlp": block["mlp"] | {"W_out": matrix}}
    return params | {"blocks": params["blocks"] | {name: block}}


def change_point(
    model: Transformer, params: Params, tokens: Int[Array | np.ndarray, "batch pos"], layer: int
) -> ChangePoint:
    """Compute the activations from which `logits_after_change` continues.

    Args:
      model: the model.
      params: the parameters of one model.
      tokens: the prompts.
      layer: an unrolled depth of the block whose `W_out` will change.

    Raises:
      InputError: the model has no such block, or its blocks have no MLP of the kind `gpt2`.
    """
    first = changed_depths(model, layer)[0]
    sites = (f"blocks.{first}.hook_resid_post", f"blocks.{first}.mlp.hook_post")
    found = model.forward(params, tokens, sites=sites)[1]
    return ChangePoint(*(found[site] for site in sites))


def logits_after_change(
    model: Transformer,
    params: Params,
    start: ChangePoint,
    layer: int,
    change: LowRankChange,
    positions: Int[Array, "batch slot"] | None = None,
) -> Float[Array, "batch slot d_vocab"]:
    """Compute the logits of a changed model, without the blocks that the change cannot affect.

    The result equals that of `forward_at` with the edits of `change_edits`. For many changes of one
    block, `start` is computed once.

    Args:
      model: the model.
      params: the parameters without the change.
      start: the activations of the prompts, from `change_point` with the same `layer`.
      layer: an unrolled depth of the block.
      change: the change.
      positions: for each row, the positions at which to compute logits. The default is the last
        position.

    Raises:
      InputError: the model has no such block, or its blocks have no MLP of the kind `gpt2`.
    """
    first, *later = changed_depths(model, layer)
    hooks = model.hook_context(_edits_at(model, later, change), ())
    network, last = model.bind(params), model.spec.depth - 1
    resid = start.resid + _product(start.acts, change, model.spec.precision)
    for depth in range(first + 1, last):
        resid = network.block(depth)(resid, hooks.within(f"blocks.{depth}."))
    if first < last:
        resid = network.block(last).at(resid, positions, hooks.within(f"blocks.{last}."))
    else:
        resid = position_selector(positions)(resid)
    return network.readout(resid, hooks)


def _edits_at(
    model: Transformer, depths: tuple[int, ...] | list[int], change: LowRankChange
) -> dict[str, Edit]:
    return {
        f"blocks.{depth}.hook_mlp_out": Edit(
            _add_product, change, (f"blocks.{depth}.mlp.hook_post", model.spec.precision)
        )
        for depth in depths
    }


def _add_product(
    value: Array, hooks: HookContext, change: LowRankChange, about: tuple[str, str]
) -> Array:
    """Add the product of the activations of the neurons with the change."""
    site, precision = about
    return value + _product(hooks.read(site), change, precision)


def _product(acts: Array, change: LowRankChange, precision: str) -> Array:
    keys, values = (x.astype(acts.dtype) for x in change)
    read = jnp.einsum("bpd,kd->bpk", acts, keys, precision=precision)
    return jnp.einsum("bpk,km->bpm", read, values, precision=precision)
