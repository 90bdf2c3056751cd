"""Labels and options that a result's file cannot hold are refused before anything is measured."""

import datetime

import numpy as np
import pytest
import xarray as xr

from implicit_reasoning.analysis import InMemory, Instrument, measure
from implicit_reasoning.analysis.instrument import Examples
from implicit_reasoning.analysis.labels import check_labels, plain
from implicit_reasoning.errors import InputError
from implicit_reasoning.runs import load_arrays, save_arrays
from tests.analysis.tiny_states import make_dataset, make_model


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([1, "a"], "different types, such as 1 and 'a'"),
        ([True, 2], "different types"),
        ([True, "a"], "different types"),
        ([None, 1], "include None, which is a NoneType"),
        (["a", None], "include None, which is a NoneType"),
        ([(1, 2), (3, 4)], r"include \(1, 2\), which is a tuple"),
        ([[1], [2]], r"include \[1\], which is a list"),
        ([b"a", b"b"], "a bytes"),
        ([datetime.date(2026, 11, 28)], "a date"),
        ([np.datetime64("2026-11-28")], "a datetime64"),
        ([1j], "a complex"),
        ([0.5, float("nan")], "include nan"),
        (["a\0b"], "that files cannot store"),
        (["a\0"], "that files cannot store"),
        (["\ud800"], "that files cannot store"),
        ([2**70], "numbers that no single number type can represent"),
        ([2**60 + 1, 0.5], "numbers that no single number type can represent"),
        ("abc", "are the string 'abc'"),
        (np.ones((2, 2)), "a ndarray"),
    ],
    ids=repr,
)
def test_labels_that_are_refused(labels, said):
    with pytest.raises(InputError, match=f"'mine': the labels of dimension 'variable' .*{said}"):
        check_labels("mine", {"variable": labels}, ["variable"], ("ii",))
    check_labels("mine", {"variable": labels, "layer": [1]}, ["layer"], ("ii",))  # not used
    with pytest.raises(InputError, match="dimension 'group'"):
        check_labels("mine", {}, [], labels)


@pytest.mark.parametrize(
    "labels",
    [
        ["e1", "r1", "", "é", "a "],
        [np.str_("a"), "b"],
        [1, 2.5, float("inf")],
        range(3),
        np.arange(3, dtype=np.int8),
        [np.float32(0.1), 1],
        [True, False],
        [np.bool_(True)],
        [2**63],
        ["a", "b", "a"],
        [],
    ],
    ids=repr,
)
def test_labels_that_are_accepted_come_back_equal(tmp_path, labels):
    check_labels("mine", {"variable": labels}, ["variable"], ("ii",))
    arrays = xr.Dataset(
        {"x": (("variable",), np.zeros(len(labels)))}, coords={"variable": list(labels)}
    )
    save_arrays(tmp_path / "x.nc", arrays)
    assert load_arrays(tmp_path / "x.nc").variable.values.tolist() == list(labels)


def test_a_dimension_that_every_result_has():
    with pytest.raises(InputError, match="declares the dimension 'step'"):
        check_labels("mine", {"step": [1, 2]}, ["step"], ("ii",))


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"rank": np.int64(4)}, {"rank": 4}),
        ({"scale": np.float32(0.5), "on": np.bool_(True)}, {"scale": 0.5, "on": True}),
        ({"widths": np.arange(3), "name": np.str_("a")}, {"widths": [0, 1, 2], "name": "a"}),
        ({"pair": (1, np.int8(2)), "most": float("inf")}, {"pair": [1, 2], "most": float("inf")}),
    ],
    ids=repr,
)
def test_options_with_numbers_of_numpy(options, wanted):
    assert plain(options, "options") == wanted
    assert all(type(v) in (int, float, bool, str, list) for v in plain(options, "options").values())


@pytest.mark.parametrize(
    "options",
    [
        {"some": {1, 2}},
        {"f": len},
        {"x": float("nan")},
        {"x": np.float64("nan")},
        {np.int64(1): 2},
        {"b": b"x"},
        {"when": np.datetime64("2026-11-28")},
    ],
    ids=repr,
)
def test_options_that_json_cannot_hold(options):
    with pytest.raises(InputError, match="but a part of this value cannot be saved"):
        plain(options, "options")


class Mine(Instrument):
    """An instrument that must not be measured."""

    name = "mine"
    definition = "Nothing."
    outputs = {"x": ("variable",)}
    labels = ["a", "b"]
    extra = {}

    def examples(self, model, dataset):
        return Examples({}, ("ii",), np.zeros(1, int), np.zeros(1, int))

    def coords(self, model, dataset):
        return {"variable": self.labels}

    def options(self):
        return self.extra

    def measure(self, model, params, inputs, key):
        raise AssertionError("it was measured")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"labels": [("e1", 0), ("r1", 1)]}, "labels of dimension 'variable'"),
        ({"extra": {"some": {1}}}, "options of instrument 'mine'"),
        ({"nulls": {"shuffled": {"variable": b"a"}}, "labels": [b"a", "b"]}, "a bytes|nulls"),
    ],
)
def test_nothing_is_measured_before_they_are_checked(fields, said):
    dataset = make_dataset()
    model = make_model(dataset)
    instrument = Mine()
    for name, value in fields.items():
        setattr(instrument, name, value)
    subject = InMemory(model, dataset, [{}])
    with pytest.raises(InputError, match=said):
        measure(instrument, subject, progress=False)
