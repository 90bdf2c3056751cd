"""Results of other versions of an instrument are named, but are neither drawn nor tabulated."""

import pytest
import xarray as xr

from implicit_reasoning.analysis import used
from implicit_reasoning.analysis.figures import figures
from implicit_reasoning.analysis.variables.erasure import Erasure
from implicit_reasoning.analysis.variables.mean_swap import MeanSwap
from implicit_reasoning.figures import Figure, new_drawing
from implicit_reasoning.runs import Layout, Run


class Kept(Run):
    """A run that has only results."""

    def __init__(self, folder):
        self.files = Layout(folder)


@pytest.fixture
def run(tmp_path):
    """Return a run with a swap of version 1, whose edits had other names."""
    made = Kept(tmp_path)
    edits = xr.Dataset(
        {"counterfactual": ("edit", [0.5, 0.1])}, {"edit": ["class means", "random"]}
    )
    made.save_result("mean_swap", edits.assign_attrs(version=MeanSwap.version - 1))
    return made


def test_it_is_not_drawn_and_the_sentence_says_what_to_do(run, capsys):
    assert figures(run) == []
    said = capsys.readouterr().err
    assert "the result of mean_swap" in said and "has version 1, expected 2" in said
    assert "analyze --instruments=mean_swap --again=true" in said


def test_no_table_is_made_of_it(run, monkeypatch):
    monkeypatch.setattr(used, "table", lambda results: xr.Dataset())
    run.save_result("erasure", xr.Dataset().assign_attrs(version=Erasure.version))
    used.save_table(run)
    assert not (run.files.analysis / "used.nc").exists()
    run.save_result("mean_swap", xr.Dataset().assign_attrs(version=MeanSwap.version))
    used.save_table(run)
    assert (run.files.analysis / "used.nc").exists()


def test_a_current_one_is_drawn(run, monkeypatch):
    one = Figure("s", "Swap", "A caption.", new_drawing()[0])
    monkeypatch.setattr(MeanSwap, "figures", lambda self, result: [one])
    run.save_result("mean_swap", xr.Dataset().assign_attrs(version=MeanSwap.version))
    assert figures(run) == [one]


def test_results_of_another_kind_of_intervals_are_named_and_not_mixed(run, capsys):
    results = {name: xr.Dataset() for name in ("mean_swap", "probes", "lens")}
    for name in ("mean_swap", "lens"):
        results[name].attrs["intervals"] = 2
    assert set(used.with_same_intervals(results)) == {"mean_swap", "lens"}
    run.save_result("lens", xr.Dataset().assign_attrs(found_at=f"{__name__}:Nothing"))
    assert figures(run) == []
    assert "the result of lens" in (said := capsys.readouterr().err)
    assert "intervals of an earlier version" in said


class Nothing(MeanSwap):
    """An instrument without figures."""

    name, version = "lens", 1

    def figures(self, result):
        return []
