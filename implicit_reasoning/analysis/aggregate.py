"""Compute the mean outcome of each group of examples, with a confidence interval.

The input is either one outcome per example, or sums of outcomes by cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from implicit_reasoning.analysis.instrument import EXAMPLE, BaseInstrument, Examples
from implicit_reasoning.analysis.sums import DeviceSums, find_pairs
from implicit_reasoning.errors import InputError
from implicit_reasoning.statistics import (
    ClusterIntervals,
    ClusterSums,
    Interval,
    interval_of_sums,
)

_BLOCK = 2**20
"""Maximum number of cluster sums that are processed at the same time, 8 MB in float64."""


def aggregate(
    instrument: BaseInstrument,
    outputs: Mapping[str, np.ndarray | DeviceSums],
    examples: Examples,
    coords: Mapping[str, Sequence[Any]],
    steps: Sequence[int],
) -> xr.Dataset:
    """Compute group means and confidence intervals of an instrument's outputs.

    An output is averaged if it has one outcome per example. All other outputs are kept unchanged.

    The 95% confidence intervals use the spread between clusters of dependent examples. For each
    group, the result also contains the number of examples (`n_examples`) and the number of distinct
    clusters (`n_states`). If `examples.cluster_dim` is given, both numbers have this dimension too.

    Args:
      instrument: the instrument that was run.
      outputs: the output arrays by name; the first axis is the step. An output with one outcome per
        example can also be a `DeviceSums`, which contains sums of the outcomes.
      examples: the examples that were measured.
      coords: the labels of each dimension.
      steps: the training steps of the checkpoints that were measured.

    Raises:
      InputError: an averaged outcome is not finite.
    """
    by_example = {k: v for k, v in instrument.outputs.items() if v[-1:] == (EXAMPLE,)}
    parts = _Parts(examples)
    variables: dict[str, Any] = {
        name: (("step", *dims), outputs[name])
        for name, dims in instrument.outputs.items()
        if name not in by_example
    }
    for name, dims in by_example.items():
        output = outputs[name]
        if isinstance(output, DeviceSums):
            found = parts.average_sums(output, ("step", *dims[:-1]))
        else:
            counted = instrument.counted(outputs, name, lead=("step",))
            found = parts.average(output, ("step", *dims[:-1]), counted)
        kept, endings = ("step", "group", *dims[:-1]), ("", "_low", "_high", "_n")[: len(found)]
        variables |= {f"{name}{e}": (kept, part) for e, part in zip(endings, found, strict=True)}
    used = {dim for dims in instrument.outputs.values() for dim in dims if dim != EXAMPLE}
    labels = {dim: list(coords[dim]) for dim in coords if dim in used}
    if by_example:
        labels["group"] = list(examples.groups)
        dims = ("group", *parts.dims)
        variables |= {"n_examples": (dims, parts.n_examples), "n_states": (dims, parts.n_states)}
    return xr.Dataset(variables, {"step": list(steps), **labels})


class _Parts:
    """The examples of every group, at every index along `cluster_dim`."""

    def __init__(self, examples: Examples):
        self._examples = examples
        self.dims = (examples.cluster_dim,) if examples.cluster_dim else ()
        clusters = examples.clusters if self.dims else examples.clusters[None]
        self._members: list[list[np.ndarray]] = []
        self._intervals: list[list[ClusterIntervals]] = []
        for group in range(len(examples.groups)):
            counted = [np.flatnonzero((examples.group == group) & (c >= 0)) for c in clusters]
            self._members.append(counted)
            self._intervals.append(
                [ClusterIntervals(c[rows]) for c, rows in zip(clusters, counted, strict=True)]
            )
        shape = (len(examples.groups), *(clusters.shape[:1] if self.dims else ()))
        distinct = [
            [len(np.unique(c[rows])) for c, rows in zip(clusters, of_group, strict=True)]
            for of_group in self._members
        ]
        self.n_states = np.array(distinct, np.int64).reshape(shape)
        sizes = [[len(rows) for rows in of_group] for of_group in self._members]
        self.n_examples = np.array(sizes, np.int64).reshape(shape)

    def average(
        self, values: np.ndarray, dims: tuple[str, ...], counted: np.ndarray | None = None
    ) -> list[np.ndarray]:
        """Compute the mean outcome of each group and the ends of its interval.

        Args:
          values: outcomes; the axes are those of `dims`, followed by the axis of examples.
          dims: names of the dimensions; the first dimension is the step.
          counted: a mask of the outcomes that count. It has as many axes as `values`, and axes of
            size 1 are broadcast. None means that all outcomes count.

        Returns:
          Three arrays [step, group, ...]: mean, lower end, upper end. If `counted` is given, a
          fourth array has the number of clusters with an outcome that counts.
        """

        def of_cell(group: int, place: int, axis: int | None) -> np.ndarray:
            rows, intervals = self._members[group][place], self._intervals[group][place]
            there = None if counted is None else _at(counted, place, axis)
            return _interval(_at(values, place, axis), there, rows, intervals)

        return self._by_group(dims, of_cell)

    def average_sums(self, sums: DeviceSums, dims: tuple[str, ...]) -> list[np.ndarray]:
        """Return what `average` returns, computed from sums by group and cluster."""
        pairs, _ = find_pairs(self._examples)

        def of_cell(group: int, place: int, axis: int | None) -> np.ndarray:
            own = np.flatnonzero(pairs.group[place] == group)
            # Pairs are numbered by group, so the pairs of a group are contiguous.
            numbers, sizes = np.unique(pairs.pair[place, own], return_counts=True)
            here = slice(numbers[0], numbers[-1] + 1) if len(numbers) else slice(0, 0)
            flags = [flag[:, place, own] for flag in (sums.other, sums.outside, sums.infinite)]
            _check_finite(flags[2])
            cells = ClusterSums(
                _at(sums.least[..., group], place, axis),
                _at(sums.sums[..., here], place, axis),
                sizes if sums.sizes is None else _at(sums.sizes[..., here], place, axis),
                outcomes=not flags[0].any(),
                shares=not flags[1].any(),
            )
            return _in_blocks(cells, len(own))

        return self._by_group(dims, of_cell)

    def _by_group(
        self, dims: tuple[str, ...], of_cell: Callable[[int, int, int | None], np.ndarray]
    ) -> list[np.ndarray]:
        """Call `of_cell(group, place, axis)` for each group and place, and stack the results.

        `axis` is the axis of places. If the outcomes have no such axis, it is None and the only
        place is 0.
        """
        axis = dims.index(self.dims[0]) if self.dims and self.dims[0] in dims else None
        by_group = []
        for group, members in enumerate(self._members):
            if axis is None:
                by_group.append(of_cell(group, 0, None))
                continue
            found = [of_cell(group, place, axis) for place in range(len(members))]
            by_group.append(np.stack(found, axis=axis + 1))
        return list(np.moveaxis(np.stack(by_group), 0, 2))  # each [step, group, ...]


def _at(array: np.ndarray, place: int, axis: int | None) -> np.ndarray:
    """Return the part at a place; an axis of size 1 has the same part everywhere."""
    return array if axis is None else np.take(array, min(place, array.shape[axis] - 1), axis)


def _check_finite(infinite: np.ndarray) -> None:
    """Raise an `InputError` if an outcome is not finite, as `ClusterIntervals` does.

    Args:
      infinite: number of outcomes of each example that are not finite.
    """
    if infinite.any():
        raise InputError(
            f"{infinite.sum()} outcomes are not finite; to exclude an example, set the cluster of "
            "the example to -1, or declare in `given` a bool output that is false for the example"
        )


def _in_blocks(found: ClusterSums, n_examples: int) -> np.ndarray:
    """Compute the intervals of all cells, and return the fields that `_kept` returns.

    Intervals are computed for one block of cells at a time, to bound the memory.
    """
    shape, n_sums = found.least.shape, found.sums.shape[-1]
    least, sums = found.least.reshape(-1), found.sums.reshape(-1, n_sums)
    alike = found.sizes.ndim == 1
    sizes = found.sizes if alike else found.sizes.reshape(-1, n_sums)
    results = np.empty((3 if alike else 4, len(least)), np.float32)
    some = max(1, _BLOCK // max(n_sums, 1))
    for start in range(0, len(least), some):
        here = slice(start, start + some)
        lowest = least[here].astype(np.float64)
        block = found._replace(
            least=np.where(np.isfinite(lowest), lowest, 0.0),
            sums=sums[here].astype(np.float64),
            sizes=(sizes if alike else sizes[here]).astype(np.float64),
        )
        results[:, here] = _kept(interval_of_sums(block, n_examples), all_count=alike)
    return results.reshape(len(results), *shape)


def _interval(
    values: np.ndarray, counted: np.ndarray | None, rows: np.ndarray, intervals: ClusterIntervals
) -> np.ndarray:
    """Return float32 [3, ...]: mean, lower end and upper end over the last axis of `values`.

    If `counted` is given, the shape is [4, ...], and the fourth entry is the number of clusters
    with an outcome that counts.
    """
    if counted is None:
        return _kept(intervals.interval(values[..., rows]), all_count=True)
    given = intervals.interval_given(values[..., rows], counted[..., rows])
    return _kept(given, all_count=False)


def _kept(found: Interval, *, all_count: bool) -> np.ndarray:
    """Return the fields of an interval that are saved, as float32 [3 or 4, ...].

    They are mean, lower end, upper end and, unless all examples count, the number of clusters.
    """
    kept = [found.mean, found.low, found.high, *([] if all_count else [found.n_clusters])]
    return np.stack(kept).astype(np.float32)
