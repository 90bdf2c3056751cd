"""Decodable or used: which cases the table is of, and what its picture leaves out."""

import numpy as np
import pytest
import xarray as xr

from implicit_reasoning.analysis import used

PLACES = {"step": [0, 10], "group": ["train_ii", "test_ii"], "variable": ["e2"], "layer": [0, 1, 2]}
COORDS = PLACES | {"pos": ["e1", "r1"]}


def everywhere(value, **more):
    coords = more | COORDS
    return xr.DataArray(np.full([len(c) for c in coords.values()], value), coords)


@pytest.fixture
def results():
    """At step 10, S[1, r1], e2 is decoded and followed; elsewhere nobody counts."""
    follows = everywhere(0.0, edit=["class means", "random"])
    n = follows.copy()
    here = {"step": 10, "layer": 1, "pos": "r1"}
    n.loc[here] = 50
    follows.loc[here | {"edit": "class means"}] = 1.0
    stays = everywhere(1.0, edit=["variable", "shuffled", "random"])
    stays.loc[here | {"edit": "variable"}] = 0.1
    swap = {"counterfactual": follows, "unchanged": 1 - follows, "counterfactual_n": n}
    erasure = {"unchanged": stays, "decoded": everywhere(0.95)}
    return {"swap": xr.Dataset(swap), "erasure": xr.Dataset(erasure)}


def test_the_verdict_is_where_something_counts(results):
    made = used.table(results)
    assert made.attrs["group"] == "test_ii"
    said = made["verdict"].where(made["verdict"] != "", drop=True)
    assert said.sizes == {"step": 1, "variable": 1, "layer": 1, "pos": 1} and said.item() == "used"


def test_of_a_memoriser_trained_chains_are_looked_at(results):
    results["swap"]["counterfactual_n"].loc[{"group": "test_ii"}] = 3
    assert used.table(results).attrs["group"] == "train_ii"
    assert used.table(results, "test_ii").attrs["group"] == "test_ii"


def test_the_picture_has_only_places_of_which_something_is_said(results):
    (figure,) = used.figures(results)
    (ax,) = figure.drawing.axes
    ticks = [[t.get_text() for t in axis.get_ticklabels()] for axis in (ax.yaxis, ax.xaxis)]
    assert ticks == [["1"], ["r1"]] and ax.get_ylabel().startswith("step 10\n")
    results["swap"]["counterfactual_n"][:] = 0
    assert used.figures(results) == []
