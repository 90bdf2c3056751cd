"""What the formats share: one level of names, loops written out, checks of names and shapes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from implicit_reasoning.errors import InputError
from implicit_reasoning.model.transformer import Params, Transformer


def flatten_params(params: Params) -> dict[str, Any]:
    """`{"blocks.0.attn.W_Q": array, ...}`."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {".".join(part.key for part in path): leaf for path, leaf in leaves}


def unflatten_params(flat: Mapping[str, Any]) -> Params:
    """The inverse of `flatten_params`."""
    params: Params = {}
    for name, leaf in flat.items():
        *groups, last = name.split(".")
        node = params
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = leaf
    return params


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
    flat: Mapping[str, Any], wanted: Mapping[str, Any], where: str | os.PathLike[str]
) -> None:
    """Raise one `InputError` that lists every name that is missing, unknown or of another shape."""
    faults = [f"{name} is missing" for name in wanted if name not in flat]
    faults += [f"{name} is not a parameter of it" for name in flat if name not in wanted]
    faults += [
        f"{name} has shape {flat[name].shape}, not {like.shape}"
        for name, like in wanted.items()
        if name in flat and flat[name].shape != like.shape
    ]
    if faults:
        raise InputError(f"{where} does not fit the model of its config: {'; '.join(faults)}")


def check_config(
    config: Any,
    where: str | os.PathLike[str],
    *,
    numbers: Sequence[str] = (),
    optional: Mapping[str, Any] = {},
    fixed: Mapping[str, Any] = {},
) -> None:
    """Raise an `InputError` where a model's JSON config lacks a number, or is of another kind.

    Args:
      config: what was in the file.
      where: the file.
      numbers: fields that must be there, and be whole numbers.
      optional: fields that may be absent, with the types they have otherwise.
      fixed: fields, with the one value that this transformer can express. Absent is as good.
    """
    if not isinstance(config, dict):
        raise InputError(f"{where} is not a model config, but a JSON {type(config).__name__}")
    faults = [name for name in numbers if not isinstance(config.get(name), int)]
    if faults:
        raise InputError(f"{where} is not a model config: it needs the numbers {', '.join(faults)}")
    faults = [
        f"{name} = {config[name]!r}"
        for name, kind in optional.items()
        if name in config and not isinstance(config[name], kind)
    ]
    if faults:
        raise InputError(f"{where} has fields of a wrong type: {', '.join(faults)}")
    other = [
        f"{name} = {config[name]!r} (only {value!r} is)"
        for name, value in fixed.items()
        if config.get(name, value) != value
    ]
    if other:
        raise InputError(f"{where} describes a model that is not supported: {'; '.join(other)}")


def shapes(model: Transformer) -> Params:
    """The parameters' shapes, without computing them."""
    params: Params = jax.eval_shape(model.init, jax.random.key(0))
    return params


def on_device(flat: Mapping[str, Any]) -> Params:
    """Nested parameters of flat ones, on the device."""
    # `jnp.asarray` would compile a program for every shape.
    return unflatten_params(jax.device_put(dict(flat)))
