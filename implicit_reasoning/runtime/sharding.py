"""One mesh: where every array of a run lives.

Axes: `trial` (populations), `data` (rows of a batch), `model` (heads and neurons). All axes are
`Auto`: the model says how its parameters are split, the compiler propagates the rest. Any placement
trains the same run up to the rounding of sums that are added in another order: losses agree to 1e-5
over the first 100 steps. Training is chaotic and amplifies the rounding after that: single curves
differ, and only averages over seeds can be compared.
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
    """The mesh of a config's `mesh` group; one axis may be -1, "all devices that are left"."""
    devices = jax.devices()
    asked = {axis: int(config[axis]) for axis in AXES}
    shape = list(asked.values())
    if shape.count(-1) > 1 or any(size < -1 or size == 0 for size in shape):
        raise InputError(f"mesh is {asked}; sizes are positive and at most one is -1")
    used = math.prod(size for size in shape if size != -1)
    if used > len(devices) or (-1 in shape and len(devices) % used):
        raise InputError(
            f"mesh {asked} does not fit the {len(devices)} devices; the product of its sizes must "
            "not exceed them, and divide them if one is -1"
        )
    if -1 in shape:
        shape[shape.index(-1)], used = len(devices) // used, len(devices)
    if {device.process_index for device in devices[:used]} != set(range(jax.process_count())):
        raise InputError(
            f"mesh {asked} uses {used} of {len(devices)} devices, none of them in some of the "
            f"{jax.process_count()} processes; let one of its sizes be -1"
        )
    return jax.make_mesh(
        tuple(shape), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices[:used]
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def row_sharded(mesh: Mesh) -> NamedSharding:
    """Leading axis over `data`."""
    return NamedSharding(mesh, PartitionSpec("data"))


def put_scalar(number: int, where: NamedSharding) -> Int[Array, ""]:
    """An int32 on every device of `where`, which all processes know: none has to ask another."""
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
    """The sharding of every leaf of parameters, or of anything that holds them (moments).

    Args:
      mesh: the devices.
      tree: of arrays or their shapes.
      axes: for each dimension of a parameter the mesh axis to split it over, None for no split, or
        `fsdp`; by the dotted name of the parameter. A leaf belongs to the parameter whose name its
        path ends with (`moments.0.mu.embed.W_E` to `embed.W_E`). Other leaves are not split.
      fsdp: split weights over `data` too, so that a device holds only its share of them and of
        their moments (Rajbhandari et al. 2020, stage 3).
      stacked: there is a leading axis of trials, to be split over `trial`.

    Raises:
      InputError: a dimension that is to be split does not divide.
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
                    f"which has shape {leaf.shape}; `model` has to divide model.n_heads and "
                    "model.d_mlp, and with mesh.fsdp `data` has to divide model.d_model"
                )
        while split and split[-1] is None:  # so that equal placements are equal specs
            split.pop()
        return NamedSharding(mesh, PartitionSpec(*split))

    return jax.tree_util.tree_map_with_path(sharding, tree)
