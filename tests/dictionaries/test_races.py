"""Training dictionaries that another process finishes; `training/test_loop.py` has other faults."""

import contextlib

from implicit_reasoning.dictionaries import train, train_dictionaries
from implicit_reasoning.dictionaries.store import Files


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
    found = train_dictionaries(run, made.config)
    assert all(found.fingerprint(step) == made.fingerprint(step) for step in run.steps)
