"""From outcomes by example to labelled means, each with its interval and its n."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from implicit_reasoning.analysis.instrument import EXAMPLE, Examples, Instrument
from implicit_reasoning.statistics import ClusterBootstrap

_RESAMPLES = 500


def aggregate(
    instrument: Instrument,
    outputs: Mapping[str, np.ndarray],
    examples: Examples,
    coords: Mapping[str, Sequence[Any]],
    steps: Sequence[int],
) -> xr.Dataset:
    """Average outcomes by example within each group; keep other outputs as they are.

    Intervals are of 95%, by a bootstrap over clusters. `n_examples` and `n_states` (distinct
    clusters) are by group, and by `cluster_dim` where clusters differ along one.
    """
    by_example = {k: v for k, v in instrument.outputs.items() if v[-1:] == (EXAMPLE,)}
    parts = _Parts(examples)
    variables: dict[str, Any] = {
        name: (("step", *dims), outputs[name])
        for name, dims in instrument.outputs.items()
        if name not in by_example
    }
    for name, dims in by_example.items():
        mean, low, high = parts.average(outputs[name], ("step", *dims[:-1]))
        kept = ("step", "group", *dims[:-1])
        variables |= {name: (kept, mean), f"{name}_low": (kept, low), f"{name}_high": (kept, high)}
    used = {dim for dims in instrument.outputs.values() for dim in dims if dim != EXAMPLE}
    labels = {dim: list(coords[dim]) for dim in coords if dim in used}
    if by_example:
        labels["group"] = list(examples.groups)
        dims = ("group", *parts.dims)
        variables |= {"n_examples": (dims, parts.n_examples), "n_states": (dims, parts.n_states)}
    return xr.Dataset(variables, {"step": list(steps), **labels})


class _Parts:
    """The examples of every group, at every place along `cluster_dim`."""

    def __init__(self, examples: Examples):
        self.dims = (examples.cluster_dim,) if examples.cluster_dim else ()
        clusters = examples.clusters if self.dims else examples.clusters[None]
        self._members: list[list[np.ndarray]] = []
        self._bootstraps: list[list[ClusterBootstrap]] = []
        for group in range(len(examples.groups)):
            counted = [np.flatnonzero((examples.group == group) & (c >= 0)) for c in clusters]
            self._members.append(counted)
            self._bootstraps.append(
                [
                    ClusterBootstrap(c[rows], _RESAMPLES)
                    for c, rows in zip(clusters, counted, strict=True)
                ]
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
        self, values: np.ndarray, dims: tuple[str, ...]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean and ends of the interval, the group's axis after the first."""
        axis = dims.index(self.dims[0]) if self.dims and self.dims[0] in dims else None
        by_group = []
        for members, bootstraps in zip(self._members, self._bootstraps, strict=True):
            if axis is None:
                found = [_interval(values, members[0], bootstraps[0])]
                by_group.append(found[0])
                continue
            found = [
                _interval(np.take(values, place, axis), rows, bootstrap)
                for place, (rows, bootstrap) in enumerate(zip(members, bootstraps, strict=True))
            ]
            by_group.append(np.stack(found, axis=axis + 1))
        mean, low, high = np.moveaxis(np.stack(by_group), 0, 2)  # [3, step, group, ...]
        return mean, low, high


def _interval(values: np.ndarray, rows: np.ndarray, bootstrap: ClusterBootstrap) -> np.ndarray:
    """float32 [3, ...]: mean, low, high over the last axis."""
    interval = bootstrap.interval(values[..., rows])
    return np.stack([interval.mean, interval.low, interval.high]).astype(np.float32)
