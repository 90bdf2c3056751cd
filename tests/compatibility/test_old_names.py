"""Files and command lines with old names are understood.

One line on standard error gives the new name. The files are those of an earlier version
(README.md).
"""

import importlib
import shutil
import sys
from typing import Any

import numpy as np
import pytest
import xarray as xr
from ml_collections import ConfigDict

from implicit_reasoning import renames
from implicit_reasoning.analysis import analyze, api, find_instrument, storage, used, with_pairs
from implicit_reasoning.analysis.claims import CLAIM_KINDS, OLD_KINDS, Claim, claim_from_json
from implicit_reasoning.analysis.figures import figures
from implicit_reasoning.analysis.patching.activation_patching import ActivationPatching
from implicit_reasoning.analysis.patching.pair_patching import PairPatching
from implicit_reasoning.config import apply_overrides, flatten, from_json, load_config
from implicit_reasoning.config.renamed import FIELDS, with_current_fields
from implicit_reasoning.dictionaries import (
    activations,
    defaults,
    fields,
    load,
    resolved,
    train_dictionaries,
)
from implicit_reasoning.dictionaries.store import Files
from implicit_reasoning.files import read_json
from implicit_reasoning.grokked_transformer import published
from implicit_reasoning.runs import Run, find_result, load_arrays, result_names, save_arrays
from implicit_reasoning.runs.results import INSTRUMENTS, LABELS, OUTPUTS, with_current_names
from implicit_reasoning.worlds import find_task
from tests.compatibility.unpacked import unpack
from tests.dictionaries.small import DEFAULTS, SMALL, config


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Return the old files, for tests that do not change them."""
    return unpack(tmp_path_factory.mktemp("old"))


@pytest.fixture
def old(shared, tmp_path):
    return shutil.copytree(shared, tmp_path / "old")


@pytest.fixture(autouse=True)
def nothing_noted():
    renames.note.cache_clear()


def test_an_old_name_of_an_instrument_is_understood_and_said_once(capsys):
    for old, new in INSTRUMENTS.items():
        assert find_instrument(old).name == find_instrument(old).name == new
        said = capsys.readouterr().err.splitlines()
        assert said == [f"implicit_reasoning: instrument {old!r} is now called {new!r}"]
    (made,) = with_pairs(["patching"], pairs="exchange_r1")
    assert isinstance(made, PairPatching)
    find_instrument("lens")
    assert capsys.readouterr().err == ""


def test_a_claim_of_an_old_kind_is_read_as_the_present_one(capsys):
    kept = {"kind": "composes", "variable": "e2", "unit": Claim("grounded", "e2").unit.to_json()}
    assert claim_from_json(kept) == claim_from_json(kept) == Claim("grounded", "e2")
    said = capsys.readouterr().err.splitlines()
    assert said == ["implicit_reasoning: kind of claim 'composes' is now called 'grounded'"]
    assert set(OLD_KINDS.values()) <= set(CLAIM_KINDS) and not set(OLD_KINDS) & set(CLAIM_KINDS)


def test_a_result_under_an_old_name_opens_under_the_new_one(shared, capsys):
    run = Run(shared / "run")
    result = run.result("activation_patching")
    assert result.attrs["instrument"] == "activation_patching"
    assert {"fraction", "fraction_low", "fraction_n", "null_fraction"} <= result.keys()
    assert not [name for name in result if "share" in name]
    said = capsys.readouterr().err
    assert "instrument 'corruption' is now called 'activation_patching'" in said
    assert "output of activation_patching 'share' is now called 'fraction'" in said
    xr.testing.assert_identical(run.result("corruption"), result)
    assert result_names(run.files.analysis) == ["activation_patching", "behaviour", "lens"]
    assert "fraction" in run.result("behaviour")


def test_new_steps_are_merged_into_a_result_under_an_old_name(old, monkeypatch):
    run = Run(old / "run")
    path = run.files.analysis / "corruption.nc"
    # Only the names differ from a measurement by this version of the instrument. A few outputs are
    # enough, because opening a variable of a file takes some milliseconds.
    before = load_arrays(path).assign_attrs(version=ActivationPatching.version)
    before = before[[name for name in before if "share" in name and "part" not in name]]
    save_arrays(path, before)
    monkeypatch.setattr(api, "measure_seeds", None)
    found = analyze(run, "corruption", steps=(0, 25), progress=False)  # no step is missing
    new, wanted = run.files.analysis / "activation_patching.nc", ActivationPatching()
    storage.save_merged(
        new, found.isel(step=[0]).assign_coords(step=[16]), storage.identity_of(wanted, run)
    )
    merged = run.result("activation_patching")
    assert merged.step.values.tolist() == [0, 16, 25]
    for name, was in before.data_vars.items():
        now = merged[OUTPUTS["activation_patching"].get(name, name)]
        now = now.sel(step=[0, 25]) if "step" in was.dims else now
        np.testing.assert_array_equal(now.values, was.values, err_msg=name)
    assert load_arrays(new).attrs["instrument"] == "activation_patching"
    assert find_result(path) == new
    assert load_arrays(path).step.values.tolist() == [0, 25]  # the file is unchanged


@pytest.mark.slow
def test_results_under_old_names_have_figures(shared):
    drawn = {figure.name for figure in figures(Run(shared / "run"))}
    assert {"activation_patching", "behaviour"} <= drawn


def test_what_is_measured_again_takes_the_place_of_an_old_name(old):
    run = Run(old / "run")
    new, wanted = run.files.analysis / "activation_patching.nc", ActivationPatching()
    found = run.result("activation_patching").isel(step=[0])
    stale = storage.version_of_file(new)
    assert stale is not None
    storage.save_merged(new, found, storage.identity_of(wanted, run), stale=stale)
    assert run.result("corruption").step.values.tolist() == [0]


@pytest.mark.parametrize("instrument", LABELS)
def test_labels_and_nulls_have_their_new_names(instrument, capsys):
    for coord, labels in LABELS[instrument].items():
        values = {"x": (coord, np.arange(float(len(labels))))}
        nulls = {"one": {coord: next(iter(labels))}}
        result = xr.Dataset(values, {coord: list(labels)})
        found = with_current_names(result.assign_attrs(instrument=instrument, nulls=nulls))
        assert found[coord].values.tolist() == list(labels.values())
        assert found.attrs["nulls"] == {"one": {coord: next(iter(labels.values()))}}
        assert f"is now called {next(iter(labels.values()))!r}" in capsys.readouterr().err


def test_an_instrument_of_the_users_may_have_an_old_name(old):
    run = Run(old / "run")
    own = xr.Dataset({"share": 1.0}).assign_attrs(instrument="swap", found_at="mine.py:Swap")
    run.save_result("swap", own)
    xr.testing.assert_identical(run.result("swap"), own)
    assert "swap" in result_names(run.files.analysis)
    assert find_result(run.files.analysis / "mean_swap.nc").stem == "mean_swap"
    used.save_table(run)  # there is no result of mean_swap
    assert not (run.files.analysis / "used.nc").exists()


def test_old_names_of_fields_are_read_and_overridden(capsys):
    now = config(activation_fn="relu", sparsities=(0.1,), training__b2=0.99)
    was = {new: old for old, new in FIELDS.items() if new in fields.FIELDS}
    assert {"kind", "variant", "training.warm_up", "training.beta1"} < set(was.values())
    old = ConfigDict()
    for key, value in flatten(now).items():
        *groups, name = was.get(key, key).split(".")
        group = old
        for one in groups:
            if one not in group:
                group[one] = ConfigDict()
            group = group[one]
        group[name] = value
    read = fields.with_current_names(old.lock())
    assert read == now and read.is_locked
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"implicit_reasoning: field {name!r} is now called {FIELDS[name]!r}"
        for name in sorted(was.values(), key=[line.split("'")[1] for line in said].index)
    ]
    # Overrides as on a command line, or in a user's file that changes the defaults.
    overrides = SMALL | {"variant": "relu", "sparsities": (0.1,), "training.beta2": 0.99}
    assert apply_overrides(load_config(DEFAULTS), overrides) == now
    mine = defaults.get_config()
    mine.variant = "gated"
    assert fields.with_current_names(mine).activation_fn == "gated"
    assert with_current_fields(now, fields.FIELDS) is now


def test_dictionaries_of_old_names_open_and_go_on(old, capsys):
    run = Run(old / "run")
    kept = read_json(Files.of(run, "topk").config)
    assert {"kind", "variant"} < kept.keys() and "activation_fn" not in kept
    made = load(run, "topk")
    assert (made.config.architecture, made.config.activation_fn) == ("autoencoder", "topk")
    assert "field 'variant' is now called 'activation_fn'" in capsys.readouterr().err
    kept.pop("format_version", None)
    assert len(train_dictionaries(run, from_json(kept))) == len(
        made
    )  # the set is finished and is opened


def test_a_users_activation_function_may_have_old_names(capsys):
    sys.modules.pop("implicit_reasoning.dictionaries.variants", None)
    variants: Any = importlib.import_module("implicit_reasoning.dictionaries.variants")
    assert "is now called 'implicit_reasoning.dictionaries.activations'" in capsys.readouterr().err
    assert variants.Variant is activations.ActivationFn
    assert variants.VARIANTS is activations.ACTIVATIONS

    class Own(variants.ReLU):
        name, knob, architecture = "own", "l0", "jumprelu"

    assert (Own.sparsity_kind, Own.saelens_architecture) == ("l0", "jumprelu")
    assert "attribute of Own 'knob' is now called 'sparsity_kind'" in capsys.readouterr().err


def test_a_task_of_an_old_module_is_found(capsys):
    assert find_task("implicit_reasoning.grokked:published") is published
    assert "is now called 'implicit_reasoning.grokked_transformer'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("sweeps", "at_random", "random_search"),
        ("sweeps.grids", "at_random", "random_search"),
        ("sweeps.launchers.base", "Work", "LaunchRequest"),
        ("sweeps.launchers.base", "Board", "ProgressReporter"),
        ("model.blocks.base", "taker", "position_selector"),
        ("model.blocks.cells", "insert", "insert_suffix"),
        ("model.blocks.parameters", "within", "with_prefix"),
        ("analysis.claims", "ENOUGH", "MIN_CLUSTERS"),
        ("analysis.claims", "NEARLY_ALL", "MIN_LOWER_BOUND"),
    ],
)
def test_files_of_users_may_import_old_names(module, old, new, capsys):
    found: Any = importlib.import_module(f"implicit_reasoning.{module}")
    assert getattr(found, old) is getattr(found, new)
    assert f"{old!r} is now called {new!r}" in capsys.readouterr().err
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = found.nothing


def test_a_field_under_its_old_name_is_filled_from_the_sparsities(tmp_path, capfd):
    path = tmp_path / "mine.py"
    path.write_text(
        "from dataclasses import dataclass\n"
        "from implicit_reasoning.dictionaries.activations import ReLU\n\n\n"
        "@dataclass(frozen=True)\nclass Mine(ReLU):\n    most: int = 0\n"
    )
    renames.note.cache_clear()
    made: Any = resolved._activation_fn(f"{path}:Mine", {}, (2.0, 5.0))
    assert made.most == 5 and "'most' is now called 'max_k'" in capfd.readouterr().err
