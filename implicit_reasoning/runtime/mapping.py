"""One program for many of a kind: trials, dictionaries, checkpoints along the axis `trial`."""

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
    """A function of every item of a stacked tree; devices of `trial` have their share each.

    Args:
      function: of one item, and then of what is shared.
      items: arrays with the items along their first axis.
      mesh: of `make_mesh`; None: one device.
      together: items that a device takes at once (`vmap`); by default one on a CPU, whose batched
        products of small matrices are slow, and all elsewhere.
      shared: what all items have in common; on a mesh, arrays that lie on it have to come this way.
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
    # `batch_size=1` would be a `vmap` over one, whose gathers are slow on a CPU.
    return jax.lax.map(function, items, batch_size=together if together > 1 else None)


def fitting_mesh(n_members: int) -> Mesh | None:
    """As many of the devices as members can be dealt out to evenly; None where that is one."""
    n_devices = len(jax.local_devices())
    most = max(n for n in range(1, n_devices + 1) if n_members % n == 0)
    return sharding.make_mesh({"trial": most, "data": 1, "model": 1}) if most > 1 else None
