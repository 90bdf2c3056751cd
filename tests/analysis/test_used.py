"""Decodable or used: which cases the table includes, and which its figure leaves out."""

import numpy as np
import pytest
import xarray as xr

from implicit_reasoning.analysis import used
from implicit_reasoning.analysis.variables.mean_swap import CONDITIONS
from implicit_reasoning.runs import Layout, Run

PLACES = {"step": [0, 10], "group": ["train_ii", "test_ii"], "variable": ["e2"], "layer": [0, 1, 2]}
COORDS = PLACES | {"pos": ["e1", "r1"]}


def everywhere(value, **more):
    coords = more | COORDS
    return xr.DataArray(np.full([len(c) for c in coords.values()], value), coords)


@pytest.fixture
def results():
    """At step 10, e2 is decoded and followed at S[1, r1]; elsewhere no cases count."""
    follows = everywhere(0.0, edit=list(CONDITIONS))
    n = follows.copy()
    here = {"step": 10, "layer": 1, "pos": "r1"}
    n.loc[here] = 50
    follows.loc[here | {"edit": "class means"}] = 1.0
    stays = everywhere(1.0, edit=["variable", "shuffled", "random", "swapped"])
    stays.loc[here | {"edit": "variable"}] = 0.1
    swap = bounded(counterfactual=follows, unchanged=1 - follows) | {"counterfactual_n": n}
    erasure = bounded(unchanged=stays, decoded=everywhere(0.95))
    return {"mean_swap": xr.Dataset(swap), "erasure": xr.Dataset(erasure)}


def bounded(**arrays):
    """Add interval ends, a little below and above each array."""
    return {name + end: array + by for name, array in arrays.items() for end, by in ENDS.items()}


ENDS = {"": 0.0, "_low": -0.05, "_high": 0.05}
HERE = {"step": 10, "group": "test_ii", "variable": "e2", "layer": 1, "pos": "r1"}


def verdict(results):
    made = used.table(results)
    return made["verdict"].sel({name: HERE[name] for name in made["verdict"].dims}).item()


def test_each_intervention_can_change_the_verdict(results):
    """The swap decides whether a code is used, and the erasure whether it is replaceable."""

    def set_to(result, name, value, **more):
        for end, by in ENDS.items():
            results[result][name + end].loc[HERE | more] = value + by

    assert verdict(results) == "used"
    set_to("erasure", "unchanged", 1.0, edit="variable")
    assert verdict(results) == "used, replaceable"
    set_to("mean_swap", "counterfactual", 0.5, edit="third value")
    assert verdict(results) == "unclear"
    set_to("mean_swap", "counterfactual", 0.0)
    set_to("mean_swap", "unchanged", 1.0)
    assert verdict(results) == "decodable, not used"
    set_to("erasure", "unchanged", 0.5, edit="variable")
    assert verdict(results) == "unclear"
    set_to("erasure", "decoded", 0.1)
    set_to("erasure", "unchanged", 1.0, edit="variable")
    assert verdict(results) == "neither"


@pytest.mark.parametrize(
    ("result", "name", "end", "edit"),
    [
        ("mean_swap", "counterfactual", "_low", "class means"),
        ("mean_swap", "counterfactual", "_high", "third value"),
        ("erasure", "decoded", "_low", None),
    ],
)
def test_verdicts_go_by_the_ends_of_intervals(results, result, name, end, edit):
    """The means stay the same and only the width of the interval changes."""
    assert verdict(results) == "used"
    at = HERE | ({} if edit is None else {"edit": edit})
    results[result][name + end].loc[at] = {"_low": 0.75, "_high": 0.25}[end]
    assert verdict(results) == "unclear"


def test_unused_goes_by_ends_too(results):
    follows, stays = results["mean_swap"]["counterfactual"], results["mean_swap"]["unchanged"]
    follows.loc[HERE] = 0.0
    stays.loc[HERE] = 1.0
    for end in ("", "_low", "_high"):
        results["erasure"][f"unchanged{end}"].loc[HERE | {"edit": "variable"}] = 1.0
        results["mean_swap"][f"counterfactual{end}"].loc[HERE] = 0.05
        results["mean_swap"][f"unchanged{end}"].loc[HERE] = 0.95
    assert verdict(results) == "decodable, not used"
    for changed, at in (
        (results["mean_swap"]["counterfactual_high"], HERE | {"edit": "class means"}),
        (results["mean_swap"]["unchanged_low"], HERE | {"edit": "class means"}),
        (results["erasure"]["unchanged_low"], HERE | {"edit": "variable"}),
    ):
        before = changed.loc[at].item()
        changed.loc[at] = 0.5
        assert verdict(results) == "unclear"
        changed.loc[at] = before


def test_the_table_has_intervals_and_says_what_is_taught(results):
    taught = everywhere(False).isel(group=[0], pos=0, drop=True)
    taught.loc[{"layer": 2}] = True
    made = used.table(results | {"decoding": xr.Dataset({"by_construction": taught})})
    at = {"step": 10, "variable": "e2", "layer": 1, "pos": "r1"}
    np.testing.assert_allclose(
        [made[f"{name}_low"].sel(at) for name in ("decoded", "follows", "stays_erased")],
        [0.9, 0.95, 0.05],
    )
    there = made["by_construction"].sel(variable="e2").transpose("layer", "pos")
    np.testing.assert_array_equal(there, [[False, False], [False, False], [False, True]])


def test_the_verdict_is_where_something_counts(results):
    made = used.table(results)
    assert made.attrs["group"] == "test_ii"
    said = made["verdict"].where(made["verdict"] != "", drop=True)
    assert said.sizes == {"step": 1, "variable": 1, "layer": 1, "pos": 1} and said.item() == "used"


def test_of_a_memoriser_trained_chains_are_looked_at(results):
    results["mean_swap"]["counterfactual_n"].loc[{"group": "test_ii"}] = 3
    assert used.table(results).attrs["group"] == "train_ii"
    assert used.table(results, "test_ii").attrs["group"] == "test_ii"


def test_the_picture_has_only_places_of_which_something_is_said(results):
    (figure,) = used.figures(results)
    (ax,) = figure.drawing.axes
    ticks = [[t.get_text() for t in axis.get_ticklabels()] for axis in (ax.yaxis, ax.xaxis)]
    assert ticks == [["1"], ["r1"]] and ax.get_ylabel().startswith("step 10\n")
    results["mean_swap"]["counterfactual_n"][:] = 0
    assert used.figures(results) == []


class Kept(Run):
    """A run that has only results."""

    def __init__(self, folder, results):
        self.files, self.results = Layout(folder), results
        for name in results:
            self.files.analysis.mkdir(exist_ok=True)
            (self.files.analysis / f"{name}.nc").touch()

    def result(self, name):
        return self.results[name]


def test_the_table_is_kept_with_the_run(results, tmp_path):
    """The table is saved like other results, unless one of its two inputs is missing."""
    run = Kept(tmp_path, {"mean_swap": results["mean_swap"]})
    used.save_table(run)
    assert not (run.files.analysis / "used.nc").exists()
    run = Kept(tmp_path, results | {"knock_out": None})
    used.save_table(run)
    made = used.table(results)
    xr.testing.assert_identical(Run.result(run, "used"), made)
