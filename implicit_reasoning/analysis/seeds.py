"""Measure several runs in one program, such as runs that differ only in their seed.

Runs with equal models and equal datasets have equal examples. The checkpoints of these runs are
stacked, and the stack is measured like the checkpoints of one run. Runs with different datasets
have different examples, and are measured one after another. The compiled program is reused if the
arrays have the same shapes.
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
    """Several runs with equal models and equal datasets, combined into one subject.

    Attributes:
      subjects: the runs, or weights in memory.
      chosen: steps of the checkpoints to measure, which every subject must have.
    """

    subjects: Sequence[Subject]
    chosen: Sequence[int]

    @property
    def model(self) -> Transformer:
        """The model, which is equal for all subjects."""
        return self.subjects[0].model

    @property
    def dataset(self) -> Dataset:
        """The dataset, which is equal for all subjects."""
        return self.subjects[0].dataset

    @property
    def steps(self) -> tuple[int, ...]:
        """Indices 0, 1, ... of the (subject, step) pairs, which are ordered by subject."""
        return tuple(range(len(self.subjects) * len(self.chosen)))

    def params(
        self, steps: Sequence[int] | None = None, sharding: Sharding | None = None
    ) -> Params:
        """Load the checkpoints of some (subject, step) pairs, stacked along a leading axis.

        Args:
          steps: indices of the pairs, from `StackedSubjects.steps`. None means all pairs.
          sharding: sharding of the result; None means the default device.
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
    """Measure the checkpoints of several subjects with one instrument.

    Args:
      instrument: the instrument to run.
      subjects: runs, or weights in memory. Subjects with equal models and equal datasets are
        measured together.
      steps: steps of the checkpoints, which every subject must have.
      progress: whether to show progress bars on standard error.

    Returns:
      The result of each subject, in the order of `subjects`.

    Raises:
      NotApplicable: the instrument cannot be used for the task of a subject.
      InputError: the outputs of the instrument differ from the declared outputs, or a step has no
        checkpoint.
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
    """Group the subjects that can be measured together.

    Subjects with equal models and equal datasets are in one group. For an instrument with
    `reference = True`, each subject is alone in its group, because the instrument compares
    checkpoints with the last checkpoint of the subject.

    Returns:
      For each group, indices into `subjects`.
    """
    sets: dict[tuple[object, ...], list[int]] = {}
    for number, subject in enumerate(subjects):
        own = number if instrument.reference else None
        key = (subject.model, subject.dataset.fingerprint(), own)
        sets.setdefault(key, []).append(number)
    return list(sets.values())
