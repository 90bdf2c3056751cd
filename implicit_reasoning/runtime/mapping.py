"""Mapping of one program over many trials, dictionaries or checkpoints, along the axis `trial`."""

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
    """Apply a function to every item of a stacked tree; devices along `trial` share the items.

    Args:
      function: called with one item and the shared arguments.
      items: arrays with the items along their first axis.
      mesh: a mesh of `make_mesh`; None: one device.
      together: number of items that a device processes at once (`vmap`). The default is one on a
        CPU, where batched products of small matrices are slow, and all items elsewhere.
      shared: arguments that all items share. Arrays that are on the mesh must be passed here and
        not captured by `function`.

    Returns:
      The results, with the items along their first axis.
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
    """Return a mesh over as many devices as possible that divides the members evenly.

    Returns:
      The mesh, with all devices along `trial`; None if only one device fits.
    """
    n_devices = len(jax.local_devices())
    most = max(n for n in range(1, n_devices + 1) if n_members % n == 0)
    return sharding.make_mesh({"trial": most, "data": 1, "model": 1}) if most > 1 else None
