"""What each parameter is: its shape, how it is initialised, whether it decays, how it is split.

A module declares its parameters in one table, by name. The same table makes the arrays (`create`),
masks the weight decay (`training.optimizer`) and places them on the devices (`runtime.sharding`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from implicit_reasoning import renames

_T = TypeVar("_T")

Initializer = Callable[[nnx.Rngs, tuple[int, ...]], Array]


class Parameter(NamedTuple):
    """One parameter of a module.

    Attributes:
      shape: of the array.
      init: makes the array, float32.
      decayed: whether weight decay applies.
      axes: for each dimension, the mesh axis that it is split over: `model`, or None for no split.
        `fsdp` marks the dimension that is split over `data` where `mesh.fsdp` asks for it; biases
        and norms have none, as they are too small to be worth gathering. Missing entries are None.
    """

    shape: tuple[int, ...]
    init: Initializer
    decayed: bool = False
    axes: tuple[str | None, ...] = ()


Table = Mapping[str, Parameter]
"""Parameters by dotted name, in the order in which they draw from the random stream."""


def normal(std: float) -> Initializer:
    """Independent normal entries with mean 0."""
    return lambda rngs, shape: std * jax.random.normal(rngs.params(), shape)


def constant(value: float) -> Initializer:
    """All entries equal; draws nothing."""
    return lambda rngs, shape: jnp.full(shape, value, jnp.float32)


def create_parameters(module: nnx.Module, table: Table, rngs: nnx.Rngs) -> None:
    """Set every parameter of a table as an attribute of `module`."""
    for name, parameter in table.items():
        setattr(module, name, nnx.Param(parameter.init(rngs, parameter.shape)))


def with_prefix(prefix: str, table: Mapping[str, _T]) -> dict[str, _T]:
    """The same table as seen from outside: `prefix.name`."""
    return {f"{prefix}.{name}": entry for name, entry in table.items()}


def unflatten_params(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`{"blocks": {"0": {"attn": {"W_Q": value}}}}` from `{"blocks.0.attn.W_Q": value}`."""
    params: dict[str, Any] = {}
    for name, value in flat.items():
        *groups, last = name.split(".")
        node = params
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = value
    return params


__getattr__ = renames.old_names(__name__, {"create": "create_parameters", "within": "with_prefix"})
