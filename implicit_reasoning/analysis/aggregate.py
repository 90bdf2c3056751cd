"""From outcomes by example to labelled means, each with its interval and its n."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from implicit_reasoning.analysis.instrument import EXAMPLE, Declared, Examples
from implicit_reasoning.statistics import ClusterIntervals


def aggregate(
    instrument: Declared,
    outputs: Mapping[str, np.ndarray],
    examples: Examples,
    coords: Mapping[str, Sequence[Any]],
    steps: Sequence[int],
) -> xr.Dataset:
    """Average outcomes by example within each group; keep other outputs as they are.

    Intervals are of 95%, by clusters. `n_examples` and `n_states` (distinct clusters) are by group,
    and by `cluster_dim` where clusters differ along one.
    """
    by_example = {k: v for k, v in instrument.outputs.items() if v[-1:] == (EXAMPLE,)}
    parts = _Parts(examples)
    variables: dict[str, Any] = {
        name: (("step", *dims), outputs[name])
        for name, dims in instrument.outputs.items()
        if name not in by_example
    }
    for name, dims in by_example.items():
        counted = _counted(instrument, outputs, name)
        found = parts.average(outputs[name], ("step", *dims[:-1]), counted)
        kept, endings = ("step", "group", *dims[:-1]), ("", "_low", "_high", "_n")[: len(found)]
        variables |= {f"{name}{e}": (kept, part) for e, part in zip(endings, found, strict=True)}
    used = {dim for dims in instrument.outputs.values() for dim in dims if dim != EXAMPLE}
    labels = {dim: list(coords[dim]) for dim in coords if dim in used}
    if by_example:
        labels["group"] = list(examples.groups)
        dims = ("group", *parts.dims)
        variables |= {"n_examples": (dims, parts.n_examples), "n_states": (dims, parts.n_states)}
    return xr.Dataset(variables, {"step": list(steps), **labels})


def _counted(
    instrument: Declared, outputs: Mapping[str, np.ndarray], name: str
) -> np.ndarray | None:
    """Which examples count for an output, with an axis for each of its own; None where all do."""
    if name not in instrument.given:
        return None
    condition = instrument.given[name]
    there = ("step", *instrument.outputs[condition])
    dims = ("step", *instrument.outputs[name])
    expanded = [slice(None) if dim in there else None for dim in dims]
    counted: np.ndarray = outputs[condition].astype(bool)[*expanded]
    return counted


class _Parts:
    """The examples of every group, at every place along `cluster_dim`."""

    def __init__(self, examples: Examples):
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
        """Mean, ends of the interval and, where not all count, n; the group's axis is the second.

        Args:
          values: of `dims`, then by example.
          dims: the first is the step.
          counted: which count, of the same shape or, where that is the same all along an axis, of
            size 1 there; None for all.
        """
        axis = dims.index(self.dims[0]) if self.dims and self.dims[0] in dims else None
        by_group = []
        for members, intervals in zip(self._members, self._intervals, strict=True):
            if axis is None:
                by_group.append(_interval(values, counted, members[0], intervals[0]))
                continue
            found = [
                _interval(
                    np.take(values, place, axis),
                    None if counted is None else _at(counted, place, axis),
                    rows,
                    of_place,
                )
                for place, (rows, of_place) in enumerate(zip(members, intervals, strict=True))
            ]
            by_group.append(np.stack(found, axis=axis + 1))
        return list(np.moveaxis(np.stack(by_group), 0, 2))  # each [step, group, ...]


def _at(counted: np.ndarray, place: int, axis: int) -> np.ndarray:
    return np.take(counted, min(place, counted.shape[axis] - 1), axis)


def _interval(
    values: np.ndarray, counted: np.ndarray | None, rows: np.ndarray, intervals: ClusterIntervals
) -> np.ndarray:
    """float32 [3 or 4, ...]: mean, low, high over the last axis, and n if not all count."""
    if counted is None:
        interval = intervals.interval(values[..., rows])
        return np.stack([interval.mean, interval.low, interval.high]).astype(np.float32)
    given = intervals.interval_given(values[..., rows], counted[..., rows])
    return np.stack([given.mean, given.low, given.high, given.n_clusters]).astype(np.float32)
