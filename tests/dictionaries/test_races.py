"""Dictionaries that another process finishes; `training/test_loop.py` tests other faults."""

import contextlib

from implicit_reasoning.dictionaries import train, train_dictionaries
from implicit_reasoning.dictionaries.store import Files


def test_a_set_that_was_finished_meanwhile_is_opened(run, made, monkeypatch):
    """Another process held the folder when this one started, and finished the set."""
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
