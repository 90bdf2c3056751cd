"""The device mesh of a run, and the sharding of its arrays.

The mesh axes are `trial` (trials of a population), `data` (rows of a batch) and `model` (heads and
neurons). All axes are `Auto`: parameters declare their sharding, and the compiler chooses the
sharding of all other arrays.

A different sharding changes the results of a run only by rounding, because it changes the order of
sums. Losses agree to 1e-5 over the first 100 steps. After these steps, training is chaotic and
amplifies the rounding differences. Single curves then differ, and only averages over seeds can be
compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from implicit_reasoning.errors import InputError

AXES = ("trial", "data", "model")


def make_mesh(config: Any) -> Mesh:
    """Return the mesh that the configuration group `mesh` describes.

    The size of one axis may be -1, which means all remaining devices.

    Raises:
      InputError: the sizes are invalid, the sizes do not fit the devices, or a process has no
        device of the mesh.
    """
    devices = jax.devices()
    asked = {axis: int(config[axis]) for axis in AXES}
    shape = list(asked.values())
    if shape.count(-1) > 1 or any(size < -1 or size == 0 for size in shape):
        raise InputError(
            f"mesh is {asked}; all sizes must be positive, except that one size may be -1"
        )
    used = math.prod(size for size in shape if size != -1)
    if used > len(devices) or (-1 in shape and len(devices) % used):
        raise InputError(
            f"mesh {asked} does not fit the {len(devices)} devices; the product of the sizes must "
            f"be at most {len(devices)}. If one size is -1, the product of all other sizes must "
            f"divide {len(devices)}"
        )
    if -1 in shape:
        shape[shape.index(-1)], used = len(devices) // used, len(devices)
    if {device.process_index for device in devices[:used]} != set(range(jax.process_count())):
        raise InputError(
            f"mesh {asked} uses {used} of {len(devices)} devices, so some of the "
            f"{jax.process_count()} processes have no device of the mesh; set one size to -1"
        )
    return jax.make_mesh(
        tuple(shape), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices[:used]
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array that is replicated on every device."""
    return NamedSharding(mesh, PartitionSpec())


def row_sharded(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array whose leading axis is split over the mesh axis `data`."""
    return NamedSharding(mesh, PartitionSpec("data"))


def put_scalar(number: int, where: NamedSharding) -> Int[Array, ""]:
    """Put an int32 on every device of the sharding `where`, without communication.

    All processes must pass the same number.
    """
    copies = [jax.device_put(np.int32(number), device) for device in where.addressable_devices]
    return jax.make_array_from_single_device_arrays((), where, copies)


def tree_shardings(
    mesh: Mesh,
    tree: Any,
    axes: Mapping[str, Sequence[str | None]],
    *,
    fsdp: bool = False,
    stacked: bool = False,
) -> Any:
    """Return the sharding of every leaf of a pytree of parameters or of a training state.

    Args:
      mesh: the device mesh.
      tree: a pytree of arrays or of `jax.ShapeDtypeStruct`.
      axes: dict from the dotted name of a parameter to its `Parameter.axes`. A leaf gets the
        sharding of the parameter whose name is the end of the leaf's path. For example, the leaf
        `moments.0.mu.embed.W_E` is sharded like `embed.W_E`. Leaves that match no parameter are not
        split.
      fsdp: whether dimensions with the entry `fsdp` are split over `data`. A device then holds only
        its share of the weights and of the optimizer's moments (Rajbhandari et al. 2020, stage 3).
      stacked: whether every leaf has a leading axis of trials, which is split over `trial`.

    Raises:
      InputError: the size of a mesh axis does not divide a dimension that is split over this axis.
    """

    def declared(path: str) -> Sequence[str | None]:
        names = path.split(".")
        endings = (".".join(names[start:]) for start in range(len(names)))
        return next((axes[name] for name in endings if name in axes), ())

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        split = [("data" if fsdp else None) if axis == "fsdp" else axis for axis in declared(name)]
        split = ["trial", *split] if stacked else split
        for size, axis in zip(leaf.shape, split, strict=False):
            if axis and size % mesh.shape[axis]:
                raise InputError(
                    f"mesh.{axis} = {mesh.shape[axis]} does not divide a dimension of {name}, "
                    f"which has shape {leaf.shape}; choose mesh.model as a divisor of "
                    "model.n_heads and model.d_mlp. If mesh.fsdp is true, choose mesh.data as a "
                    "divisor of model.d_model"
                )
        while split and split[-1] is None:  # Without this, equal shardings could differ by `==`.
            split.pop()
        return NamedSharding(mesh, PartitionSpec(*split))

    return jax.tree_util.tree_map_with_path(sharding, tree)
