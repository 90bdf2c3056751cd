"""Which programs are compiled, when and how often; which data moves; profiling changes nothing."""

from pathlib import Path

import jax
import numpy as np
import pytest

from implicit_reasoning.__main__ import main
from implicit_reasoning.runs import Run
from implicit_reasoning.runtime import sharding
from implicit_reasoning.runtime.profiling import Compiles, Profile, compiles
from implicit_reasoning.training import setup, train
from implicit_reasoning.training.step import StepRecipe
from tests import shared
from tests.training.tiny import TINY, assert_same_run, tiny


@pytest.fixture(scope="module")
def run():
    return Run(shared.finished())


@pytest.fixture
def fresh():
    """Clear the cached functions, so that no other test shares them."""
    setup._functions.cache_clear()
    yield
    setup._functions.cache_clear()


def test_the_step_is_traced_and_compiled_once_a_process(fresh, tmp_path, monkeypatch):
    """This covers chunks of many lengths, evaluations and saves, from a new or a restored state."""
    traced, original = [], StepRecipe.run
    compiled = []

    def listen(event, duration_secs, **about):
        if "backend_compile" in event and about.get("fun_name") == "jit(run)":
            compiled.append(duration_secs)

    def run(self, *arguments):
        traced.append(arguments)
        return original(self, *arguments)

    jax.monitoring.register_event_duration_secs_listener(listen)
    monkeypatch.setattr(StepRecipe, "run", run)
    for stop in (33, 60):
        train(tiny(), tmp_path / "run", stop_at=stop)
        assert len(traced) == len(compiled) == 1
    # Another seed, world or rate uses the same program; another shape does not.
    train(tiny(seed=1, optimizer__learning_rate=1e-4), tmp_path / "other", stop_at=1)
    assert len(traced) == len(compiled) == 1
    if shared.THOROUGH:
        train(tiny(batch_size=8), tmp_path / "smaller", stop_at=1)
        assert len(traced) == len(compiled) == 2


def test_rows_say_how_much_was_compiled_and_when(run):
    counts = {row["step"]: row["compiles"] for row in run.metrics}
    assert 0 < counts[0] < counts[1]  # evaluation at step 0, then the step itself
    assert set(list(counts.values())[2:]) == {counts[60]}  # nothing is compiled after that
    assert run.metrics[-1]["compile_seconds"] > 0


def test_compiles_are_counted_by_program():
    before = compiles()
    add = jax.jit(lambda x: x + before.count)
    for _ in range(3):
        add(np.float32(1))
    since = compiles().since(before)
    assert since["compiles"] == 1 and since["compile_seconds"] > 0
    assert Compiles(5, 2.0).since(Compiles(2, 0.5)) == {"compiles": 3, "compile_seconds": 1.5}


@pytest.mark.slow
def test_what_moves_to_the_device_unasked_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "put_scalar", lambda number, where: np.int32(number))
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        train(tiny(), tmp_path / "run")


@pytest.mark.slow
def test_a_traced_run_is_the_same_run(run, tmp_path):
    argv = [f"--config.{key}={value}" for key, value in TINY.items()]
    config = f"--config={Path('configs').absolute()}/composition.py:pocket"
    traced = tmp_path / "run"
    assert main(["train", config, f"--workdir={traced}", "--profile", *argv]) == 0
    [trace] = (traced / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 10_000
    assert_same_run(run.files.workdir, traced)
    assert not run.files.profile.exists()


def test_a_trace_ends_where_the_run_does(tmp_path):
    """A run may stop during a trace."""
    profile = Profile(tmp_path)
    for _ in range(2):
        profile.next_chunk(jax.numpy.ones(3))
    profile.close()
    profile.close()
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == 1
