"""Descriptions of parameters: shape, initialization, weight decay and sharding.

A module declares its parameters in one table, by name. `create_parameters` creates the arrays from
this table. `training.optimizer` reads where weight decay applies. `runtime.sharding` places the
arrays on the devices.
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
      decayed: whether weight decay applies to the parameter.
      axes: one entry for each dimension. `model` splits the dimension over the mesh axis `model`.
        `fsdp` splits the dimension over the mesh axis `data` if the configuration sets `mesh.fsdp`.
        None, or a missing entry, means no split. Biases and norms have no `fsdp` entry, because
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
    """Return an initializer that sets all entries to `value`."""
    return lambda rngs, shape: jnp.full(shape, value, jnp.float32)


def create_parameters(module: nnx.Module, table: Table, rngs: nnx.Rngs) -> None:
    """Create every parameter of a table as an attribute of `module`."""
    for name, parameter in table.items():
        setattr(module, name, nnx.Param(parameter.init(rngs, parameter.shape)))


def with_prefix(prefix: str, table: Mapping[str, _T]) -> dict[str, _T]:
    """Return the table with every key `name` changed to `prefix.name`."""
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
