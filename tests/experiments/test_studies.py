"""Every study runs its smallest case, or draws the figures of its saved results."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from implicit_reasoning.errors import InputError
from implicit_reasoning.runs import load_arrays
from tests.experiments.scripts import FILES, load, run

STUDIES = {path.stem: path for path in FILES if path.parent.name == "experiments"}
RESULTS = Path("results")


def files(folder):
    """Return the names of all written, non-empty files."""
    return {path.name for path in Path(folder).rglob("*") if path.is_file() and path.stat().st_size}


def test_grokking_of_a_run_that_is_there(smoke_run, tmp_path, blank_figures):
    """The runs are where the script kept them before there was a table of runs."""
    shutil.copytree(smoke_run.files.workdir, tmp_path / "seed_0")
    out = run(STUDIES["grokking"], tmp_path)["out"]
    assert files(out) == {"summary.json", "config.json", "curves.csv", "seeds.png", "accuracy.png"}
    summary = json.loads((Path(out) / "summary.json").read_text())
    assert [one["final_step"] for one in summary] == [60]


def test_worlds(smoke_run, tmp_path):
    """The run exists already; test_runs.py tests a run that is trained."""
    shutil.copytree(smoke_run.files.workdir, tmp_path / "smoke" / "composition_w0_i0")
    out = run(STUDIES["worlds"], tmp_path)["out"]
    assert files(out) == {"composition_0.json", "accuracy.png", "first_correct.png", "table.md"}
    assert "| composition | test_ii |" in (Path(out) / "table.md").read_text()
    with pytest.raises(InputError, match="was measured with another configuration"):
        run(STUDIES["worlds"], tmp_path, scale="pocket")


def test_ladder_rules(tmp_path):
    out = Path(run(STUDIES["ladder_rules"], tmp_path)["out"])
    assert files(out) == {"rules.json", "table.md"}
    found = json.loads((out / "raw" / "rules.json").read_text())["scales"]["pocket"]["worlds"]
    climbing = [found[1]["accuracy"]["row_completion"][f"test_c{rung}"] for rung in range(3)]
    assert climbing == sorted(climbing) and climbing[0] < 0.2 < 0.7 < climbing[1]
    assert "## pocket: 100/20/10, phi 5, 30 facts a rung" in (out / "table.md").read_text()


@pytest.mark.slow
def test_launchers(tmp_path):
    out = run(STUDIES["launchers"], tmp_path)["out"]
    found = json.loads((Path(out) / "found.json").read_text())["complete"]
    assert found["vmap"]["states"] == ["done"] and found["vmap"]["trials"] == 2


@pytest.mark.slow
def test_phi_and_weight_decay_draws_what_is_kept(tmp_path):
    shutil.copy(RESULTS / "phi_and_weight_decay" / "two_cores.nc", tmp_path / "times.nc")
    run(STUDIES["phi_and_weight_decay_figures"], tmp_path, out=tmp_path)
    assert files(tmp_path) == {"times.nc", "table.md", "times.png", "survival.png"}
    table = (tmp_path / "table.md").read_text()
    assert "| weight decay | phi 7 | 0.1: 4 of 4 (6.2)" in table
    # With weight decay 1, no run reaches train_ii .99 by step 2,000.
    kept = xr.load_dataset(tmp_path / "times.nc").sel(phi=7, weight_decay=1, init=0)
    first = {name: (kept[name] >= 0.5).argmax("step") for name in ("train_ii", "test_ii")}
    steps = {name: kept["step"].values[places.values] for name, places in first.items()}
    lag = np.median(steps["test_ii"] - steps["train_ii"])
    assert f"| 7 | 1 | - (0 of 4) | {lag:,.0f} (4 of 4) | - (0 of 4) |" in table


@pytest.mark.slow
@pytest.mark.parametrize(
    ("study", "kept", "written"),
    [
        ("composition_phases", "composition_phases/desk", {"accuracy.png", "used.png", "table.md"}),
        ("feature_birth", "feature_birth", {"births.png", "lasting.png", "use.png", "table.md"}),
    ],
)
def test_draws_what_is_kept_and_trains_nothing(study, kept, written, tmp_path, blank_figures):
    shutil.copy(RESULTS / kept / "composition.nc", tmp_path)
    run(STUDIES[study], tmp_path, out=tmp_path)
    assert files(tmp_path) >= written
    if study == "feature_birth":  # one arm of the saved table
        table = (tmp_path / "table.md").read_text().splitlines()
        assert set(table) <= set((RESULTS / kept / "table.md").read_text().splitlines())


@pytest.mark.slow
def test_transcoders_vs_saes_draws_what_is_kept(smoke_run, tmp_path, blank_figures):
    for path in (RESULTS / "transcoders_vs_saes").glob("*.nc"):
        shutil.copy(path, tmp_path)
    run(STUDIES["transcoders_vs_saes"], tmp_path, run=smoke_run.files.workdir, out=tmp_path)
    table = (tmp_path / "table.md").read_text()
    assert table == (RESULTS / "transcoders_vs_saes" / "table.md").read_text()


@pytest.mark.slow
def test_grokking_trains(tmp_path):
    assert "seeds.png" in files(run(STUDIES["grokking"], tmp_path, seeds=2)["out"])


@pytest.mark.slow
@pytest.mark.parametrize("study", ["composition_phases", "feature_birth", "components", "editing"])
def test_trains_and_measures(study, tmp_path):
    out = Path(run(STUDIES[study], tmp_path)["out"])
    assert xr.load_datatree(out / "composition.nc").sizes["run"] == 1
    assert files(out) & {"table.md", "answers.md"}


@pytest.mark.slow
def test_phi_and_weight_decay_trains(tmp_path):
    out = run(STUDIES["phi_and_weight_decay"], tmp_path)["out"]
    assert files(out) == {"times.nc", "table.md", "times.png", "survival.png"}


@pytest.mark.slow
def test_transcoders_vs_saes_trains(smoke_run, tmp_path):
    out = Path(run(STUDIES["transcoders_vs_saes"], tmp_path, run=smoke_run.files.workdir)["out"])
    kept = load_arrays(out / "transcoder.nc")
    assert kept.attrs["n_trained"] > 0 and json.loads(kept.attrs["about"])["width"] == 8
    assert "table.md" in files(out)


@pytest.mark.slow
def test_launchers_have_the_same_losses(tmp_path):
    words = {"parts": "first", "first_on": "local,vmap", "workers": 1, "first": 20}
    out = run(STUDIES["launchers"], tmp_path, **words)["out"]
    found = json.loads((Path(out) / "found.json").read_text())["first"]
    assert found["vmap"]["largest_relative_difference"] < 1e-4


@pytest.mark.slow
def test_studies_train_in_processes_of_their_own(tmp_path):
    out = run(STUDIES["worlds"], tmp_path, jobs=1)["out"]
    assert "composition_0.json" in files(out)


def test_a_command_that_fails_in_this_process_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="train ended with 2"):
        load("apart").run_apart({"one": lambda command: command(["train"])}, 0, tmp_path)


def test_processes_of_a_study_find_the_modules_of_its_instruments(tmp_path, monkeypatch):
    """An instrument is loaded by its path, and can import other modules of `experiments/`."""
    apart = load("apart")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    apart._run([sys.executable, "-c", "import arms"], tmp_path, [])
