"""The table of runs: which runs a study names, which exist, and that none is trained twice."""

import json
import re
import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from implicit_reasoning.config import parse_flags, to_json
from implicit_reasoning.errors import InputError
from tests.experiments.scripts import FILES, load

arms, runs = load("arms"), load("runs")
STUDIES = {path.stem: path for path in FILES if path.parent.name == "experiments"}
NOT_IN_WORLDS = {"cue_conflict", "ladder", "greater_than", "indirect_object"}  # in other studies
NOT_IN_STUDIES = {"successor"}  # an example for instruments
OF_SWEEPS = {"phi_and_weight_decay", "launchers", "scaling", "early_supervision"}
OF_A_GPU = {"gpu"}
ONE = runs.StudyRun("composition", "smoke", 0, 0)


class Stop(Exception):
    """Raised when a study would begin to train."""


@pytest.fixture
def commands(monkeypatch):
    """Return a list of every command that a study runs in this process."""
    apart, seen = load("apart"), []
    command_line = apart.command_line

    def noting(words):
        seen.append(words[0])
        return command_line(words)

    monkeypatch.setattr(apart, "command_line", noting)
    return seen


def place(run, folder):
    """Return a copy of a finished run."""
    return Path(shutil.copytree(run.files.workdir, folder))


def stop_early(folder):
    """Remove what a run that was stopped after step 40 would not have."""
    shutil.rmtree(folder / "checkpoints" / "60")
    shutil.rmtree(folder / "resume" / "60")


def test_no_two_runs_of_the_table_are_one_run():
    table = runs.all_runs()
    assert len({run.name for run in table}) == len(table)
    configs = {json.dumps(to_json(run.config()), sort_keys=True) for run in table}
    assert len(configs) == len(table)


def test_every_run_is_needed_and_every_study_has_runs():
    for run in runs.all_runs():
        assert run.studies and all(run in runs.needed(study) for study in run.studies)
    assert {run.arm for run in runs.all_runs()} == arms.ARMS.keys()
    trains = re.compile(r"\b(run_apart|run_sweep|run_arms|restore|train)\(")
    scripts = {name for name, path in STUDIES.items() if trains.search(path.read_text())}
    assert scripts - {"apart", "archive", "runs"} == arms.STUDIES.keys() | OF_SWEEPS | OF_A_GPU


def test_worlds_has_every_configuration():
    stems = {path.stem for path in Path("configs").glob("*.py")}
    used = {run.arm for run in runs.needed("worlds", "pocket")}
    assert used == stems - NOT_IN_WORLDS - NOT_IN_STUDIES | {"ood_ratio_50", "ood_ratio_70"}
    assert {arm.file for arm in arms.ARMS.values()} == stems - NOT_IN_STUDIES


@pytest.mark.parametrize(
    ("study", "scale"), [(study, n.scale) for study, needs in arms.STUDIES.items() for n in needs]
)
def test_a_study_trains_what_the_table_says(study, scale, tmp_path, monkeypatch):
    named = []

    def run_apart(jobs, *_):
        named.extend(jobs)
        raise Stop

    for module in ("runs", "archive", "worlds"):
        monkeypatch.setattr(load(module), "run_apart", run_apart)
    monkeypatch.setattr(load("transcoders_vs_saes").runs.restore, "__defaults__", (tmp_path, 2))
    words = [f"--out={tmp_path / 'out'}"]
    if study != "transcoders_vs_saes":
        words += [f"--scale={scale}", f"--runs={tmp_path}"]
    with pytest.raises(Stop):
        load(study).main(words)
    assert named == [run.name for run in runs.needed(study, scale)]


def test_a_study_may_name_other_seeds():
    archive = load("archive")
    flags, _ = parse_flags(["--worlds=2", "--scale=desk"], archive.FLAGS)
    assert archive.seeds("composition_phases", flags) == [(0, 0), (1, 0)]
    assert archive.seeds("composition_phases", flags | {"worlds": None}) is None
    assert (
        runs.chosen("grokking", "paper", seeds=arms.paired(1))[0].name == "paper/composition_w0_i0"
    )
    with pytest.raises(InputError, match="there is no arm 'compositoin'; there are composition, "):
        runs.chosen("worlds", "pocket", ["compositoin"])
    with pytest.raises(InputError, match="there is no study 'worldz'; there are grokking, "):
        runs.all_runs(["worldz"])


def test_missing_then_stopped_then_finished(smoke_run, tmp_path, commands):
    assert str(runs.state_of(ONE, tmp_path)) == "missing"
    folder = place(smoke_run, tmp_path / ONE.name)
    assert str(runs.state_of(ONE, tmp_path)) == "finished"
    stop_early(folder)
    state = runs.state_of(ONE, tmp_path)
    assert (str(state), state.seconds_left) == ("stopped at step 40", pytest.approx(10 / 3))
    (folder / "config.json").unlink()
    assert str(runs.state_of(ONE, tmp_path)) == "missing"
    assert not commands


