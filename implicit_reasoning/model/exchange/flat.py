"""Helpers for all weight formats: dotted parameter names, looped models, checks of shapes."""

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
    """Return the parameters as `{"blocks.0.attn.W_Q": array, ...}`."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {".".join(part.key for part in path): leaf for path, leaf in leaves}


def unroll(model: Transformer, params: Params) -> tuple[Transformer, Params]:
    """Return an equivalent model without loops, in which a block is repeated once for each pass."""
    spec = model.spec
    unrolled = dataclasses.replace(spec, n_layers=spec.depth, n_loops=1)
    # The copies of a block share arrays but not dictionaries, so that a caller can change the
    # parameters of one copy only.
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
    """Check the names and shapes of arrays.

    Args:
      flat: the arrays from the file, by name.
      wanted: dict from each required name to an object with the required `shape`.
      where: path of the file, for the error message.
      what: name of the object that the arrays must fit, for the error message.

    Raises:
      InputError: a name is missing or unknown, or an array has the wrong shape. The message lists
        all such names.
    """
    faults = [f"{name} is missing" for name in wanted if name not in flat]
    faults += [f"{name} is not a parameter" for name in flat if name not in wanted]
    faults += [
        f"{name} has shape {flat[name].shape}, not {like.shape}"
        for name, like in wanted.items()
        if name in flat and flat[name].shape != like.shape
    ]
    if faults:
        raise InputError(f"{where} does not fit {what}: {'; '.join(faults)}")


def shapes(model: Transformer) -> Params:
    """Return the shapes of a model's parameters, without initializing the parameters."""
    params: Params = jax.eval_shape(model.init, jax.random.key(0))
    return params


def scale_queries(flat: dict[str, Any], layer: int, ratio: float) -> None:
    """Multiply the attention scores of a block by `ratio`, by scaling `W_Q` and `b_Q` in `flat`.

    Args:
      flat: the parameters by dotted name; changed in place.
      layer: the index of the block.
      ratio: the factor.
    """
    if ratio != 1:
        for name in (f"blocks.{layer}.attn.W_Q", f"blocks.{layer}.attn.b_Q"):
            flat[name] = (flat[name] * np.float64(ratio)).astype(np.float32)


def on_device(flat: Mapping[str, Any]) -> Params:
    """Convert a dict from dotted names to arrays into nested parameters on the device."""
    # `jnp.asarray` would compile one program per shape.
    return unflatten_params(jax.device_put(dict(flat)))
