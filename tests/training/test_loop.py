"""The loop that trains models and dictionaries: order of events, and equal handling of faults."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.dictionaries import train as dictionary_module
from implicit_reasoning.dictionaries import train_dictionaries
from implicit_reasoning.dictionaries.store import Files
from implicit_reasoning.errors import InputError
from implicit_reasoning.runs import Run
from implicit_reasoning.runs.stores import finished_steps
from implicit_reasoning.runtime.locks import exclusive_lock
from implicit_reasoning.runtime.shutdown import Interrupted, ShutdownRequest
from implicit_reasoning.training import models, train
from implicit_reasoning.training.loop import NOT_BEGUN, ResumableLoop
from tests import shared
from tests.dictionaries.small import SITE, config
from tests.disks import small_files
from tests.training.stopping import RequestAfter, stopped_after
from tests.training.tiny import tiny

# Order of events ---------------------------------------------------------------------------------


class Counting:
    """A `Training` whose state is a counter; it records the calls of the loop."""

    steps = 30

    def __init__(self, begins_at=NOT_BEGUN):
        self.begins_at, self.calls = begins_at, []

    def init(self):
        return jax.device_put(np.int32(max(self.begins_at, 0)))

    def restore(self, step, read):
        self.calls.append(f"restore {step}")
        return read({"count": jax.ShapeDtypeStruct((), np.int32)})["count"]

    def saved(self, state):
        return {"count": state}

    def open(self, step):
        self.calls.append(f"open at {step}")

    def close(self):
        self.calls.append("close")

    def chunk_end(self, step, count):
        return (step // 5 + 1) * 5

    def advance(self, state, step, count):
        self.calls.append(f"advance to {step + count}")
        return jax.jit(jnp.add)(state, jax.device_put(np.int32(count)))

    def arrive(self, before, step, state):
        self.calls.append(f"arrive at {step}")
        return state

    def write(self, chunk):
        self.calls.append(f"write {chunk.step}")
        assert int(chunk.results) == chunk.step
        return {}

    def keeps_at(self, step):
        return step == 15

    def resumes_at(self, step):
        return step in (10, 20)

    def keep(self, step, state, *, resumable):
        self.calls.append(f"keep {step}" + " on disk" * resumable)


def run_loop(training, folder, stop=Counting.steps, request=None):
    loop = ResumableLoop(training, folder / "resume", progress=False)
    return int(loop.run(stop, ShutdownRequest() if request is None else request))


def test_results_are_read_one_chunk_late_but_before_anything_is_kept(tmp_path):
    training = Counting()
    assert run_loop(training, tmp_path, stop=20) == 20
    assert training.calls == [
        *("open at -1", "arrive at 0"),
        *("advance to 5", "write 0", "arrive at 5"),
        *("advance to 10", "write 5", "arrive at 10", "write 10", "keep 10 on disk"),
        *("advance to 15", "arrive at 15", "write 15", "keep 15"),
        *("advance to 20", "arrive at 20", "write 20", "keep 20 on disk"),
        "close",
    ]
    assert finished_steps(tmp_path / "resume") == (10, 20)


def test_at_the_end_everything_is_written_and_a_state_only_where_it_is_asked_for(tmp_path):
    """Finished dictionaries replace the saved state."""
    training = Counting()
    assert run_loop(training, tmp_path) == 30
    assert training.calls[-3:] == ["arrive at 30", "write 30", "close"]
    assert finished_steps(tmp_path / "resume") == (10, 20)


def test_the_newest_state_counts_unless_training_begins_with_a_newer_one(tmp_path):
    with pytest.raises(Interrupted, match="SIGTERM: saved at step 15"):
        run_loop(Counting(), tmp_path, request=RequestAfter(3))
    resumed, newer = Counting(begins_at=10), Counting(begins_at=25)
    run_loop(resumed, tmp_path, stop=15)
    assert resumed.calls[:2] == ["restore 15", "open at 15"]
    run_loop(newer, tmp_path)
    assert newer.calls[:2] == ["open at 25", "advance to 30"]


def test_nothing_moves_between_host_and_device_unasked(tmp_path):
    class Careless(Counting):
        def advance(self, state, step, count):
            return state + np.int32(count)

    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        run_loop(Careless(), tmp_path)


# Faults, for models and dictionaries alike -------------------------------------------------------


class Case(NamedTuple):
    """One kind of training.

    Attributes:
      folder: the folder that is locked and that has `resume/`.
      train: trains from the newest state to the end and returns parameters.
      module: the module that listens for signals.
    """

    folder: object
    train: Callable
    module: object


def case_of(kind, folder):
    if kind == "model":
        return Case(folder, lambda: train(tiny(), folder).params(), models)
    if not folder.exists():
        shared.finished_copy(folder)
    run, asked = Run(folder), config(name="small", read=(SITE,), sparsities=(2.0,))
    files = Files.of(run, "small")
    return Case(files.folder, lambda: train_dictionaries(run, asked).params, dictionary_module)


@pytest.fixture(params=["model", "dictionaries"])
def kind(request):
    return request.param


@pytest.fixture
def case(kind, tmp_path):
    return case_of(kind, tmp_path / "run")


@pytest.fixture
def whole(kind):
    """Return the parameters of a run without faults."""
    if kind == "model":
        return Run(shared.finished()).params()
    return case_of(kind, shared.made_once("small_dictionaries", shared.finished_copy)).train()


def assert_same(found, whole):
    jax.tree.map(np.testing.assert_array_equal, dict(found), dict(whole))


# By default, test_resume.py and tests/test_faults.py test this for the training of a model.
OF_BOTH = pytest.mark.parametrize(
    "kind", [pytest.param("model", marks=pytest.mark.slow), "dictionaries"], indirect=True
)


@OF_BOTH
def test_a_signal_saves_and_the_same_call_resumes(case, whole, monkeypatch):
    with stopped_after(monkeypatch, case.module, 2):
        case.train()
    assert finished_steps(case.folder / "resume")
    assert_same(case.train(), whole)


@pytest.mark.slow
@OF_BOTH
def test_a_damaged_newest_state_falls_back_to_the_one_before(case, whole, monkeypatch, capfd):
    for _ in range(2):
        with stopped_after(monkeypatch, case.module, 1):
            case.train()
    *_, before, newest = finished_steps(case.folder / "resume")
    assert before < newest
    [data] = (case.folder / "resume" / str(newest) / "default" / "d").iterdir()
    data.write_bytes(data.read_bytes()[:100])
    capfd.readouterr()
    found = case.train()
    said = [line for line in capfd.readouterr().err.splitlines() if "implicit_reasoning:" in line]
    assert len(said) == 1 and said[0].endswith("; trying the previous state")
    assert f"resume/{newest} cannot be read" in said[0]
    assert_same(found, whole)


def test_without_a_readable_state_it_says_how_to_begin_again(case, monkeypatch):
    with stopped_after(monkeypatch, case.module, 1):
        case.train()
    for step in finished_steps(case.folder / "resume"):
        (case.folder / "resume" / str(step) / "default" / "manifest.ocdbt").write_bytes(b"")
    with pytest.raises(InputError, match=r"no state in .*resume can be read; remove this folder"):
        case.train()


def test_a_second_process_is_refused_and_writes_nothing(case):
    with (
        exclusive_lock(case.folder, "not here"),
        pytest.raises(InputError, match=r"another process is training.* in .*; wait for it, or"),
    ):
        case.train()
    assert {path.name for path in case.folder.iterdir()} == {".lock"}


@pytest.mark.slow
@OF_BOTH
def test_a_full_disk_is_an_oserror_and_with_room_training_goes_on(kind, case, whole):
    size = {"model": 15_000, "dictionaries": 3_000}[kind]  # less than a saved state needs
    with small_files(size), pytest.raises(OSError, match="File too large"):
        case.train()
    assert_same(case.train(), whole)
