"""Dictionaries: one process at a time, damaged states, results of something else."""

import contextlib
import dataclasses

import numpy as np
import pytest
import xarray as xr

from implicit_reasoning.dictionaries import measure, train, train_dictionaries
from implicit_reasoning.dictionaries.store import TRAINED, Files
from implicit_reasoning.errors import InputError
from implicit_reasoning.runs import load_arrays, save_arrays
from implicit_reasoning.runtime.locks import exclusive_lock
from implicit_reasoning.runtime.shutdown import Interrupted, ShutdownRequest
from tests.dictionaries.small import SITE, config


@contextlib.contextmanager
def stops_after(monkeypatch, chunks):
    """A signal comes after so many chunks."""

    class Later(ShutdownRequest):
        asked = 0

        def __bool__(self):
            self.asked += 1
            self.number = 15 if self.asked > chunks else 0
            return self.number != 0

    with monkeypatch.context() as patched:
        patched.setattr(train, "shutdown_requests", lambda: contextlib.nullcontext(Later()))
        with pytest.raises(Interrupted):
            yield


def test_only_one_process_trains_a_set(run):
    asked = config(name="held", read=(SITE,))
    files = Files.of(run, "held")
    with (
        exclusive_lock(files.folder, "not here"),
        pytest.raises(InputError, match=r"another process is training dictionaries in .*held"),
    ):
        train_dictionaries(run, asked)
    assert {path.name for path in files.folder.iterdir()} == {".lock"}


def test_a_set_that_was_finished_meanwhile_is_opened(run, made, monkeypatch):
    """By a process that held the folder when this one came to it."""
    files = Files.of(run, made.config.name)
    finished, aside = files.finished, files.finished.with_suffix(".aside")
    finished.rename(aside)

    @contextlib.contextmanager
    def held_before(folder, refusal):
        aside.rename(finished)
        yield

    monkeypatch.setattr(train, "exclusive_lock", held_before)
    monkeypatch.setattr(train._Training, "go", None)
    assert train_dictionaries(run, made.config).fingerprint == made.fingerprint


def test_a_damaged_state_falls_back_to_the_one_before(run, made, monkeypatch, capfd):
    """And comes to the same dictionaries."""
    asked = config(name="damaged")
    files = Files.of(run, "damaged")
    for chunks in (1, 1):
        with stops_after(monkeypatch, chunks):
            train_dictionaries(run, asked)
    steps = sorted(int(path.name) for path in files.resume.iterdir())
    assert steps == [10, 20]
    [data] = (files.resume / "20" / "default" / "d").iterdir()
    data.write_bytes(data.read_bytes()[:100])
    found = train_dictionaries(run, asked)
    said = capfd.readouterr().err
    assert "resume/20 cannot be read" in said and "trying the one before it" in said
    for name, values in made.params.items():
        np.testing.assert_array_equal(found.params[name], values)


def test_without_a_whole_state_it_says_how_to_begin_again(run, monkeypatch, capfd):
    asked = config(name="broken")
    files = Files.of(run, "broken")
    with stops_after(monkeypatch, 1):
        train_dictionaries(run, asked)
    (files.resume / "10" / "default" / "manifest.ocdbt").write_bytes(b"")
    with pytest.raises(InputError, match=r"no state in .*broken/resume can be read; remove that"):
        train_dictionaries(run, asked)


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
