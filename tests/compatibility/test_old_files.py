"""Files of an earlier version open, their training continues, and their results merge.

README.md describes the data and how it was made. Every test unpacks its own copy.

If processor, versions and XLA flags equal the recorded ones, numbers are compared bit for bit. On
all machines, losses and norms of all parameters agree to 1e-5 over 20 steps.
"""

import hashlib
import json
import os
import platform
from pathlib import Path

import jax
import numpy as np
import pytest

from implicit_reasoning.analysis import analyze
from implicit_reasoning.config import from_json
from implicit_reasoning.dictionaries import load, train_dictionaries
from implicit_reasoning.dictionaries.figures import figures
from implicit_reasoning.dictionaries.results import make_rows, open_measured
from implicit_reasoning.dictionaries.store import Files
from implicit_reasoning.errors import InputError
from implicit_reasoning.files import read_json
from implicit_reasoning.model.exchange import load_gpt2, load_weights
from implicit_reasoning.runs import Run, fingerprint, load_arrays, save_arrays
from implicit_reasoning.runs.fields import FIELDS
from implicit_reasoning.runtime.machine import provenance
from implicit_reasoning.sweeps import define, run_sweep
from implicit_reasoning.training import train
from tests.compatibility.unpacked import HERE, unpack
from tests.training.tiny import EARLY, early, saved_state

REFERENCES = json.loads((HERE / "reference.json").read_text())
# Key biases have no gradient, because softmax does not depend on them. Their norms of 1e-6 are
# rounding, which differs between processors. Norms of all other parameters are above 5e-3.
NO_GRADIENT = 1e-5
HALF = 40  # steps of 60 that the run had made
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
SAME = ("python", "numerics", "platform", "cpu", "device", "device_count", "cpu_cores")


@pytest.fixture
def old(tmp_path):
    return unpack(tmp_path)


