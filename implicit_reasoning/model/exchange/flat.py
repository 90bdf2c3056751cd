"""What the formats share: one level of names, loops written out, checks of names and shapes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from implicit_reasoning.errors import InputError
from implicit_reasoning.model.blocks.parameters import unflatten_params
from implicit_reasoning.model.transformer import Params, Transformer


def flatten_params(params: Params) -> dict[str, Any]:
    """`{"blocks.0.attn.W_Q": array, ...}`."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {".".join(part.key for part in path): leaf for path, leaf in leaves}


def unroll(model: Transformer, params: Params) -> tuple[Transformer, Params]:
    """The model without loops that computes the same: every block once for each of its passes."""
    spec = model.spec
    unrolled = dataclasses.replace(spec, n_layers=spec.depth, n_loops=1)
    # Arrays are shared between the passes; the dictionaries are not, so that each can be edited.
    blocks = {
        str(layer): jax.tree.map(lambda leaf: leaf, params["blocks"][str(layer % spec.n_layers)])
        for layer in range(spec.depth)
    }
    return Transformer(unrolled), params | {"blocks": blocks}


def check_fit(
    flat: Mapping[str, Any],
    wanted: Mapping[str, Any],
    where: str | os.PathLike[str],
    what: str = "the model of its config",
) -> None:
    """Raise one `InputError` that lists every name that is missing, unknown or of another shape.

    Args:
      flat: arrays of the file.
      wanted: name to anything with the `shape` that the array must have.
      where: the file.
      what: the arrays have to fit.
    """
    faults = [f"{name} is missing" for name in wanted if name not in flat]
    faults += [f"{name} is not a parameter of it" for name in flat if name not in wanted]
    faults += [
        f"{name} has shape {flat[name].shape}, not {like.shape}"
        for name, like in wanted.items()
        if name in flat and flat[name].shape != like.shape
    ]
    if faults:
        raise InputError(f"{where} does not fit {what}: {'; '.join(faults)}")


def shapes(model: Transformer) -> Params:
    """The parameters' shapes, without computing them."""
    params: Params = jax.eval_shape(model.init, jax.random.key(0))
    return params


def scale_queries(flat: dict[str, Any], layer: int, ratio: float) -> None:
    """Multiply the attention scores of a block by a ratio, in place of its `W_Q` and `b_Q`."""
    if ratio != 1:
        for name in (f"blocks.{layer}.attn.W_Q", f"blocks.{layer}.attn.b_Q"):
            flat[name] = (flat[name] * np.float64(ratio)).astype(np.float32)


def on_device(flat: Mapping[str, Any]) -> Params:
    """Nested parameters of flat ones, on the device."""
    # `jnp.asarray` would compile a program for every shape.
    return unflatten_params(jax.device_put(dict(flat)))
