"""One mesh, one table: where every array of a run lives.

Axes: `trial` (populations), `data` (rows of a batch), `model` (heads and neurons). All axes are
`Auto`: the table says where parameters live, the compiler propagates the rest.
"""

from __future__ import annotations

import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from implicit_reasoning.errors import InputError

AXES = ("trial", "data", "model")

# First match wins; paths are dotted parameter names.
TABLE: tuple[tuple[str, PartitionSpec], ...] = (
    (r"attn\.[Wb]_[QKV]$", PartitionSpec("model")),
    (r"attn\.W_O$", PartitionSpec("model")),
    (r"mlp\.W_in$", PartitionSpec(None, "model")),
    (r"mlp\.b_in$", PartitionSpec("model")),
    (r"mlp\.W_out$", PartitionSpec("model")),
    (r"", PartitionSpec()),
)


def make_mesh(config: Any) -> Mesh:
    """The mesh of a config's `mesh` group; one axis may be -1, "all devices that are left"."""
    devices = jax.devices()
    asked = {axis: int(config[axis]) for axis in AXES}
    shape = list(asked.values())
    if shape.count(-1) > 1 or any(size < -1 or size == 0 for size in shape):
        raise InputError(f"mesh is {asked}; sizes are positive and at most one is -1")
    used = int(np.prod([size for size in shape if size != -1]))
    if used > len(devices) or (-1 in shape and len(devices) % used):
        raise InputError(
            f"mesh {asked} does not fit the {len(devices)} devices; the product of its sizes must "
            "not exceed them, and divide them if one is -1"
        )
    if -1 in shape:
        shape[shape.index(-1)], used = len(devices) // used, len(devices)
    return jax.make_mesh(
        tuple(shape), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices[:used]
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """Leading axis over `data`."""
    return NamedSharding(mesh, PartitionSpec("data"))


def tree_shardings(mesh: Mesh, tree: Any) -> Any:
    """The sharding of every leaf of parameters, or of anything shaped like them (moments)."""

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = ".".join(
            str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p)))) for p in path
        )
        spec = next(spec for pattern, spec in TABLE if re.search(pattern, name))
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, tree)
