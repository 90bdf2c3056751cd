"""Measure several runs at once, such as runs that differ only in their seed.

Runs with the same model and dataset have the same examples. The checkpoints of these runs are
stacked and measured in one program, as if they belonged to one run. Each device computes some of
the checkpoints. Runs on different worlds have different examples and are measured separately. They
reuse the compiled program if their arrays have the same shapes.
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
    """Several subjects with the same model and dataset, combined into one subject.

    Attributes:
      subjects: the subjects.
      chosen: steps of the checkpoints to measure. Every subject must have these checkpoints.
    """

    subjects: Sequence[Subject]
    chosen: Sequence[int]

    @property
    def model(self) -> Transformer:
        """The model of all subjects."""
        return self.subjects[0].model

    @property
    def dataset(self) -> Dataset:
        """The dataset of all subjects."""
        return self.subjects[0].dataset

    @property
    def steps(self) -> tuple[int, ...]:
        """Indices of the (subject, step) pairs. Pairs are ordered by subject."""
        return tuple(range(len(self.subjects) * len(self.chosen)))

    def params(
        self, steps: Sequence[int] | None = None, sharding: Sharding | None = None
    ) -> Params:
        """Load the checkpoints of some (subject, step) pairs, stacked along a leading axis.

        Args:
          steps: indices of the pairs, as in `self.steps`. None loads all pairs.
          sharding: sharding of the result; None uses the default device.
        """
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
      instrument: the instrument to run.
      subjects: runs, or weights in memory. Subjects with the same model and dataset are measured
        together.
      steps: steps of the checkpoints. Every subject must have these checkpoints.
      progress: show a progress bar on standard error, one for each set of subjects that are
        measured together.

    Returns:
      The result of each subject, as `measure` returns it.

    Raises:
      InputError: see `measure`.
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
    """Group the subjects that can be measured together, and return their indices into `subjects`.

    An instrument with `reference = True` compares each checkpoint with the last checkpoint of the
    same run. The inputs of such an instrument differ between runs, so each subject is measured
    separately.
    """
    sets: dict[tuple[object, ...], list[int]] = {}
    for number, subject in enumerate(subjects):
        own = number if instrument.reference else None
        key = (subject.model, subject.dataset.fingerprint(), own)
        sets.setdefault(key, []).append(number)
    return list(sets.values())
