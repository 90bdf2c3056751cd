"""The package's side of every benchmark, at its smallest size, in this process."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from implicit_reasoning.config import parse_flags
from implicit_reasoning.errors import InputError
from implicit_reasoning.runs import Run
from tests.experiments.scripts import FILES, load, run

BENCHMARKS = {path.stem: path for path in FILES if path.parent.name == "benchmarks"}
IN_PROCESS = ("step_profile", "patch_grid")
COMPILING = ("train_step", "cross_query", "dictionaries")  # left out of the default tests
BY_SIDE = {"train_step": "milliseconds", "cross_query": "seconds", "patch_grid": "seconds"}


@pytest.fixture(autouse=True)
def short_peak(monkeypatch):
    """Replace the measurement of peak FLOP/s, which takes time."""
    for name in ("implicit_reasoning.runtime.machine", load("train_step").__name__):
        monkeypatch.setattr(f"{name}.matmul_peak", lambda *_, **__: 1e9)


def result(out):
    """Return the written result and check that it names the kind of machine."""
    found = json.loads(Path(out).read_text())
    assert found["machine"]["kind"] == load("machines").kind()
    assert found["machine"]["peak_gflop_per_second"] == 1.0
    return found


@pytest.mark.parametrize(
    "name", [*IN_PROCESS, *(pytest.param(name, marks=pytest.mark.slow) for name in COMPILING)]
)
def test_runs(name, tmp_path):
    found = result(run(BENCHMARKS[name], tmp_path)["out"])
    if name in BY_SIDE:
        assert all(side["median"] > 0 for side in found[BY_SIDE[name]].values())
    if name == "step_profile":
        assert found["milliseconds_by_kind"]["products"] > 0
    if name == "dictionaries":
        assert 0 < found["smoke"]["reached"]["ours"]["l0"] <= 2


@pytest.mark.slow  # it compiles every program again, without a cache
def test_checkpoints_run_and_agree(tmp_path):
    try:
        found = result(run(BENCHMARKS["checkpoints"], tmp_path)["out"])
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    assert set(found["instruments"]["behaviour"]["times_as_fast"]) >= {"vmap", "one after another"}


def test_build_worlds_do_the_same_job(tmp_path, capsys):
    found = result(run(BENCHMARKS["build_worlds"], tmp_path)["out"])
    assert len(found["against_plain_loops"]["seconds"]["lean"]) == 1
    capsys.readouterr()
    load("build_worlds").main(
        ["--size=2000/200/20, all chains", "--config.task.n_entities=200", "--config.task.phi=1"]
    )
    assert json.loads(capsys.readouterr().out)["rows"] > 4000


@pytest.mark.parametrize("fault", [("train_ii", 1), ("test_oo", 99), ("ood_triples", -1)])
def test_build_worlds_notice_a_job_that_was_not_done(fault, tmp_path):
    script = load("build_worlds")
    task = script.load_config("configs/composition.py:paper_wang").task
    sizes = {"id_triples": 38_000, "ood_triples": 2_000, "train_ii": 273_600, "test_ii": 3_000}
    sizes |= {"test_oo": 2_000}
    script.check_job(task, sizes)
    name, more = fault
    with pytest.raises(AssertionError):
        script.check_job(task, {**sizes, name: sizes[name] + 4 * more})


@pytest.mark.slow
def test_startup_times_a_first_step(capsys):
    load("startup").main(["--once", "--config=experiments/smoke.py"])
    assert json.loads(capsys.readouterr().out)["first step"] > 0


@pytest.mark.slow
def test_default_set_measures_in_parts(smoke_run, monkeypatch, tmp_path, capsys):
    script = load("default_set")
    # The script wraps this function to count seconds; it is restored after the test.
    from implicit_reasoning.analysis import runner

    monkeypatch.setattr(runner, "aggregate", runner.aggregate)
    monkeypatch.setattr(runner.Runner, "__call__", runner.Runner.__call__)
    for name in ("params", "save_result"):
        monkeypatch.setattr(Run, name, getattr(Run, name))
    folder = tmp_path / "copy"
    assert script.copy_run(smoke_run.files.workdir, folder, 2) == [0, 60]
    script.main(["--once", f"--workdir={folder}", "--das=0", "--instruments=behaviour"])
    said = json.loads(capsys.readouterr().out)
    parts = said["instruments"]["behaviour"]
    assert parts["run"] > 0 and set(parts) == set(script.PARTS)


@pytest.mark.slow  # it compiles every program again, without a cache
def test_fact_edits_are_scored(smoke_run, tmp_path):
    workdir = smoke_run.files.workdir
    try:
        found = result(run(BENCHMARKS["fact_edits"], tmp_path, workdir=workdir)["out"])
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    for name, checkpoints in {"last checkpoint": 1, "checkpoints": 2}.items():
        job = found["jobs"][name]
        assert job["edits"] == 2 and len(job["steps"]) == checkpoints
        assert job["gflop_of_scores"] > 0
        scores = job["scores_at_last_step"].values()
        assert all((score["mean"] is None) == (score["n"] == 0) for score in scores)


def test_against_compares_commits_round_by_round(tmp_path, monkeypatch):
    """Times are 2 and 8, and 4 and 1 for the other commit: faster in one round, then slower."""
    script, seconds = load("against"), {"here": iter((2.0, 8.0)), "other": iter((4.0, 1.0))}

    def measure(case, folder, workdir):
        side = "here" if folder == script.HERE else "other"
        return {"a": next(seconds[side]), side: 1.0}

    monkeypatch.setattr(script, "_measure", measure)
    monkeypatch.setattr(script, "_commit", str)
    out = tmp_path / "against.json"
    words = [f"--other={tmp_path}", f"--out={out}", "--rounds=2"]
    script.main([*words, "--cases=train_step"])
    found = result(out)["times"]["train_step"]
    assert set(found) == {"a"}
    assert found["a"]["ratio"] == {"low": 0.5, "median": 4.25, "high": 8.0}
    assert found["a"]["other"]["high"] == 4.0 and not found["a"]["within_spread"]
    with pytest.raises(InputError, match="'training'; it must be one of train_step"):
        script.main([*words, "--cases=training"])


def test_against_starts_scripts_with_flags_that_they_have():
    for case in load("against").CASES.values():
        parse_flags(case.flags, load(case.script).FLAGS)


def test_populations_plan(tmp_path, capsys):
    script = load("populations")
    files = []
    for what in script.PLANNING:
        script.plan(str(tmp_path), 4, what, "experiments/smoke.py")
        files.append(json.loads(capsys.readouterr().out)["files"])
    assert files[0] == 2 < files[1]


@pytest.mark.slow
def test_population_worker_takes_steps_of_every_trial():
    trials = load("population_worker").Trials("experiments/smoke.py", "alone", 2)
    assert trials.steps(2) > 0 and trials.cost.step > 0


@pytest.mark.slow
def test_synthetic_dictionaries_are_trained_and_summed_up(tmp_path, monkeypatch):
    script = load("synth_sae_bench")
    monkeypatch.setattr(script, "BATCH", 16)
    samples = np.random.default_rng(0).standard_normal((32, 8), np.float32)
    assert script.train("topk", 0, samples, 2, tmp_path / "ours") > 0
    assert (tmp_path / "ours" / "cfg.json").exists()
    found = {name: dict.fromkeys(script.SAID, 1.0) for name in script.names(2)}
    found |= {"ours-topk-0": dict.fromkeys(script.SAID, 0.9)}
    summed = script.summary(found)
    assert summed["ours_over_theirs"]["topk"]["f1"] == pytest.approx(0.95)
    assert summed["reached"] == {"topk": False, "batch_topk": True}


@pytest.mark.slow
def test_accelerator_starts_scripts_with_flags_that_they_have(smoke_run, tmp_path, monkeypatch):
    script, started = load("accelerator"), []
    monkeypatch.setattr(script, "run", lambda path, *words: started.append((path, words)))
    monkeypatch.setattr(script, "train_for", lambda *_: None)
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "paper_wang").symlink_to(smoke_run.files.workdir.absolute())
    script.main([f"--runs={runs}", f"--out={tmp_path}", "--seeds=2"])
    for path, words in started:
        flags, overrides = parse_flags(words, load(path.stem).FLAGS)
        assert path.exists() and str(flags["out"]).startswith(str(tmp_path)) and not overrides
    found = json.loads((tmp_path / "paper_wang.json").read_text())
    assert found["ours"] == dict.fromkeys(script.PUBLISHED) and len(found["curve"]) > 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["startup", "populations"])
def test_runs_in_processes_of_its_own(name, tmp_path):
    found = json.loads(Path(run(BENCHMARKS[name], tmp_path)["out"]).read_text())
    wanted = {"startup": {"seconds", "machine"}, "populations": {"steps", "planning"}}
    assert found.keys() >= wanted[name]


@pytest.mark.slow
def test_against_runs_a_script_of_both_commits(tmp_path):
    found = result(run(BENCHMARKS["against"], tmp_path)["out"])
    assert found["commits"]["here"] == found["commits"]["other"]
    assert found["times"]["smoke"]["step"]["ratio"]["median"] > 0


@pytest.mark.slow
def test_default_set_runs_in_a_process_of_its_own(smoke_run, tmp_path):
    words = {"workdir": smoke_run.files.workdir}
    assert result(run(BENCHMARKS["default_set"], tmp_path, **words)["out"])["steps"] == [0, 60]


@pytest.mark.slow
def test_populations_start_launchers(tmp_path):
    out = tmp_path / "found.json"
    words = ["--parts=overhead", "--launchers=vmap, local", f"--out={out}"]
    load("populations").main(["--config=experiments/smoke.py", *words])
    found = json.loads(out.read_text())["overhead"]["launchers"]
    assert found.keys() == {"vmap", "local"}


# Kinds of machines: processors by their Linux names, and accelerators by their JAX names.
@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("AMD EPYC", "amd_epyc"),
        ("Intel(R) Xeon(R) Processor", "intel_xeon"),
        ("Intel(R) Xeon(R) Platinum 8488C CPU @ 2.40GHz", "intel_xeon_platinum_8488c"),
        ("AMD EPYC 9R14 96-Core Processor", "amd_epyc_9r14"),
        ("NVIDIA H100 80GB HBM3", "nvidia_h100_80gb_hbm3"),
        ("Apple M2 Pro", "apple_m2_pro"),
        ("../x y/", "x_y"),
        ("", ""),
    ],
)
def test_hardware_gives_a_folder_its_name(name, folder):
    assert load("machines").words(name) == folder


def test_results_of_two_kinds_of_machines_do_not_replace_each_other(tmp_path, monkeypatch):
    machines = load("machines")
    monkeypatch.chdir(tmp_path)
    kinds = ("amd_epyc_2_cores", "intel_xeon_2_cores")
    for number, kind in enumerate(kinds):
        monkeypatch.setattr(machines, "kind", lambda kind=kind: kind)
        machines.keep({"number": number}, None, "speed")
    found = [json.loads(Path(f"results/benchmarks/{k}/speed.json").read_text()) for k in kinds]
    assert [one["number"] for one in found] == [0, 1]
    assert [one["machine"]["kind"] for one in found] == list(kinds)


def test_kept_results_lie_with_the_machine_that_they_name():
    machines = load("machines")
    for path in Path("results/benchmarks").rglob("*.json"):
        text = path.read_text()
        key = "device" if path.parent.name.startswith("nvidia") else "cpu"
        made = set(re.findall(rf'"{key}": "([^"]*)"', text))
        assert {machines.words(name) for name in made} == {
            re.sub(r"_\d+_cores?$", "", path.parent.name)
        }, path


@pytest.mark.parametrize("flags", ["fpu avx2 avx512f", "fpu avx2", None])
def test_avx512_is_what_linux_says(flags, tmp_path, monkeypatch):
    machines = load("machines")
    file = tmp_path / "cpuinfo"
    if flags is not None:
        file.write_text(f"model name : x\nflags\t\t: {flags}\nbugs : none\n")
    monkeypatch.setattr(machines, "_CPUINFO", file)
    assert machines.avx512() == (None if flags is None else "avx512f" in flags)
