"""Instruments are found by name and run over checkpoints; results are kept, merged and drawn."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from implicit_reasoning.__main__ import main
from implicit_reasoning.analysis import (
    NotApplicable,
    analyze,
    analyze_all,
    analyze_runs,
    api,
    find_instrument,
)
from implicit_reasoning.analysis import runner as runner_module
from implicit_reasoning.analysis.patching.cross_query_patching import CrossQueryPatching
from implicit_reasoning.analysis.patching.parameters import ParameterPatching
from implicit_reasoning.analysis.reading.lens import LogitLens
from implicit_reasoning.analysis.variables.das import Alignment
from implicit_reasoning.errors import InputError
from implicit_reasoning.report.collect import collect
from implicit_reasoning.runs import Run
from implicit_reasoning.training import train
from tests.training.tiny import tiny

OWN = """
import jax.numpy as jnp
import numpy as np
from implicit_reasoning.analysis import Examples, Instrument
from implicit_reasoning.figures import Figure, new_drawing

class Norms(Instrument):
    name, definition = "norms", "Norm of the logits at each position."
    outputs = {"norm": ("pos", "example")}

    def examples(self, model, dataset):
        rows = dataset.probes("train_ii")[:8]
        return Examples(dataset.tokens[rows], ("train_ii",), np.zeros(len(rows), int), rows)

    def measure(self, model, params, inputs, key):
        return {"norm": jnp.linalg.norm(model.forward(params, inputs)[0], axis=-1).T}

    def figures(self, result):
        drawing, (ax,) = new_drawing()
        ax.plot(result.step, result.norm.sel(pos="r2", group="train_ii"))
        return [Figure("norms", "Norms", "Over steps.", drawing)]
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train(tiny(steps=20, checkpoints__every=10), tmp_path_factory.mktemp("run") / "run")


@pytest.fixture
def run(trained, tmp_path):
    return Run(shutil.copytree(trained.files.workdir, tmp_path / "run"))


def test_what_is_there_is_not_measured_again(run, monkeypatch):
    measured = []

    def measure(instrument, subject, steps, **options):
        measured.append(steps)
        return runner_module.measure(instrument, subject, steps, **options)

    monkeypatch.setattr("implicit_reasoning.analysis.seeds.measure", measure)
    analyze(run, "lens", steps=[20, 0], progress=False)
    by_parts = analyze(run, "lens", progress=False)
    assert measured == [(20, 0), tuple(s for s in run.steps if s not in (0, 20))]
    assert by_parts.step.values.tolist() == list(run.steps)
    again = analyze(run, LogitLens(), progress=False)
    xr.testing.assert_identical(again, by_parts)
    assert len(measured) == 2
    at_once = analyze(run, "lens", again=True, progress=False)
    assert measured[2] == run.steps
    xr.testing.assert_allclose(at_once, by_parts, rtol=1e-5)
    assert at_once.attrs["definition"] == LogitLens.definition


def of_default(monkeypatch, *instruments):
    monkeypatch.setattr(
        "implicit_reasoning.analysis.api.default_instruments", lambda: list(instruments)
    )


@pytest.mark.slow
def test_the_command_measures_with_all_instruments(run, capsys):
    assert main(["analyze", f"--workdir={run.files.workdir}", "--steps=0,10"]) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [path.stem for path in written] == [one.name for one in api.default_instruments()]
    assert len(collect(run)) >= len(written)
    for path in written:
        assert run.result(path.stem).step.values.tolist() == [0, 10]


def test_the_command_and_the_report(run, capsys, monkeypatch):
    of_default(monkeypatch, LogitLens(), OfPosition("r1"))  # both have one program
    workdir = f"--workdir={run.files.workdir}"
    assert main(["analyze", workdir, "--instruments=lens", "--steps=last"]) == 0
    assert capsys.readouterr().out.strip().endswith("analysis/lens.nc")
    assert run.result("lens").step.values.tolist() == [20]
    assert main(["analyze", workdir, "--steps=0,10"]) == 0
    assert run.result("lens").step.values.tolist() == [0, 10, 20]
    assert run.result("of_position").step.values.tolist() == [0, 10]
    assert main(["analyze", workdir, "--steps=soon"]) == 2
    assert "--steps is 'soon'; it must be all, last, or" in capsys.readouterr().err
    assert main(["analyze", workdir, "--steps=7"]) == 2
    assert "no checkpoint of step 7; choose from the steps 0" in capsys.readouterr().err


