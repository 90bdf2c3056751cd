"""A test file that compiles more programs than recorded fails the session."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from tests import compile_counts
from tests.compile_counts import CompileCounts, uncounted


@pytest.fixture
def counts(tmp_path, monkeypatch):
    path = tmp_path / "counts.json"
    monkeypatch.setattr(compile_counts, "COUNTS", path)
    return path


def finished(mode, found):
    """Return a plugin and its session, after tests that compiled `found`: file to programs."""
    config = SimpleNamespace(getoption=lambda name: mode)
    plugin, session = CompileCounts(config), SimpleNamespace(exitstatus=0)
    for file, programs in found.items():
        report = SimpleNamespace(
            when="teardown", nodeid=f"{file}::test_a", user_properties=[("programs", programs)]
        )
        plugin.pytest_runtest_logreport(report)
    plugin.pytest_sessionfinish(session)
    return session.exitstatus


def test_more_programs_than_agreed_fail_the_session(counts):
    file = "tests/test_compile_counts.py"
    assert finished("write", {file: 3}) == 0
    agreed = 3 + compile_counts.ROOM
    assert json.loads(counts.read_text())["files"] == {file: agreed}
    assert finished("check", {file: agreed}) == 0
    assert finished("check", {file: agreed + 1}) == 1
    assert finished("check", {"tests/test_new.py": 1}) == 1
    assert finished(None, {file: agreed + 1}) == 0


def test_other_versions_of_jax_are_not_held_to_the_counts(counts):
    counts.write_text(json.dumps({"jax": "0.0.1", "files": {}}))
    assert finished("check", {"tests/test_new.py": 1}) == 0


def test_a_program_is_counted_once_and_not_within_uncounted():
    def compile_one():
        jax.jit(lambda x: x + 1)(x)

    x = jnp.zeros(3)
    before = compile_counts._compiled
    compile_one()
    assert compile_counts._compiled == before + 1
    with uncounted():
        compile_one()
    assert compile_counts._compiled == before + 1
