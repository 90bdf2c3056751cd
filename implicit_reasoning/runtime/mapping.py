"""Mapping of a function over stacked trials, dictionaries or checkpoints, on several devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from implicit_reasoning.runtime import sharding


def map_over_axis(
    function: Callable[..., Any],
    items: Any,
    mesh: Mesh | None = None,
    together: int | None = None,
    shared: tuple[Any, ...] = (),
) -> Any:
    """Apply a function to every item of a stacked pytree.

    The items are split evenly over the devices along the mesh axis `trial`.

    Args:
      function: called with one item and the shared arguments.
      items: a pytree of arrays. Index i of the leading axis of every array belongs to item i.
      mesh: a mesh from `sharding.make_mesh`; None means one device.
      together: number of items that a device processes at once (`vmap`). The default is 1 on a CPU,
        where batched products of small matrices are slow. On all other devices, the default is all
        items.
      shared: further arguments of `function`, equal for all items. Pass arrays that are placed on
        the mesh here; `function` must not capture them.

    Returns:
      The results, stacked along a first axis of items.
    """

    def by_turns(items: Any, *shared: Any) -> Any:
        return _by_turns(lambda item: function(item, *shared), items, together)

    if mesh is None:
        return by_turns(items, *shared)
    by_trial, whole = PartitionSpec("trial"), PartitionSpec()
    dealt_out = jax.shard_map(
        by_turns,
        mesh=mesh,
        in_specs=(by_trial, *[whole] * len(shared)),
        out_specs=by_trial,
        axis_names={"trial"},
        check_vma=False,
    )
    return dealt_out(items, *shared)


def _by_turns(function: Callable[[Any], Any], items: Any, together: int | None) -> Any:
    count = jax.tree.leaves(items)[0].shape[0]
    together = together or (1 if jax.default_backend() == "cpu" else count)
    # `batch_size=1` would be a `vmap` over one item, whose gathers are slow on a CPU.
    return jax.lax.map(function, items, batch_size=together if together > 1 else None)


def fitting_mesh(n_members: int) -> Mesh | None:
    """Return a mesh of a size that divides the number of members (trials or models).

    Returns:
      A mesh over as many devices as possible, all along the axis `trial`; None for a single device.
    """
    n_devices = len(jax.local_devices())
    most = max(n for n in range(1, n_devices + 1) if n_members % n == 0)
    return sharding.make_mesh({"trial": most, "data": 1, "model": 1}) if most > 1 else None
