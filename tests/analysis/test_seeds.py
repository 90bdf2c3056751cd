"""Runs measured together give the same values as each run alone, and are compiled once."""

import jax
import numpy as np
import pytest
import xarray as xr

from implicit_reasoning.analysis import InMemory, find_instrument, measure
from implicit_reasoning.analysis import runner as runner_module
from implicit_reasoning.analysis.seeds import StackedSubjects, group_by_model, measure_seeds
from implicit_reasoning.worlds import build
from tests.analysis.subjects import random_checkpoints
from tests.analysis.test_runner import Probabilities
from tests.training.tiny import tiny


def seeds(count, steps=2):
    """Return subjects of one model, each with its own checkpoints."""
    whole = random_checkpoints(count * steps)
    parts = [whole.checkpoints[n * steps : (n + 1) * steps] for n in range(count)]
    return [InMemory(whole.model, whole.dataset, part) for part in parts]


def other_world(subject):
    dataset = build(tiny(task__world_seed=1).task)
    assert dataset.fingerprint() != subject.dataset.fingerprint()
    return InMemory(subject.model, dataset, subject.checkpoints)


@pytest.fixture
def runners(monkeypatch):
    """Return a list that collects every runner that is created."""
    made = []

    class Counted(runner_module.Runner):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr("implicit_reasoning.analysis.seeds.Runner", Counted)
    return made


def test_seeds_say_together_what_they_say_alone(runners):
    subjects = seeds(3)
    together = measure_seeds(Probabilities(), subjects, (1, 0), progress=False)
    assert sum(runner.traces for runner in runners) == 1
    for subject, found in zip(subjects, together, strict=True):
        alone = measure(Probabilities(), subject, (1, 0), progress=False)
        xr.testing.assert_allclose(found, alone, rtol=1e-5)
        assert found.attrs == alone.attrs and found.step.values.tolist() == [1, 0]
    assert not np.allclose(together[0].probability, together[1].probability)


def test_a_run_of_another_world_is_measured_on_its_own_examples(runners):
    one, two, three = seeds(3)
    subjects = [one, other_world(two), three]
    assert group_by_model(Probabilities(), subjects) == [[0, 2], [1]]
    found = measure_seeds(Probabilities(), subjects, (0,), progress=False)
    for subject, result in zip(subjects, found, strict=True):
        alone = measure(Probabilities(), subject, (0,), progress=False)
        xr.testing.assert_allclose(result, alone, rtol=1e-5)
        assert result.attrs["world"] == subject.dataset.fingerprint()


def test_what_compares_with_a_run_s_own_last_checkpoint_is_measured_run_by_run():
    instrument, subjects = find_instrument("parameter_patching"), seeds(2)
    assert instrument.reference and group_by_model(instrument, subjects) == [[0], [1]]
    found = measure_seeds(instrument, subjects, (0,), progress=False)
    alone = measure(instrument, subjects[1], (0,), progress=False)
    xr.testing.assert_allclose(found[1], alone)


def test_parameters_are_those_of_the_subject_and_the_step():
    subjects = seeds(2, steps=3)
    stacked = StackedSubjects(subjects, (2, 0))
    assert stacked.steps == (0, 1, 2, 3)
    got = stacked.params((3, 0))
    wanted = [subjects[1].checkpoints[0], subjects[0].checkpoints[2]]
    jax.tree.map(
        lambda all, *each: np.testing.assert_array_equal(all, np.stack(each)), got, *wanted
    )
