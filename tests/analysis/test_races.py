"""Processes that measure one run wait for each other; results that no longer fit are refused."""

import json
import shutil
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from implicit_reasoning.analysis import analyze, api
from implicit_reasoning.analysis.storage import merge
from implicit_reasoning.errors import InputError
from implicit_reasoning.runs import Checkpoints, Layout, Run, fingerprint
from implicit_reasoning.runtime.locks import wait_for_lock
from implicit_reasoning.training import directory
from implicit_reasoning.training.setup import make_model
from tests.analysis.subjects import DATASET
from tests.analysis.test_runner import Probabilities
from tests.training.tiny import tiny

STEPS = (0, 10, 20, 30)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """Return the folder of a run with untrained checkpoints."""
    files, config = Layout(tmp_path_factory.mktemp("races") / "run"), tiny()
    directory.begin(files, config, DATASET)
    save(files, STEPS)
    return files.workdir


@pytest.fixture
def run(untrained, tmp_path):
    """Return a copy of it, which a test may change."""
    return Run(shutil.copytree(untrained, tmp_path / "run"))


INIT = jax.jit(make_model(tiny().model.to_dict(), DATASET).init)


def save(files, steps, seed=0):
    store = Checkpoints(files.checkpoints)
    for step in steps:
        store.save(step, INIT(jax.random.key(seed + step)))
    store.close()


def probabilities(**changes):
    """Return the instrument with other attributes."""
    return type("Probabilities", (Probabilities,), changes)()


def meeting(monkeypatch, count):
    """Make `count` processes finish measuring before any of them saves its result."""
    met, measure = threading.Barrier(count, timeout=60), api.measure_seeds

    def measure_and_meet(*args, **named):
        found = measure(*args, **named)
        met.wait()
        return found

    monkeypatch.setattr(api, "measure_seeds", measure_and_meet)


def at_once(*calls):
    """Run the calls in threads and return the exception of each, or None."""
    raised = [None] * len(calls)

    def call(number):
        try:
            calls[number]()
        except Exception as error:
            raised[number] = error

    threads = [threading.Thread(target=call, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def measuring(run, steps, instrument=None, **named):
    own = Run(run.files.workdir)
    return lambda: analyze(own, instrument or Probabilities(), steps=steps, progress=False, **named)


@pytest.mark.parametrize(
    ("there", "again"),
    [
        ((30,), False),
        *(
            pytest.param(there, again, marks=pytest.mark.slow)
            for there, again in (((), False), ((), True), ((30,), True))
        ),
    ],
)
def test_no_step_is_lost(run, monkeypatch, there, again):
    if there:
        measuring(run, there)()
    alone = measuring(run, STEPS)() if not there and not again else None
    if alone is not None:
        (run.files.analysis / "probabilities.nc").unlink()
    meeting(monkeypatch, 3)
    assert at_once(*(measuring(run, [step], again=again) for step in (0, 10, 20))) == [None] * 3
    found = run.result("probabilities")
    assert found.step.values.tolist() == sorted({0, 10, 20} | (set() if again else set(there)))
    assert found.attrs["checkpoints"].keys() == {str(step) for step in found.step.values}
    if alone is not None:
        np.testing.assert_allclose(found.probability, alone.probability.sel(step=found.step))


def test_what_cannot_be_merged_is_said_and_the_other_result_stays(run, monkeypatch):
    meeting(monkeypatch, 2)
    other = probabilities(version=7)
    raised = at_once(measuring(run, [0]), measuring(run, [10], other))
    [error] = [error for error in raised if error is not None]
    assert isinstance(error, InputError)
    assert "another process has saved a result in" in str(error) and "whose version is" in str(
        error
    )
    kept = run.result("probabilities")
    assert (kept.attrs["version"], kept.step.values.tolist()) in [
        (Probabilities.version, [0]),
        (7, [10]),
    ]


OTHER_PROCESS = """
import sys
from implicit_reasoning.analysis import analyze, api
from implicit_reasoning.runs import Run
measure = api.measure_seeds
def measure_and_say(*args, **named):
    found = measure(*args, **named)
    print("measured", flush=True)
    return found
api.measure_seeds = measure_and_say
analyze(Run(sys.argv[1]), "tests.analysis.test_runner:Probabilities", steps=[20], progress=False)
"""


@pytest.mark.slow
def test_another_process_waits_until_a_result_is_written(run):
    """Another process must not read the saved result while we are about to write it."""
    measuring(run, [0])()
    new = api.measure_seeds(Probabilities(), [run], [10], progress=False)[0]
    with wait_for_lock(run.files.analysis):
        process = subprocess.Popen(
            [sys.executable, "-c", OTHER_PROCESS, str(run.files.workdir)],
            stdout=subprocess.PIPE,
            text=True,
        )
        there = run.result("probabilities")
        assert process.stdout.readline() == "measured\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        run.save_result("probabilities", merge(there, new))
    assert process.wait(60) == 0
    assert run.result("probabilities").step.values.tolist() == [0, 10, 20]


def test_a_result_notes_the_parameters_it_is_of(run):
    found = measuring(run, [0, 30])()
    [params] = [run.store.params(30)]
    assert found.attrs["checkpoints"]["30"] == fingerprint(params) == run.fingerprint(30)
    assert found.attrs["checkpoints"]["0"] != found.attrs["checkpoints"]["30"]
    json.dumps(found.attrs)


def test_a_result_of_other_parameters_is_refused(run):
    measuring(run, [0, 30])()
    for path in sorted((run.files.checkpoints / "30").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (run.files.checkpoints / "30").rmdir()
    save(run.files, [30], seed=5)
    with pytest.raises(InputError, match=r"the parameters of step 30 in .* have changed"):
        measuring(run, [10])()
    assert measuring(run, [10], again=True)().step.values.tolist() == [10]


def test_results_that_do_not_note_it_are_gone_on_with(run):
    found = measuring(run, [30])()
    del found.attrs["checkpoints"]
    run.save_result("probabilities", found)
    assert measuring(run, [0])().step.values.tolist() == [0, 30]


@pytest.mark.parametrize("change", ["value", "name", "shape", "type"])
def test_a_fingerprint_tells_trees_apart(change):
    tree = {"a": {"b": np.arange(6.0, dtype=np.float32)}, "c": np.ones(2)}
    other = {
        "value": {"a": {"b": np.nextafter(tree["a"]["b"], 9)}, "c": np.ones(2)},
        "name": {"a": {"d": tree["a"]["b"]}, "c": np.ones(2)},
        "shape": {"a": {"b": tree["a"]["b"].reshape(2, 3)}, "c": np.ones(2)},
        "type": {"a": {"b": tree["a"]["b"].view(np.int32)}, "c": np.ones(2)},
    }[change]
    assert fingerprint(tree) != fingerprint(other)
    assert fingerprint(tree) == fingerprint(
        jax.tree.map(jax.numpy.asarray, tree) | {"c": np.ones(2)}
    )
