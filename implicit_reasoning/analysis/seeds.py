"""Several runs at once: the seeds of one model on one dataset, stacked beside their checkpoints.

Where runs share model and data, an instrument looks at the same examples in all of them, so their
checkpoints are measured as if they were one run's: in one program, a device's share being any of
them. Runs of other worlds have examples of their own and are measured by themselves, with the
program that is compiled already where the shapes allow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import xarray as xr
from jax.sharding import Sharding

from implicit_reasoning.analysis.instrument import Instrument
from implicit_reasoning.analysis.runner import Runner, measure
from implicit_reasoning.analysis.subject import Subject
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.worlds import Dataset


@dataclass(frozen=True, eq=False)
class StackedSubjects:
    """Subjects of one model and dataset as one: some checkpoints of each, subject by subject."""

    subjects: Sequence[Subject]
    chosen: Sequence[int]

    @property
    def model(self) -> Transformer:
        """The model of all."""
        return self.subjects[0].model

    @property
    def dataset(self) -> Dataset:
        """The data of all."""
        return self.subjects[0].dataset

    @property
    def steps(self) -> tuple[int, ...]:
        """Numbers of (subject, step), subject by subject."""
        return tuple(range(len(self.subjects) * len(self.chosen)))

    def params(
        self, steps: Sequence[int] | None = None, sharding: Sharding | None = None
    ) -> Params:
        """Those asked for, stacked."""
        places = [divmod(n, len(self.chosen)) for n in (self.steps if steps is None else steps)]
        found = [self.subjects[seed].params([self.chosen[place]]) for seed, place in places]
        stacked = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *found)
        return stacked if sharding is None else jax.device_put(stacked, sharding)


def measure_seeds(
    instrument: Instrument,
    subjects: Sequence[Subject],
    steps: Sequence[int],
    *,
    progress: bool = True,
) -> list[xr.Dataset]:
    """Run one instrument over the same checkpoints of several subjects.

    Args:
      instrument: to run.
      subjects: runs, or weights in memory; those of one model and dataset are measured together.
      steps: which checkpoints; all subjects have them.
      progress: show a bar on standard error, for each set that is measured together.

    Returns:
      The result of each subject, as `measure` returns it.

    Raises:
      InputError: as `measure`.
    """
    runners: dict[Transformer, Runner] = {}
    found: dict[int, xr.Dataset] = {}
    for together in group_by_model(instrument, subjects):
        model = subjects[together[0]].model
        runner = runners.setdefault(model, Runner(instrument, model))
        if len(together) == 1:
            subject = subjects[together[0]]
            found[together[0]] = measure(
                instrument, subject, steps, runner=runner, progress=progress
            )
            continue
        stacked = StackedSubjects([subjects[number] for number in together], steps)
        results = measure(instrument, stacked, runner=runner, progress=progress)
        for place, number in enumerate(together):
            own = slice(place * len(steps), (place + 1) * len(steps))
            found[number] = results.isel(step=own).assign_coords(step=list(steps))
    return [found[number] for number in range(len(subjects))]


def group_by_model(instrument: Instrument, subjects: Sequence[Subject]) -> list[list[int]]:
    """Numbers of subjects that can be measured together, each set in order.

    An instrument that compares with a run's own last checkpoint has other inputs for each.
    """
    sets: dict[tuple[object, ...], list[int]] = {}
    for number, subject in enumerate(subjects):
        own = number if instrument.reference else None
        key = (subject.model, subject.dataset.fingerprint(), own)
        sets.setdefault(key, []).append(number)
    return list(sets.values())