def test_a_run_that_is_continued_is_trained_first_and_once(smoke_run, tmp_path):
    """Two jobs train it at the same time: one for its study, and one for the run that continues."""
    taught, before = (runs.StudyRun(arm, "smoke", 0, 0) for arm in ("ladder_taught", "ladder"))
    begun, trained = threading.Barrier(2, timeout=60), []

    def command(words):
        [folder] = [Path(word.partition("=")[2]) for word in words if "--workdir=" in word]
        run = taught if "taught" in folder.name else before
        assert run is before or str(runs.state_of(before, tmp_path)) == "finished"
        trained.append(folder.name)
        time.sleep(0.2)  # the other job looks for the run meanwhile
        place(smoke_run, folder)
        (folder / "config.json").write_text(json.dumps(to_json(run.config(tmp_path))))

    def job(run):
        state = runs.state_of(run, tmp_path)
        begun.wait()
        return runs.train_missing(state, command)

    with ThreadPoolExecutor(2) as pool:
        opened = list(pool.map(job, (before, taught)))
    assert trained == ["ladder_w0_i0", "ladder_taught_w0_i0"]
    assert [run.files.workdir.name for run in opened] == trained


@pytest.mark.slow
def test_a_run_is_trained_once_and_read_by_every_study(smoke_run, tmp_path, commands):
    """A stopped run is resumed. The study, or another study later, has nothing left to train."""
    stop_early(place(smoke_run, tmp_path / ONE.name))
    [run] = runs.restore([ONE], tmp_path, jobs=0)
    assert commands == ["train"]
    assert run.metrics[-1]["loss"] == pytest.approx(smoke_run.metrics[-1]["loss"], rel=1e-5)
    words = ["--scale=smoke", "--seeds=1", "--only=composition", "--jobs=0", f"--runs={tmp_path}"]
    load("worlds").main([*words, f"--out={tmp_path / 'worlds'}"])
    load("runs").main(["--smoke", "--study=grokking", "--jobs=0", f"--runs={tmp_path}"])
    assert commands == ["train"]


def test_another_run_in_the_folder_is_refused_before_anything_is_trained(
    smoke_run, tmp_path, commands
):
    other = runs.StudyRun("tied", "smoke", 0, 0)
    place(smoke_run, tmp_path / other.name)
    said = (
        r"w0_i0 contains a run with a different configuration "
        r"\(model.tied was False, is True\); .*--runs"
    )
    with pytest.raises(InputError, match=said):
        runs.restore([ONE, other], tmp_path, jobs=0)
    words = ["--scale=smoke", "--seeds=1", "--jobs=0", f"--runs={tmp_path}"]
    words.append("--only=composition,tied")
    with pytest.raises(InputError, match=said):
        load("worlds").main([*words, f"--out={tmp_path / 'out'}"])
    assert not commands


def test_runs_of_before_the_table_are_found(smoke_run, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "ROOT", tmp_path / "studies")
    earlier = ["composition_phases/smoke/composition_w0_i0", "worlds/smoke/composition_0"]
    earlier += ["smoke", "smoke/seed_0", "studies/smoke/composition_0"]
    for name in earlier:
        folder = place(smoke_run, tmp_path / name)
        state = runs.state_of(ONE, runs.ROOT)
        assert state.finished and state.folder == folder
        shutil.rmtree(folder)
    place(smoke_run, tmp_path / "worlds" / "smoke" / "tied_0")  # a run with another configuration
    tied = runs.state_of(runs.StudyRun("tied", "smoke", 0, 0), runs.ROOT)
    assert str(tied) == "missing" and tied.folder == runs.ROOT / "smoke" / "tied_w0_i0"


def test_what_is_left_is_listed_with_the_time_to_expect(smoke_run, tmp_path, capsys, commands):
    place(smoke_run, tmp_path / ONE.name)
    words = ["--smoke", f"--runs={tmp_path}"]
    load("runs").main([*words, "--study=composition_phases", "--dry"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:-1]] == [
        [f"smoke/{arm}_w0_i0", "missing"] for arm in ("shadow", "scrambled", "tied")
    ]
    last = "4 runs: 1 finished, 0 stopped, 3 missing; 15 s to expect with 2 at a time"
    assert lines[-1] == last
    load("runs").main([*words, "--study=composition_phases", "--list", "--jobs=8"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and "finished" in lines[0] and "; 10 s to expect" in lines[-1]
    assert not commands
    [line] = runs.table([runs.state_of(runs.needed("feature_birth")[0], tmp_path)])
    assert line == (
        "pocket/composition_w0_i0  missing  5 min on a core of an AMD EPYC  "
        "grokking, worlds, composition_phases, feature_birth, attribution_graphs, "
        "circuit_formation, components, editing"
    )
    with pytest.raises(InputError, match="take no overrides"):
        load("runs").main(["--config.steps=3"])


def test_times_are_those_of_the_results():
    """The time of an arm is that of its fastest run, and results have the configurations of the
    table.
    """
    found = {}
    for path in Path("results/worlds").glob("*/raw/*.json"):
        arm, _, seed = path.stem.rpartition("_")
        run = runs.StudyRun(arm, path.parts[2], int(seed), int(seed))
        kept = json.loads(path.read_text())
        assert run in runs.needed("worlds")
        assert not load("worlds").differences(kept["config"], run.config())
        assert arms.ARMS[arm].took[run.scale][1] == f"a core of an {kept['starts'][-1]['cpu']}"
        found.setdefault((arm, run.scale), []).append(kept["minutes"])
    assert len(found) == 19
    for (arm, scale), minutes in found.items():
        assert arms.ARMS[arm].took[scale][0] == pytest.approx(min(minutes), abs=0.1)


def test_make_restores_the_runs():
    said = subprocess.run(
        ["make", "-n", "--no-print-directory", "studies-runs", "RUNS_ARGS=--study=grokking --dry"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    command = said.splitlines()[-1].split()
    assert command[:2] == [".venv/bin/python", "experiments/runs.py"]
    assert parse_flags(command[2:], runs.FLAGS)[0]["study"] == ("grokking",)
