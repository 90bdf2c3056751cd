"""Training dictionaries: one process at a time, damaged states."""

import contextlib

import numpy as np
import pytest

from implicit_reasoning.dictionaries import train, train_dictionaries
from implicit_reasoning.dictionaries.store import Files
from implicit_reasoning.errors import InputError
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
    found = train_dictionaries(run, made.config)
    assert all(found.fingerprint(step) == made.fingerprint(step) for step in run.steps)


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
