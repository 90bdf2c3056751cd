"""Descriptions of parameters: the shape, initialization, weight decay and sharding of each.

A module declares its parameters in one table, by name. This table is used to create the arrays
(`create_parameters`), to mask the weight decay (`training.optimizer`) and to place the arrays on
the devices (`runtime.sharding`).
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
    """The description of one parameter of a module.

    Attributes:
      shape: shape of the array.
      init: function that creates the array, float32.
      decayed: whether weight decay applies.
      axes: one entry for each dimension. `model` splits the dimension over the mesh axis `model`.
        `fsdp` splits the dimension over the mesh axis `data` if `mesh.fsdp` is set. None means no
        split, and missing entries are None. Biases and norms have no `fsdp` entry, because
        splitting such small arrays would save little memory.
    """

    shape: tuple[int, ...]
    init: Initializer
    decayed: bool = False
    axes: tuple[str | None, ...] = ()


Table = Mapping[str, Parameter]
"""Parameters by dotted name, in the order in which their initializers draw random numbers."""


def normal(std: float) -> Initializer:
    """Return an initializer that draws independent normal entries with mean 0."""
    return lambda rngs, shape: std * jax.random.normal(rngs.params(), shape)


def constant(value: float) -> Initializer:
    """Return an initializer that sets all entries to `value`; it draws no random numbers."""
    return lambda rngs, shape: jnp.full(shape, value, jnp.float32)


def create_parameters(module: nnx.Module, table: Table, rngs: nnx.Rngs) -> None:
    """Create every parameter of a table as an attribute of `module`."""
    for name, parameter in table.items():
        setattr(module, name, nnx.Param(parameter.init(rngs, parameter.shape)))


def with_prefix(prefix: str, table: Mapping[str, _T]) -> dict[str, _T]:
    """Return the table with each `name` changed to `prefix.name`."""
    return {f"{prefix}.{name}": entry for name, entry in table.items()}


def unflatten_params(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Convert `{"blocks.0.attn.W_Q": value}` to `{"blocks": {"0": {"attn": {"W_Q": value}}}}`."""
    params: dict[str, Any] = {}
    for name, value in flat.items():
        *groups, last = name.split(".")
        node = params
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = value
    return params


__getattr__ = renames.old_names(__name__, {"create": "create_parameters", "within": "with_prefix"})
