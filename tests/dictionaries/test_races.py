"""Dictionaries: finished by another process meanwhile, results of something else."""

import contextlib
import dataclasses

import numpy as np
import pytest
import xarray as xr

from implicit_reasoning.dictionaries import measure, train, train_dictionaries
from implicit_reasoning.dictionaries.store import TRAINED, Files
from implicit_reasoning.runs import load_arrays, save_arrays


def test_a_set_that_was_finished_meanwhile_is_opened(run, made, monkeypatch):
    """By a process that held the folder when this one came to it."""
    files = Files.of(run, made.config.name)
    finished, aside = files.finished, files.finished.with_suffix(".aside")
    finished.rename(aside)

    @contextlib.contextmanager
    def held_before(folder, activity, choose):
        aside.rename(finished)
        yield

    monkeypatch.setattr(train, "exclusive", held_before)
    monkeypatch.setattr(train.DictionaryTraining, "loop", None)
    assert train_dictionaries(run, made.config).fingerprint == made.fingerprint


@pytest.fixture
def measuring(run, made, monkeypatch):
    """Count what is measured; in place of numbers there is how often it was."""
    path = Files.of(run, made.config.name).measured
    path.unlink(missing_ok=True)
    times = []

    def fake(run, made, *, progress):
        times.append(1)
        return labelled(made).assign_attrs({measure._WITH: measure._measured_with(run, made)})

    monkeypatch.setattr(measure, "measure_dictionaries", fake)
    yield times, path
    path.unlink(missing_ok=True)


def labelled(made):
    names = ("step", "site", "sparsity", "seed")
    coords = {n: ("member", [getattr(member, n) for member in made.members]) for n in names}
    coords["what"] = "member", [TRAINED] * len(made)
    return xr.Dataset({"l0": ("member", np.ones(len(made)))}, coords)


def test_a_result_that_fits_is_not_measured_again(run, made, measuring):
    times, path = measuring
    for _ in range(2):
        measure.measured(run, made)
    assert len(times) == 1
    assert load_arrays(path).attrs["measured_with"]["world"] == run.dataset.fingerprint()


@pytest.mark.parametrize("other", ["dictionaries", "checkpoints", "world", "options"])
def test_a_result_of_something_else_is_measured_again(run, made, measuring, other, capfd):
    times, path = measuring
    kept = measure.measured(run, made)
    kept.attrs["measured_with"][other] = "another"
    save_arrays(path, kept)
    found = measure.measured(run, made)
    assert len(times) == 2 and f"is of other {other}; measuring again" in capfd.readouterr().err
    assert found.attrs["measured_with"] == measure._measured_with(run, made)


def test_dictionaries_trained_anew_are_others(run, made):
    moved = dataclasses.replace(made, params=made.params | {"b_dec": made.params["b_dec"] + 1})
    assert moved.fingerprint != made.fingerprint
    fewer = dataclasses.replace(made, members=made.members[::-1])
    assert fewer.fingerprint != made.fingerprint


def test_results_that_note_nothing_have_other_intervals(run, made, measuring, capfd):
    times, path = measuring
    save_arrays(path, labelled(made))
    measure.measured(run, made)
    assert len(times) == 1 and "is of other intervals; measuring again" in capfd.readouterr().err
