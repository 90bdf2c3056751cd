"""Sums of outcomes by group and cluster, on the device.

An instrument with many cells (neurons, edges) has an outcome for each cell and example, which may
not fit into the memory of the host. An interval needs the sum over each cluster only (see
`statistics.ClusterSums`), so where that is smaller, sums leave the device.
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
"""Outcomes of one checkpoint below which nothing is gained: 2 MB in float64, on the host."""

_BLOCK = 2**20
"""Outcomes that are summed at the same time: what is computed of them takes little memory."""

_ROUNDED = 64
"""Sums are padded to a multiple of this, so worlds of about as many clusters share a program."""


class GroupClusterPairs(NamedTuple):
    """Which pair of a group and a cluster an example belongs to, at every place.

    Places are those along `Examples.cluster_dim`; without one there is one place.

    Attributes:
      pair: [place, example], by group, then by cluster; an example that does not count has the
        number of pairs there are.
      group: [place, example]; for one that does not count, the number of groups.
    """

    pair: Int[np.ndarray, "place example"] | Int[Array, "place example"]
    group: Int[np.ndarray, "place example"] | Int[Array, "place example"]


class SumsLayout(NamedTuple):
    """What is static about sums.

    Attributes:
      n_sums: pairs of a group and a cluster, padded, at the place that has most.
      n_groups: groups.
      cluster_dim: the dimension of outcomes along which the places of `GroupClusterPairs` are, if
        any.
      outputs: names of the outputs that are summed.
    """

    n_sums: int
    n_groups: int
    cluster_dim: str | None
    outputs: tuple[str, ...] = ()


class DeviceSums(NamedTuple):
    """Sums of one output of one checkpoint; with leading axes for several.

    Attributes:
      least: float32 [*cell, group], smallest value that counts; infinite where none does.
      sums: float32 [*cell, pair], of distances from it.
      sizes: float32 [*cell, pair], examples that count; None where all do.
      other: bool [place, example], whether an outcome that counts is neither 0 nor 1.
      outside: bool [place, example], whether one is outside of [0, 1].
      infinite: int32 [place, example], in how many cells an outcome that counts is not finite.
    """

    least: Any
    sums: Any
    sizes: Any
    other: Any
    outside: Any
    infinite: Any


def find_pairs(examples: Examples) -> tuple[GroupClusterPairs, SumsLayout]:
    """Number the pairs of groups and clusters of some examples."""
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
    """The outputs of which sums, and not outcomes by example, leave the device.

    They are those with at least `MIN_OUTCOMES` outcomes for a checkpoint, and at most half as many
    sums; where not all examples count, the sizes of clusters are counted as sums too.

    Args:
      instrument: with its outputs.
      sizes: of all dimensions.
      layout: of the sums.
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
    """The outputs of one checkpoint, with sums in place of outcomes for those of the layout.

    Traced. Whole numbers, which float32 may not hold, stay as they are; so do outputs that have
    not the dimensions that are declared, for `Instrument.check` to refuse.
    """
    found = dict(outputs)
    for name in layout.outputs:
        if not {name, instrument.given.get(name, name)} <= outputs.keys():
            continue
        dims, values = instrument.outputs[name], outputs[name]
        summable = values.dtype == bool or jnp.issubdtype(values.dtype, jnp.floating)
        if not summable or values.ndim != len(dims):
            continue
        counted = None
        if name in instrument.given:
            condition = instrument.given[name]
            there = instrument.outputs[condition]
            expanded = [slice(None) if dim in there else None for dim in dims]
            counted = outputs[condition].astype(bool)[*expanded]
        axis = dims.index(layout.cluster_dim) if layout.cluster_dim in dims else None
        found[name] = sum_by_cluster(values, counted, pairs, layout, axis)
    return found


def sum_by_cluster(
    values: Num[Array, "*cell example"] | Bool[Array, "*cell example"],
    counted: Bool[Array, "*some example"] | None,
    pairs: GroupClusterPairs,
    layout: SumsLayout,
    axis: int | None,
) -> DeviceSums:
    """Sum the outcomes of one checkpoint, a block of cells at a time.

    Args:
      values: outcomes.
      counted: which count, with as many axes, some of them of size 1; None for all.
      pairs: of the examples.
      layout: of the sums.
      axis: of `values`, along which the places of `pairs` are; None: all cells are at the first.
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
        """[number of block, sum, cell of block] as [*cell, sum]."""
        part = part.reshape(*grid.shape[:3], -1, rows, block).transpose(0, 4, 1, 2, 5, 3)
        return part.reshape(*cells, part.shape[-1])

    def by_example(part: Any) -> Any:
        return jnp.moveaxis(part.reshape(*grid.shape[:3], n_examples), 1, 0)

    least, sums, sizes, other, outside, infinite = found
    return DeviceSums(
        whole(least),
        whole(sums),
        None if counted is None else whole(sizes),  # else the compiler drops them
        by_example(other).any((1, 2)),
        by_example(outside).any((1, 2)),
        by_example(infinite).sum((1, 2)),
    )


def _summed(values: Any, there: Any, pair: Any, group: Any, layout: SumsLayout) -> tuple[Any, ...]:
    """Of values [example, cell]: sums [pair, cell], and what is said by example.

    Examples that do not count have numbers beyond the last, which are dropped.
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
    """The largest divisor that is not above `most`, or 1."""
    fitting = range(min(number, max(most, 1)), 0, -1)
    return next(divisor for divisor in fitting if number % divisor == 0)
