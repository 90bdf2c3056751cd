"""A file of a newer format is refused, and a field that is added later does not change older files.

The files are those of an earlier version (README.md), which have no format version.
"""

import dataclasses
import json
import shutil
import struct
import zipfile

import h5py
import numpy as np
import pytest
import xarray as xr
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from implicit_reasoning.analysis.behaviour import Behaviour
from implicit_reasoning.analysis.storage import differences, identity_of
from implicit_reasoning.config import changed_keys, from_json
from implicit_reasoning.dictionaries import fields as dictionary_fields
from implicit_reasoning.dictionaries import load
from implicit_reasoning.dictionaries.store import Files
from implicit_reasoning.dictionaries.train import _check_same as check_same_dictionaries
from implicit_reasoning.errors import InputError
from implicit_reasoning.field import Field
from implicit_reasoning.files import read_json, write_json
from implicit_reasoning.model import Spec
from implicit_reasoning.model import fields as model_fields
from implicit_reasoning.model.exchange import load_weights, save_weights
from implicit_reasoning.runs import (
    Layout,
    Run,
    completed,
    default_config,
    fields,
    load_arrays,
    read_config,
    save_arrays,
    write_config,
)
from implicit_reasoning.sweeps import Sweep, SweepLayout
from implicit_reasoning.sweeps.directory import begin
from implicit_reasoning.sweeps.directory import load as load_sweep
from implicit_reasoning.training.directory import check_same
from tests.compatibility.unpacked import unpack
from tests.dictionaries.small import config as small
from tests.training.tiny import early, tiny


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Return the old files, for tests that do not change them."""
    return unpack(tmp_path_factory.mktemp("old"))


@pytest.fixture
def old(shared, tmp_path):
    return shutil.copytree(shared, tmp_path / "old")


def as_format(path, version):
    write_json(path, read_json(path) | {"format_version": version})


def test_a_newer_configuration_is_refused(old):
    as_format(old / "run" / "config.json", 2)
    with pytest.raises(InputError, match=r"config\.json has the format version 2, .* up to 1"):
        Run(old / "run")
    with pytest.raises(InputError, match="has the format version 2"):
        check_same(Layout(old / "run"), early())


@pytest.mark.parametrize("version", ["1", 0, 1.5, None, True])
def test_what_is_no_format_is_refused(old, version):
    as_format(old / "run" / "config.json", version)
    with pytest.raises(InputError, match="must be a positive integer"):
        Run(old / "run")


def test_a_newer_sweep_is_refused(old):
    as_format(old / "sweep" / "sweep.json", 2)
    with pytest.raises(InputError, match=r"sweep\.json has the format version 2, "):
        load_sweep(SweepLayout(old / "sweep"))


def test_a_newer_result_is_refused(old):
    path = old / "run" / "analysis" / "lens.nc"
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = 2
    with pytest.raises(InputError, match=r"lens\.nc has the format version 2, "):
        Run(old / "run").result("lens")


@pytest.mark.parametrize("name", ["config.json", "members.json"])
def test_newer_dictionaries_are_refused(old, name):
    run = Run(old / "run")
    as_format(Files.of(run, "topk").folder / name, 2)
    with pytest.raises(InputError, match=rf"{name} has the format version 2, "):
        load(run, "topk")


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_newer_weights_are_refused(old, ending):
    path = old / "weights" / f"model.{ending}"
    if ending == "npz":
        comment = b"implicit_reasoning_format=2"
        path.write_bytes(path.read_bytes()[:-2] + struct.pack("<H", len(comment)) + comment)
    else:
        save_file(load_file(path), path, {"implicit_reasoning_format": "2"})
    with pytest.raises(InputError, match=rf"model\.{ending} has the format version 2, "):
        load_weights(path)


def test_what_is_written_states_its_format(old, tmp_path):
    run = Run(old / "run")
    write_config(tmp_path / "config.json", run.config)
    assert read_json(tmp_path / "config.json")["format_version"] == 1
    assert read_config(tmp_path / "config.json") == run.config  # it is not a field

    sweep = begin(SweepLayout(tmp_path / "sweep"), load_sweep(SweepLayout(old / "sweep")))
    assert read_json(tmp_path / "sweep" / "sweep.json")["format_version"] == 1
    assert load_sweep(SweepLayout(tmp_path / "sweep")) == sweep

    result = run.result("behaviour")
    save_arrays(tmp_path / "behaviour.nc", result)
    with xr.open_dataset(tmp_path / "behaviour.nc", engine="h5netcdf") as raw:
        assert raw.attrs["format_version"] == 1
    again = load_arrays(tmp_path / "behaviour.nc")
    assert again.attrs == result.attrs  # it is not an attribute of the result
    xr.testing.assert_identical(again, result)

    model, params = load_weights(old / "weights" / "model.npz")
    save_weights(tmp_path / "model.npz", model, params)
    with zipfile.ZipFile(tmp_path / "model.npz") as archive:
        assert archive.comment == b"implicit_reasoning_format=1"
        assert archive.testzip() is None
    with np.load(tmp_path / "model.npz") as arrays:  # other programs read the file like this
        assert "embed.W_E" in arrays and "implicit_reasoning_format" not in arrays
    save_weights(tmp_path / "model.safetensors", model, params)
    with safe_open(tmp_path / "model.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt", "implicit_reasoning_format": "1"}
    for ending in ("npz", "safetensors"):
        assert load_weights(tmp_path / f"model.{ending}")[0].spec == model.spec


# Fields that are added later ---------------------------------------------------------------------

LATER = Field(float, "a field of the future", 0.5, 0, 1, before=0.0)


@pytest.fixture
def later(monkeypatch):
    """Add a field to each table; runs from before it are read with the value 0."""
    monkeypatch.setitem(fields.FIELDS, "optimizer.later", LATER)
    monkeypatch.setitem(dictionary_fields.FIELDS, "training.later", LATER)


def with_later(config, key, value):
    group, _, name = key.partition(".")
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config[group][name] = value
    return config.lock()


def test_the_defaults_of_today_are_those_of_the_old_files(shared):
    """A changed default defines another experiment, so an old run would not be resumed."""
    check_same(Layout(shared / "run"), early())
    sweep = load_sweep(SweepLayout(shared / "sweep"))
    assert changed_keys(sweep.base, early(resume_every=10)) == []
    kept = dictionary_fields.read_config(Files.of(Run(shared / "run"), "topk").config)
    wanted = small(name="topk", steps=(0, 25))
    assert changed_keys(kept, wanted) == []


def test_an_old_run_gets_the_value_that_reproduces_it_and_a_new_one_the_default(shared, later):
    assert Run(shared / "run").config.optimizer.later == 0.0
    assert default_config().optimizer.later == 0.5
    assert completed(tiny()) == tiny()  # existing values are kept


def test_an_old_run_goes_on_with_a_field_that_was_added(shared, later):
    files = Layout(shared / "run")
    without = from_json(read_json(files.config))
    check_same(files, without)
    check_same(files, with_later(without, "optimizer.later", 0.0))
    with pytest.raises(InputError, match=r"optimizer\.later was 0\.0, is 0\.5"):
        check_same(files, early())


def test_an_old_sweep_goes_on_with_a_field_that_was_added(old, later):
    files = SweepLayout(old / "sweep")
    sweep = load_sweep(files)
    assert sweep.base.optimizer.later == 0.0
    begin(files, sweep)
    with pytest.raises(InputError, match=r"seed=0 .* \(optimizer\.later was 0\.0, is 0\.5\)"):
        begin(files, Sweep(with_later(sweep.base, "optimizer.later", 0.5), sweep.trials))


def test_old_dictionaries_go_on_with_a_field_that_was_added(shared, later):
    files = Files.of(Run(shared / "run"), "relu")
    config = dictionary_fields.read_config(files.config)
    assert config.training.later == 0.0
    check_same_dictionaries(files, config)
    with pytest.raises(
        InputError, match=r"training\.later is 0\.0 in the folder and 0\.5 in config"
    ):
        check_same_dictionaries(files, with_later(config, "training.later", 0.5))


@pytest.mark.parametrize("name", ["unembed_bias", "head_width", "precision"])
def test_a_result_from_before_an_attribute_of_the_model_is_the_same_result(
    shared, name, monkeypatch
):
    run = Run(shared / "run")
    attrs = run.result("behaviour").attrs
    kept = {**attrs, "model": {k: v for k, v in attrs["model"].items() if k != name}}
    assert differences(kept, identity_of(Behaviour(), run)) == {}
    other = dataclasses.replace(model_fields.FIELDS[name], before="other")
    monkeypatch.setitem(model_fields.FIELDS, name, other)
    assert differences(kept, identity_of(Behaviour(), run)).keys() == {"model"}


def test_the_wording_of_a_definition_identifies_nothing(shared, monkeypatch):
    run = Run(shared / "run")
    attrs = run.result("behaviour").attrs
    monkeypatch.setattr(Behaviour, "definition", "The same in other words.")
    assert differences(attrs, identity_of(Behaviour(), run)) == {}
    monkeypatch.setattr(Behaviour, "version", Behaviour.version + 1)
    assert differences(attrs, identity_of(Behaviour(), run)).keys() == {"version"}


@pytest.mark.parametrize("what", ["world", "model", "seed", "intervals", "options", "instrument"])
def test_what_identifies_a_result(shared, what):
    run = Run(shared / "run")
    attrs = run.result("behaviour").attrs
    now = identity_of(Behaviour(), run)
    assert differences(attrs, now | {what: "another"}).keys() == {what}


def test_a_spec_takes_the_defaults_of_files_from_before():
    sizes = {"d_vocab": 5, "n_ctx": 3, "n_layers": 1, "d_model": 4, "n_heads": 2, "d_mlp": 8}
    assert Spec(**sizes) == Spec(**Spec.completed(sizes))
    assert json.loads(json.dumps(dataclasses.asdict(Spec(**sizes)))) == {
        **Spec.completed(sizes),
        "n_loops": 1,
    }