@pytest.mark.slow
def test_several_runs_each_keep_their_own_result(trained, run, tmp_path, capsys):
    other = Run(shutil.copytree(trained.files.workdir, tmp_path / "other"))
    alone = analyze(run, "lens", steps=[10], progress=False)
    found = analyze_runs([run, other], "lens", steps=[10, 20], progress=False)
    assert [result.step.values.tolist() for result in found] == [[10, 20]] * 2
    xr.testing.assert_allclose(found[1].sel(step=[10]), alone, rtol=1e-5)
    xr.testing.assert_identical(other.result("lens"), found[1])
    both = f"--workdir={run.files.workdir},{other.files.workdir}"
    assert main(["analyze", both, "--instruments=lens", "--steps=all"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert other.result("lens").step.values.tolist() == list(run.steps)


def test_an_instrument_of_ones_own_from_a_file(run, tmp_path):
    (tmp_path / "norms.py").write_text(OWN)
    where = f"{tmp_path}/norms.py:Norms"
    result = analyze(run, where, progress=False)
    assert result.attrs["found_at"] == where
    assert result.norm.dims == ("step", "group", "pos") and result.n_states.item() == 8
    assert "norms" in [figure.name for figure in collect(run)]
    (tmp_path / "norms.py").unlink()  # the report does not need the file
    assert "norms" not in [figure.name for figure in collect(run)]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lnes", "unknown instrument 'lnes'; did you mean 'lens'"),
        ("nowhere.at_all:Lens", "there is no instrument 'nowhere.at_all'"),
        (
            "implicit_reasoning.analysis.reading.lens:NORMS",
            "defines no subclass of Instrument named",
        ),
    ],
)
def test_what_cannot_be_found_is_said(name, said):
    with pytest.raises(InputError, match=said):
        find_instrument(name)


def test_an_instrument_that_is_not_for_the_task_is_passed_over_unless_named(run):
    class OfSums(Run):
        @property
        def dataset(self):
            truth = {name: run.dataset.truth[name] for name in ("answer", "position")}
            return dataclasses.replace(run.dataset, truth=truth)

    other = OfSums(run.files.workdir)
    assert "lens" not in analyze_all(other, progress=False)
    with pytest.raises(NotApplicable, match="needs a task with chains"):
        analyze_all(other, ["lens"], progress=False)


def test_what_comes_after_an_instrument_that_is_passed_over_is_measured(run, monkeypatch):
    class WithoutTrainingChains(Run):
        @property
        def dataset(self):
            data = run.dataset
            trained = np.arange(len(data.probe)) < data.n_train
            chains = trained & (data.truth["fact2"] >= 0)
            return dataclasses.replace(data, probe=data.probe & ~chains)

    of_default(monkeypatch, CrossQueryPatching(), LogitLens())
    other = WithoutTrainingChains(run.files.workdir)
    assert analyze_all(other, steps=[20], progress=False) == ["lens"]
    with pytest.raises(
        NotApplicable, match="cross_query_patching and pairs 'bridge' need probe rows"
    ):
        analyze(other, "cross_query_patching", progress=False)


class OfPosition(LogitLens):
    """An instrument with an option, whose program is already compiled."""

    name = "of_position"

    def __init__(self, *positions):
        self.positions = positions

    def options(self):
        return {"positions": self.positions}


def test_options_of_ones_own_are_not_mixed(run):
    """Two sets of options share one file, and a mismatch is refused unless `again` is set."""
    one = analyze(run, OfPosition("r1"), steps=[20], progress=False)
    assert one.attrs["options"] == {"positions": ["r1"]}
    xr.testing.assert_identical(analyze(run, OfPosition("r1"), steps=[20], progress=False), one)
    other = OfPosition("r1", "r2")
    with pytest.raises(InputError, match=r"saved result for 'of_position' has options .*--again"):
        analyze(run, other, steps=[20], progress=False)
    again = analyze(run, other, steps=[20], again=True, progress=False)
    assert again.attrs["options"] == {"positions": ["r1", "r2"]}


@pytest.mark.slow
def test_das_of_another_variable_is_another_result(run):
    short = {"rank": 2, "steps": 1}
    e2 = analyze(run, Alignment("e2", ["r1"], **short), steps=[20], progress=False)
    assert e2.attrs["options"] == {"variable": "e2", "positions": ["r1"], **short}
    xr.testing.assert_identical(
        analyze(run, Alignment("e2", ("r1",), **short), steps=[20], progress=False), e2
    )
    other = Alignment("r1", ["r1"], **short)
    with pytest.raises(InputError, match=r"saved result for 'das' has options .*--again"):
        analyze(run, other, steps=[20], progress=False)
    r1 = analyze(run, other, steps=[20], again=True, progress=False)
    assert r1["variable"].values.tolist() == ["r1"]


@pytest.mark.slow
def test_numbers_against_the_last_checkpoint_are_measured_anew_once_there_is_another(run, capsys):
    class Before(Run):
        steps = (0, 10)  # the steps of the run before training continued

    before = Before(run.files.workdir)
    old = analyze(before, "parameter_patching", steps=[10], progress=False)
    assert old.attrs["reference"] == 10
    assert analyze_all(run, ["parameter_patching", "lens"], steps=[20]) == [
        "parameter_patching",
        "lens",
    ]
    said = "parameter_patching were compared with step 10, but the last step is now 20"
    assert said in capsys.readouterr().err
    new = run.result("parameter_patching")
    assert new.attrs["reference"] == 20
    assert new.step.values.tolist() == [10, 20]  # the saved step is measured again
    direct = runner_module.measure(ParameterPatching(), run, [10, 20], progress=False)
    xr.testing.assert_allclose(new, direct)
