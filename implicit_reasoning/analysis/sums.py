"""Sum outcomes by group and cluster on the device.

An instrument for neurons or edges has one outcome for each unit and example. All these outcomes may
not fit into host memory. A confidence interval needs only the sum of the outcomes of each cluster
(see `statistics.ClusterSums`). If an output has many outcomes and few clusters, the device
therefore returns sums instead of outcomes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Num

from implicit_reasoning.analysis.instrument import EXAMPLE, Examples, Instrument

MIN_OUTCOMES = 2**18
"""Outputs with fewer outcomes per checkpoint (2 MB in float64) are not summed on the device."""

_BLOCK = 2**20
"""Maximum number of outcomes that are summed at the same time, to bound the memory."""

_ROUNDED = 64
"""The number of sums is padded to a multiple of this number.

Worlds with similar numbers of clusters then share one compiled program.
"""


class GroupClusterPairs(NamedTuple):
    """The index of the (group, cluster) pair that each example belongs to.

    The cluster of an example can vary along the dimension `Examples.cluster_dim`. The indices along
    this dimension are called places. Without a `cluster_dim`, there is one place.

    Attributes:
      pair: int32 [place, example], the index of the pair. Pairs are sorted by group, and then by
        cluster. An excluded example (cluster -1) has the index `SumsLayout.n_sums`.
      group: int32 [place, example], the index of the group. An excluded example has the index
        `SumsLayout.n_groups`.
    """

    pair: Int[np.ndarray, "place example"] | Int[Array, "place example"]
    group: Int[np.ndarray, "place example"] | Int[Array, "place example"]


class SumsLayout(NamedTuple):
    """A hashable description of sums by cluster, for use as a static argument.

    Attributes:
      n_sums: the number of sums. It is the number of (group, cluster) pairs, rounded up so that
        similar worlds share a compiled program.
      n_groups: number of groups.
      cluster_dim: the dimension of the outcomes along which the cluster of an example varies; None
        if each example has one cluster.
      outputs: names of the outputs that are summed.
    """

    n_sums: int
    n_groups: int
    cluster_dim: str | None
    outputs: tuple[str, ...] = ()


class DeviceSums(NamedTuple):
    """Sums of the outcomes of one output by (group, cluster) pair, for one checkpoint.

    The axes `*cell` are all dimensions of the output except "example". An outcome counts unless
    `BaseInstrument.given` excludes the outcome. If checkpoints are stacked, the first axis of every
    array is the checkpoint.

    Attributes:
      least: float32 [*cell, group], the smallest outcome that counts; infinite if no outcome
        counts.
      sums: float32 [*cell, pair], the sum of `outcome - least` over the outcomes that count.
      sizes: float32 [*cell, pair], the number of outcomes that count; None if all outcomes count.
      other: bool [place, example], whether any outcome that counts is neither 0 nor 1.
      outside: bool [place, example], whether any outcome that counts is outside of [0, 1].
      infinite: int32 [place, example], the number of outcomes that count and are not finite.
    """

    least: Any
    sums: Any
    sizes: Any
    other: Any
    outside: Any
    infinite: Any


def find_pairs(examples: Examples) -> tuple[GroupClusterPairs, SumsLayout]:
    """Assign numbers to the (group, cluster) pairs of examples.

    Args:
      examples: the examples, with their groups and clusters.

    Returns:
      The number of the pair of each example, and a layout with empty `outputs`.
    """
    clusters = examples.clusters if examples.cluster_dim else examples.clusters[None]
    n_groups = len(examples.groups)
    counted = (clusters >= 0) & (examples.group >= 0)
    numbers = []
    for here, rows in zip(clusters, counted, strict=True):
        both = np.stack([examples.group[rows], here[rows]])
        number = np.full(len(rows), -1)
        number[rows] = np.unique(both, axis=1, return_inverse=True)[1].reshape(-1)
        numbers.append(number)
    pair = np.stack(numbers)
    n_sums = -(-max(int(pair.max(initial=0)) + 1, 1) // _ROUNDED) * _ROUNDED
    pairs = GroupClusterPairs(
        np.where(counted, pair, n_sums).astype(np.int32),
        np.where(counted, examples.group, n_groups).astype(np.int32),
    )
    return pairs, SumsLayout(n_sums, n_groups, examples.cluster_dim)


def outputs_to_sum(
    instrument: Instrument, sizes: Mapping[str, int], layout: SumsLayout
) -> tuple[str, ...]:
    """Return the names of the outputs that are summed on the device.

    An output is summed if it has at least `MIN_OUTCOMES` outcomes per checkpoint, and if the number
    of sums is at most half the number of examples. The number of sums is `layout.n_sums`. The
    number is doubled for outputs in `Instrument.given`, because the device also counts the examples
    of each pair.

    Args:
      instrument: the instrument that declares the outputs.
      sizes: size of each dimension.
      layout: layout of the sums.
    """
    n_examples, chosen = sizes[EXAMPLE], []
    for name, dims in instrument.outputs.items():
        if dims[-1:] != (EXAMPLE,) or not sizes.keys() >= set(dims):
            continue
        n_sums = layout.n_sums * (2 if name in instrument.given else 1)
        if math.prod(sizes[dim] for dim in dims) >= MIN_OUTCOMES and 2 * n_sums <= n_examples:
            chosen.append(name)
    return tuple(chosen)


def sum_outputs(
    instrument: Instrument, outputs: Mapping[str, Any], pairs: GroupClusterPairs, layout: SumsLayout
) -> dict[str, Any]:
    """Replace the outcomes of the outputs in `layout.outputs` by sums. JAX traces this function.

    Integer outputs are not summed, because float32 cannot represent all integers. Outputs with a
    wrong number of dimensions are not summed, because `Instrument.check` rejects them later.

    Args:
      instrument: the instrument that declares the outputs.
      outputs: the outputs of one checkpoint, by name.
      pairs: the (group, cluster) pair of each example.
      layout: layout of the sums.
    """
    found = dict(outputs)
    for name in layout.outputs:
        if not {name, instrument.given.get(name, name)} <= outputs.keys():
            continue
        dims, values = instrument.outputs[name], outputs[name]
        summable = values.dtype == bool or jnp.issubdtype(values.dtype, jnp.floating)
        if not summable or values.ndim != len(dims):
            continue
        counted = instrument.counted(outputs, name)
        axis = dims.index(layout.cluster_dim) if layout.cluster_dim in dims else None
        found[name] = sum_by_cluster(values, counted, pairs, layout, axis)
    # The host needs the outcomes of an output that selects the examples of an output without sums.
    for name, condition in instrument.given.items():
        if condition in found and not isinstance(found.get(name), DeviceSums):
            found[condition] = outputs[condition]
    return found


def sum_by_cluster(
    values: Num[Array, "*cell example"] | Bool[Array, "*cell example"],
    counted: Bool[Array, "*some example"] | None,
    pairs: GroupClusterPairs,
    layout: SumsLayout,
    axis: int | None,
) -> DeviceSums:
    """Sum the outcomes of one output by group and cluster.

    To limit the memory, the outcomes are summed in blocks.

    Args:
      values: the outcomes of one output of one checkpoint.
      counted: whether each outcome contributes to the sums. The array has as many axes as `values`,
        and axes of size 1 are broadcast. None means that all outcomes contribute.
      pairs: the (group, cluster) pair of each example.
      layout: layout of the sums.
      axis: the axis of `values` with the dimension `layout.cluster_dim`; None if there is no such
        axis.
    """
    cells, n_examples = values.shape[:-1], values.shape[-1]
    places = 1 if axis is None else cells[axis]
    split = 0 if axis is None else axis
    before = math.prod(cells[:split])
    after = math.prod(cells[split + (0 if axis is None else 1) :])
    shape = (before, places, after, n_examples)
    values = values.reshape(shape)
    if counted is not None:
        counted = jnp.broadcast_to(counted, (*cells, n_examples)).reshape(shape)
    block = _divisor(after, _BLOCK // n_examples)
    rows = _divisor(before, _BLOCK // (n_examples * block))
    size = (rows, 1, block, n_examples)

    def one(start: Int[Array, " 3"]) -> tuple[Any, ...]:
        at = (start[0], start[1], start[2], jnp.int32(0))

        def cut(array: Any) -> Any:
            return jax.lax.dynamic_slice(array, at, size).reshape(-1, n_examples).T

        there = jnp.ones((n_examples, 1), bool) if counted is None else cut(counted)
        pair, group = (array[start[1] if axis is not None else 0] for array in pairs)
        there &= (group < layout.n_groups)[:, None]
        return _summed(cut(values).astype(jnp.float32), there, pair, group, layout)

    grid = np.stack(
        np.meshgrid(
            np.arange(0, before, rows), np.arange(places), np.arange(0, after, block), indexing="ij"
        ),
        -1,
    ).astype(np.int32)
    found = jax.lax.map(one, jnp.asarray(grid.reshape(-1, 3)))

    def whole(part: Any) -> Any:
        """Reshape [block, sum, cell of block] to [*cell, sum]."""
        part = part.reshape(*grid.shape[:3], -1, rows, block).transpose(0, 4, 1, 2, 5, 3)
        return part.reshape(*cells, part.shape[-1])

    def by_example(part: Any) -> Any:
        return jnp.moveaxis(part.reshape(*grid.shape[:3], n_examples), 1, 0)

    least, sums, sizes, other, outside, infinite = found
    return DeviceSums(
        whole(least),
        whole(sums),
        None if counted is None else whole(sizes),  # unused `sizes` are removed by the compiler
        by_example(other).any((1, 2)),
        by_example(outside).any((1, 2)),
        by_example(infinite).sum((1, 2)),
    )


def _summed(values: Any, there: Any, pair: Any, group: Any, layout: SumsLayout) -> tuple[Any, ...]:
    """Compute the fields of `DeviceSums` for one block of values [example, cell].

    `sums` and `sizes` are [pair, cell], `least` is [group, cell], and the other fields are
    [example]. An example that does not count has a pair number beyond the last pair, so
    `segment_sum` ignores it.
    """
    least = jax.ops.segment_min(jnp.where(there, values, jnp.inf), group, layout.n_groups)
    least = jnp.where(jnp.isfinite(least), least, jnp.inf)
    base = jnp.where(jnp.isfinite(least), least, 0.0)[jnp.minimum(group, layout.n_groups - 1)]
    distances = jnp.where(there, values - base, 0.0)
    return (
        least,
        jax.ops.segment_sum(distances, pair, layout.n_sums),
        jax.ops.segment_sum(there.astype(jnp.float32), pair, layout.n_sums),
        (there & (values != 0) & (values != 1)).any(1),
        (there & ~((values >= 0) & (values <= 1))).any(1),
        (there & ~jnp.isfinite(values)).sum(1),
    )


def _divisor(number: int, most: int) -> int:
    """Return the largest divisor of `number` that is at most `most`; 1 if `most` is below 1."""
    fitting = range(min(number, max(most, 1)), 0, -1)
    return next(divisor for divisor in fitting if number % divisor == 0)
