"""`Runs`: a sweep opened for analysis. Results have an additional dimension for trials."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np
import xarray as xr

from implicit_reasoning.analysis import Instrument, analyze_runs
from implicit_reasoning.errors import InputError
from implicit_reasoning.paths import local_folder
from implicit_reasoning.runs import Run
from implicit_reasoning.runtime.progress import write
from implicit_reasoning.sweeps.definition import Sweep, short_keys
from implicit_reasoning.sweeps.directory import Status, SweepLayout, load, read_journal
from implicit_reasoning.sweeps.summary import runs_html
from implicit_reasoning.training.phases import Splits, phase_criteria, phases

SEEDS = ("seed", "task.world_seed")
"""The fields that are seeds. Trials that differ only in these fields are runs of the same point."""


class Runs(Sequence[Run]):
    """The started trials of a sweep, as a sequence of `Run` objects.

    The sequence contains the trials that have started when the object is created. Trials that start
    later are not added. `runs[0]` and `runs["seed=3"]` return a run, and `for run in runs` iterates
    over the runs. Measurements of all runs are labeled arrays with the dimension `trial`. The
    coordinates of this dimension are the names of the trials and the fields that the sweep sets.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        chosen: Callable[[Mapping[str, Any]], bool] | None = None,
    ):
        """Open a sweep's directory.

        Args:
          workdir: directory of the sweep.
          chosen: function of a trial's overrides that returns whether the trial is selected. By
            default, all trials are selected.

        Raises:
          InputError: the directory does not contain a sweep.
        """
        self.files = SweepLayout(local_folder(workdir, "workdir"))
        self.sweep: Sweep = load(self.files)
        self.names: tuple[str, ...] = tuple(
            name
            for name, overrides in self.sweep.trials.items()
            if self.files.trial(name).config.exists() and (chosen is None or chosen(overrides))
        )
        self._opened: dict[str, Run] = {}
        self._rows: dict[str, list[dict[str, Any]]] = {}

    def __repr__(self) -> str:
        count = len(self.sweep.trials)
        return f"Runs({str(self.files.workdir)!r}, {len(self.names)} of {count} trials started)"

    def _repr_html_(self) -> str:
        return runs_html(self)

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, which: int | str) -> Run: ...

    @overload
    def __getitem__(self, which: slice) -> list[Run]: ...

    def __getitem__(self, which: int | str | slice) -> Run | list[Run]:
        if isinstance(which, slice):
            return [self[name] for name in self.names[which]]
        name = self.names[which] if isinstance(which, int) else which
        if name not in self.names:
            raise InputError(
                f"trial {name!r} of {self.files.workdir} has not started, or does not exist"
            )
        if name not in self._opened:
            self._opened[name] = Run(self.files.trial(name).workdir)
        return self._opened[name]

    def __iter__(self) -> Iterator[Run]:
        return (self[name] for name in self.names)

    @property
    def statuses(self) -> dict[str, Status]:
        """Status of every trial of the sweep, including trials that have not started."""
        known = read_journal(self.files)
        return {name: known.get(name, Status()) for name in self.sweep.trials}

    @cached_property
    def coords(self) -> dict[str, Any]:
        """Coordinates of measurements: trial names, and the fields that the sweep sets."""
        found: dict[str, Any] = {"trial": list(self.names)}
        for key in self.sweep.keys:
            values = [self.value(name, key) for name in self.names]
            plain = all(isinstance(value, int | float | str) for value in values)
            found[key] = ("trial", values if plain else list(map(str, values)))
        return found

    def value(self, trial: str, key: str) -> Any:
        """Return the value of a field in the configuration of a trial.

        Args:
          trial: name of the trial.
          key: dotted name of the field.
        """
        overrides = self.sweep.trials[trial]
        if key in overrides:
            return overrides[key]
        value: Any = self.sweep.base
        for part in key.split("."):
            value = value[part]
        return value

    @cached_property
    def points(self) -> dict[str, str]:
        """The fields and values that the sweep sets in each trial, without seeds, as text.

        The keys are trial names. Trials that differ only in seeds have the same text.
        """
        short = short_keys([key for key in self.sweep.keys if key not in SEEDS])
        return {
            name: ", ".join(f"{said} {self.value(name, key)}" for key, said in short.items())
            or "all trials"
            for name in self.names
        }

    def rows(self, trial: str) -> list[dict[str, Any]]:
        """Return the rows of `metrics.jsonl` of a trial.

        The file is read at the first call only.
        """
        if trial not in self._rows:
            self._rows[trial] = self[trial].metrics
        return self._rows[trial]

    def metric(self, name: str) -> xr.DataArray:
        """Return a column of `metrics.jsonl` for all trials.

        Args:
          name: name of the column, such as `loss` or `accuracy/test_ii`.

        Returns:
          float [trial, step]; nan if a trial has no value at a step.

        Raises:
          InputError: no trial has the metric.
        """
        series = [
            {row["step"]: row[name] for row in self.rows(trial) if name in row}
            for trial in self.names
        ]
        steps = sorted({step for each in series for step in each})
        if not steps:
            raise InputError(f"no trial of {self.files.workdir} has a metric {name!r}")
        values = np.array([[each.get(step, np.nan) for step in steps] for each in series])
        return xr.DataArray(
            values, dims=("trial", "step"), coords={**self.coords, "step": steps}, name=name
        )

    def phases(self) -> xr.Dataset:
        """Return the training step at which each trial reached each phase.

        The value is nan if the trial did not reach the phase.
        """
        against: dict[str, tuple[Splits, float | None]] = {}
        found = []
        for trial in self.names:
            task = str(self[trial].config.task)
            if task not in against:  # once per world
                against[task] = phase_criteria(self[trial].dataset)
            found.append(dataclasses.asdict(phases(self.rows(trial), *against[task])))
        return xr.Dataset(
            {
                phase: (
                    "trial",
                    np.array([np.nan if f[phase] is None else f[phase] for f in found]),
                )
                for phase in found[0]
            }
            if found
            else {},
            coords=self.coords,
        )

    def analyze(
        self,
        instrument: str | Instrument,
        *,
        steps: Sequence[int] | None = None,
        again: bool = False,
        progress: bool = True,
    ) -> xr.Dataset:
        """Measure all trials with one instrument; the result has `trial` as its first dimension.

        Trials with the same world and shape are measured in one program (see
        `analysis.analyze_runs`). The result of each trial is also saved in the directory of the
        trial. If a trial lacks a checkpoint for any of `steps`, the trial is omitted and its name
        is printed.

        Args:
          instrument: name of the instrument, or the instrument.
          steps: training steps of the checkpoints; by default all.
          again: whether to repeat measurements that are already saved.
          progress: whether to show a progress bar.

        Raises:
          InputError: no trial has started, no trial has checkpoints for all `steps`, or
            `analysis.analyze_runs` rejects its input.
        """
        if not self.names:
            raise InputError(f"no trial of {self.files.workdir} has started")
        there = [n for n, run in enumerate(self) if set(steps or ()) <= set(run.steps)]
        if lacking := [name for n, name in enumerate(self.names) if n not in there]:
            wanted = f"checkpoints of all steps {list(steps or ())}"
            if not there:
                raise InputError(f"no trial of {self.files.workdir} has {wanted}")
            write(f"trials without {wanted} are omitted: {', '.join(lacking)}")
        runs = [self[n] for n in there]
        results = analyze_runs(runs, instrument, steps=steps, again=again, progress=progress)
        one = xr.concat(results, "trial", combine_attrs="override", data_vars="all", join="outer")
        return one.assign_coords(xr.Dataset(coords=self.coords).isel(trial=there).coords)