def cpu_features():
    """Return a digest of the processor's instruction sets, for which XLA compiles."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    flags = next((line for line in lines if line.startswith("flags")), "")
    return hashlib.sha256(flags.encode()).hexdigest()


def reference():
    """Return `(numbers, whether they were recorded on this platform)`."""
    now = provenance()
    for one in REFERENCES:
        then = one["made_with"]
        alike = all(now[name] == then[name] for name in SAME)
        versions = all(now["versions"][name] == then["versions"][name] for name in PACKAGES)
        flags = os.environ.get("XLA_FLAGS", "") == one["xla_flags"]
        if alike and versions and flags and cpu_features() == one["cpu_features"]:
            return one, True
    return REFERENCES[0], False


def norms(params):
    return {
        jax.tree_util.keystr(path): float(np.linalg.norm(np.asarray(leaf, np.float64)))
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def state_digest(workdir):
    digest = hashlib.sha256()
    for name, leaf in sorted(saved_state(workdir).items()):
        digest.update(f"{name} {leaf.dtype} {leaf.shape}".encode() + leaf.tobytes())
    return digest.hexdigest()


def assert_as_recorded(run, wanted, exact):
    params = jax.tree.map(lambda leaf: leaf[0], run.params(run.steps[-1:]))
    losses = {str(row["step"]): row["loss"] for row in run.metrics if "loss" in row}
    assert losses.keys() == wanted["losses"].keys()
    assert max(map(int, losses)) == HALF + 20
    for step, loss in losses.items():
        assert loss == pytest.approx(wanted["losses"][step], rel=1e-5), f"loss at step {step}"
    assert norms(params) == {
        name: pytest.approx(norm, rel=1e-5, abs=NO_GRADIENT if "b_K" in name else 0)
        for name, norm in wanted["norms"].items()
    }
    if exact:
        assert losses == wanted["losses"]
        assert run.fingerprint(run.steps[-1]) == wanted["fingerprint"]


def test_a_run_opens_and_goes_on_to_the_same_parameters(old):
    run = Run(old / "run")
    assert run.steps == (0, 1, 2, 4, 8, 16, 25)
    assert run.metrics[-1]["step"] == HALF
    wanted, exact = reference()
    # Today's configuration still equals that of the run, and so does the run's own, read from its
    # file.
    train(early(), old / "run", stop_at=HALF + 1)
    assert_as_recorded(train(Run(old / "run").config, old / "run"), wanted["run"], exact)
    if exact:
        assert state_digest(old / "run") == wanted["run"]["state"]


def test_fields_that_a_run_is_older_than_reproduce_what_it_did(old):
    """Fields that were once optional get the old values, whatever the defaults are now."""
    path = old / "run" / "config.json"
    config = read_json(path)
    for key, field in FIELDS.items():
        *groups, name = key.split(".")
        group = config
        for part in groups:
            group = group.get(part, {})
        if not field.required:
            group.pop(name, None)
    config["model"]["precision"] = "default"  # the old value was "highest"
    path.write_text(json.dumps(config))
    wanted, exact = reference()
    run = train(early(), old / "run")
    assert_as_recorded(run, wanted["run"], exact)


def test_a_run_with_another_value_is_refused(old):
    with pytest.raises(InputError, match=r"optimizer\.eps was 1e-08, is 1e-07"):
        train(early(optimizer__eps=1e-7), old / "run")


@pytest.mark.parametrize("instrument", ["behaviour", "lens"])
def test_results_of_the_same_version_merge(old, instrument):
    run = Run(old / "run")
    before = run.result(instrument)
    assert before.step.values.tolist() == [0, 25]
    merged = analyze(run, instrument, steps=(0, 16, 25), progress=False)
    assert merged.step.values.tolist() == [0, 16, 25]
    # Existing values are unchanged and not measured again.
    for name, was in before.data_vars.items():
        now = merged[name].sel(step=[0, 25]) if "step" in was.dims else merged[name]
        np.testing.assert_array_equal(now.values, was.values, err_msg=name)


def test_a_result_with_many_dimensions_opens(old):
    result = Run(old / "run").result("activation_patching")
    assert {"step", "group"} < set(result.dims)


def test_results_measured_today_are_those_measured_then(old):
    run = Run(old / "run")
    before = run.result("lens")
    again = analyze(run, "lens", steps=(0, 25), again=True, progress=False)
    for name, was in before.data_vars.items():
        if was.dtype.kind == "f":
            np.testing.assert_allclose(again[name].values, was.values, atol=1e-5, err_msg=name)


def test_a_result_of_an_older_version_opens_and_is_not_merged_with(old):
    run = Run(old / "run")
    path = run.files.analysis / "lens.nc"
    result = load_arrays(path)
    version = result.attrs["version"]
    save_arrays(path, result.assign_attrs(version=version - 1))
    assert run.result("lens").step.values.tolist() == [0, 25]
    with pytest.raises(
        InputError, match=f"version.*{version - 1}, .*{version}.*--again"
    ) as refusal:
        analyze(run, "lens", steps=(16,), progress=False)
    assert "\n" not in str(refusal.value)


def test_a_sweep_opens_and_goes_on_to_the_same_parameters(old):
    wanted, exact = reference()
    statuses = run_sweep(define("tests/sweeps/small.py", "seeds", EARLY), old / "sweep")
    assert {trial: status.step for trial, status in statuses.items()} == {
        f"seed={seed}": HALF + 20 for seed in range(3)
    }
    for trial in statuses:
        run = Run(old / "sweep" / "trials" / trial)
        assert_as_recorded(run, wanted["sweep"][trial], exact)


def test_dictionaries_that_were_stopped_go_on_to_the_same_parameters(old):
    run = Run(old / "run")
    wanted, exact = reference()
    made = train_dictionaries(run, from_json(read_json(Files.of(run, "relu").config)))
    rows = [json.loads(line) for line in Files.of(run, "relu").metrics.read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 20, 30, 40]
    assert norms(made.params) == pytest.approx(wanted["dictionaries"]["norms"], rel=1e-5)
    if exact:
        assert old_fingerprint(made) == wanted["dictionaries"]["fingerprint"]


def test_finished_dictionaries_and_what_was_measured_of_them_open(old):
    run = Run(old / "run")
    made = load(run, "topk")
    assert old_fingerprint(made) == REFERENCES[0]["finished"]["fingerprint"]
    assert len(made) == 8 and {member.step for member in made.members} == {0, 25}
    result = open_measured(run, "topk")
    own = result.sel(member=(result["what"] == "trained").values)
    assert own["step"].values.tolist() == [member.step for member in made.members]
    assert np.isfinite(result["explained_variance"].values).all()
    assert len(make_rows(result)) >= 4 and figures(run)


def old_fingerprint(made):
    """Return the fingerprint from when `InferenceDictionary` was called `Finished`."""
    about = repr((made.dictionary, made.members))
    for new, old in {
        "saelens_architecture=": "architecture_=",
        "InferenceDictionary(architecture=": "Finished(kind=",
        "architecture_=": "architecture=",
        "max_k=": "most=",
    }.items():
        about = about.replace(new, old)
    return fingerprint({"params": made.params, "about": np.frombuffer(about.encode(), np.uint8)})


@pytest.mark.parametrize("file", ["model.npz", "model.safetensors", "gpt2"])
def test_weight_files_open(old, file):
    path = old / "weights" / file
    model, params = load_gpt2(path) if file == "gpt2" else load_weights(path)
    run = Run(old / "run")
    kept = jax.tree.map(lambda leaf: leaf[0], run.params(run.steps[-1:]))
    jax.tree.map(np.testing.assert_array_equal, params, kept)
    assert model.spec == run.model.spec
