"""What the study keeps of a run, and what its decision rules say, on results made by hand."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from implicit_reasoning.config import load_config
from implicit_reasoning.worlds import ROLES, build
from tests.experiments.scripts import load

study, tables = load("reasoning_or_shortcut"), load("reasoning_or_shortcut_tables")
accuracy, results = load("reasoning_or_shortcut_accuracy"), load("reasoning_or_shortcut_arms")
compared, figures = load("reasoning_or_shortcut_instruments"), load("reasoning_or_shortcut_figures")
archive = load("archive")
WORLDS = np.array([0, 1, 2, 3] * 2)
SPLITS = ("train_ii", "test_ii", "test_c0", "test_c1", "test_c2", "test_oi", "test_io")


@pytest.fixture(scope="module")
def dataset():
    return build(load_config("configs/ladder.py:pocket").task)


def test_counts_by_evidence_are_those_of_a_plain_loop(dataset):
    probes, truth = np.flatnonzero(dataset.probe), dataset.truth
    correct = np.random.default_rng(0).random(len(probes)) < 0.4
    found = study.by_evidence(dataset, correct)
    plain = {}
    for row, right in zip(probes, correct, strict=True):
        if row < dataset.n_train or truth["r2"][row] < 0 or ROLES[truth["role2"][row]] not in "IC":
            continue
        if dataset.splits[dataset.split[row]] == "test_private":
            continue
        role, evidence = ROLES[truth["role1"][row]], min(truth["evidence1"][row], 12)
        count = plain.setdefault((role, int(evidence)), [0, 0, 0])
        count[0] += 1
        count[1] += right
        count[2] += truth["row_completion_right"][row]
    assert {role for role, _ in plain} == {"I", "C", "O"}
    for (role, evidence), counts in plain.items():
        here = found.sel(role=role, evidence=evidence)
        assert [int(here[name]) for name in ("chains", "right", "rule_right")] == counts
    assert int(found["chains"].sum()) == sum(count[0] for count in plain.values())


def test_accuracies_by_fact(dataset):
    probes, truth = np.flatnonzero(dataset.probe), dataset.truth
    correct = truth["evidence1"][probes] > 0
    found = study.by_fact(dataset, correct).dropna("fact")
    cold = found.where(found["role"] == ROLES.index("C"), drop=True)
    assert sorted(np.unique(cold["accuracy"]).tolist()) == [0, 1]
    rungs = [len(np.unique(truth["fact1"][dataset.probes(f"test_c{rung}")])) for rung in range(3)]
    assert int((cold["accuracy"] == 0).sum()) == rungs[0]
    assert int((cold["accuracy"] == 1).sum()) == rungs[1] + rungs[2]


def arm(ends, memorised=None, grounded=1.0, worlds=WORLDS, times=None):
    """Return an arm with the given accuracies of all runs at the end and at train_ii .99."""
    memorised = memorised or ends
    noise = np.linspace(-0.01, 0.01, len(worlds))[:, None]
    rows = [np.array([part.get(split, 1.0) for split in SPLITS]) for part in (memorised, ends)]
    accuracy = np.stack([row[None] + noise for row in rows], axis=1)
    stages = xr.Dataset(
        {
            "accuracy": (("run", "stage", "split"), accuracy),
            "grounded": (("run", "stage"), np.full((len(worlds), 2), grounded)),
            "reached": (("run", "stage"), np.full((len(worlds), 2), 100.0)),
        },
        {"stage": ["memorised", "end"], "split": list(SPLITS)},
    )
    times = times or {}
    steps = np.arange(0, 1100, 100)
    curves = np.stack([(steps >= times.get(split, 500)) * 1.0 for split in SPLITS], axis=1)
    training = xr.Dataset(
        {"accuracy": (("run", "evaluation", "split"), np.repeat(curves[None], len(worlds), 0))},
        {"evaluation": steps, "split": list(SPLITS)},
    )
    inits = np.arange(len(worlds)) // 4
    return results.Arm({"stages": stages, "training": training}, worlds, inits)


FACT = dict.fromkeys(("test_ii", "test_c0", "test_c1", "test_c2", "test_oi"), 0.95)
EVIDENCE = {"test_ii": 0.9, "test_c2": 0.6, "test_c1": 0.4, "test_c0": 0.2, "test_oi": 0.2}


def last(lines):
    return [cell.strip() for cell in lines[-1].strip("|").split("|")]


def test_a_model_that_goes_by_the_fact_and_one_that_goes_by_evidence():
    assert last(tables.evidence({"a": arm(FACT)}))[-1] == "the fact"
    assert last(tables.evidence({"a": arm(EVIDENCE)}))[-1] == "the evidence"
    above = arm(EVIDENCE | {"test_c0": 0.5, "test_c1": 0.55})  # far from oi
    assert last(tables.evidence({"a": above}))[-1] == "open"
    assert last(tables.evidence({"a": arm(FACT, worlds=WORLDS[:4])}))[-1] == "too few runs (4)"


@pytest.mark.parametrize(("verdict", "said"), [(1.0, "yes"), (0.0, "no"), (np.nan, "open")])
def test_verdicts_of_runs_decide_an_arm(verdict, said):
    assert last(tables.verdicts({"a": arm(FACT, grounded=verdict)}))[-1] == said


def test_one_run_of_eight_may_differ():
    one = arm(FACT)
    one.parts["stages"]["grounded"][0] = 0
    assert last(tables.verdicts({"a": one}))[-1] == "yes"
    one.parts["stages"]["grounded"][1] = 0
    assert last(tables.verdicts({"a": one}))[-1] == "open"


def test_differences_are_paired_by_seeds():
    base = arm(EVIDENCE)
    higher = arm(EVIDENCE | {"test_c0": 0.8})
    shuffled = results.Arm(
        {name: part.isel(run=slice(None, None, -1)) for name, part in higher.parts.items()},
        higher.worlds[::-1],
        higher.inits[::-1],
    )
    cells = last(tables.compared({"ladder": base, "other": shuffled}))
    assert cells[0] == "other" and cells[4].startswith("0.60 [0.60, 0.60]") and "*" in cells[4]
    assert "*" not in cells[1]


def test_grounding_that_comes_within_twice_the_steps_comes_together():
    soon, late = ({"test_ii": 200, "test_c0": step} for step in (400, 500))
    assert last(tables.together({"a": arm(FACT, times=soon)}))[-2] == "yes"
    cells = last(tables.together({"a": arm(FACT, times=late)}))
    assert cells[-2] == "no" and float(cells[-1]) < 0.05


def test_phases_and_the_gap_of_the_second_hop():
    early = arm(FACT, memorised=FACT | {"test_ii": 0.3})
    assert last(tables.memorise_only({"a": early}))[-1] == "no"
    assert last(tables.memorise_only({"a": arm(FACT)}))[-1] == "yes"
    assert last(tables.second_hop({"a": arm(FACT | {"test_io": 0.02})}))[-1] == "yes"
    assert last(tables.second_hop({"a": arm(FACT | {"test_io": 0.93})}))[-1] == "no"


def with_claims(ends, claimed, verdict):
    """Return an arm whose answers follow the state as often as they are right."""
    one = arm(ends, grounded=verdict)
    stages = [compared.UNTRAINED, "memorised", "end"]
    share = np.stack([one.accuracy(rung, "end") for rung in results.RUNGS], 1)
    values = np.broadcast_to(share[:, None, :, None], (len(WORLDS), len(stages), 3, 4))
    swapped = values * [1, 0.02, 0.01, 0.01]
    dims = ("run", "stage", "group", "edit")
    controls = compared.NULLS["mean_swap"]["edit"]
    coords = {"stage": stages, "group": list(results.RUNGS), "edit": ["class means", *controls]}
    one.parts["mean_swap"] = xr.Dataset({"counterfactual": (dims, swapped)}, coords)
    claims = np.full((len(WORLDS), 1, 2, len(stages)), float(claimed))
    claims[..., 0] = 0
    dims = ("run", "instrument", "kind", "stage")
    coords = {"instrument": ["mean_swap"], "kind": ["grounded", "factors"], "stage": stages}
    one.parts["claims"] = xr.Dataset({"claimed": (dims, claims)}, coords)
    stages = one.parts["stages"]
    one.parts["stages"] = stages.assign(factors=stages["grounded"])
    return one


@pytest.fixture
def only_mean_swap(monkeypatch):
    monkeypatch.setattr(compared, "FOLLOWED", {"mean_swap": compared.FOLLOWED["mean_swap"]})


@pytest.mark.parametrize(
    ("claimed", "verdict", "wrong", "missed", "agrees"),
    [
        (1, 1.0, "0", "0", "yes"),
        (0, 0.0, "0", "0", "yes"),
        (1, 0.0, "8", "0", "no"),
        (0, 1.0, "0", "8", "no"),
        (1, np.nan, "0", "0", "yes"),
        (np.nan, 1.0, "0", "0", "too few runs (0)"),
    ],
)
def test_claims_are_compared_with_the_answers(
    only_mean_swap, claimed, verdict, wrong, missed, agrees
):
    one = with_claims(EVIDENCE, claimed, verdict)
    cells = last(compared.agreement({"a": one}))
    assert cells[:2] == ["mean_swap", "end"] and float(cells[2]) > 0.9
    assert cells[-3:] == [wrong, missed, agrees]
    words = {1.0: 3, 0.0: 5}.get(verdict, 4)
    expected = "-" if np.isnan(claimed) else f"{8 * claimed} of 8"
    assert last(compared.claims({"a": one}))[words] == expected
    assert "| untrained | - | - |" in "".join(compared.claims({"a": one})) or np.isnan(claimed)


def test_results_without_claims_are_read(only_mean_swap):
    one = with_claims(EVIDENCE, 1, 1.0)
    del one.parts["claims"]
    assert last(compared.agreement({"a": one}))[-1] == "too few runs (0)"
    assert last(compared.claims({"a": one}))[3:] == ["-"] * 6


def test_lags_are_between_equal_thresholds():
    one = arm(FACT, times={"train_ii": 200, "test_ii": 700})
    one.parts["training"]["accuracy"][0, :, 1] = 0.96  # this run never reaches .99
    cells = last(accuracy.lags({"a": one}))
    assert cells[1].startswith("0.95 ")
    assert cells[2] == "500 (-200 to 500; 8 of 8)" and cells[4] == "500 (500 to 500; 7 of 8)"


def test_a_shorter_run_ends_at_its_last_evaluation():
    one = arm(FACT, times={"test_c0": 10_000})
    one.parts["training"]["accuracy"][3, 6:] = np.nan
    times, reached = one.times("test_c0")
    assert not reached.any() and times.tolist() == [1000] * 3 + [500] + [1000] * 4
    assert (
        results.last_of(one.parts["training"]["accuracy"].sel(split="test_ii")).tolist() == [1] * 8
    )


def test_teaching_repairs_a_rung():
    steps = [0, 50, 100]
    found = np.full((8, len(steps), 5), 0.9)
    found[:, :2, 1] = 0.2
    found[0, 2, 1] = 0.7  # less than .8 times .9
    splits = ["test_ii", *results.RUNGS, "test_oi"]
    coords = {"step": steps, "split": splits}
    taught = xr.Dataset({"accuracy": (("run", "step", "split"), found)}, coords)
    lines = tables.taught({"a": results.Arm({"taught": taught}, WORLDS, WORLDS)})
    assert last(lines)[-2:] == ["7 of 8", "yes"] and last(lines[:-1])[-2:] == ["0 of 8", ""]


def run_of(world, version, steps, **more):
    """Return the data of one run, for `keep`."""
    curve = np.linspace(0, 1, len(steps))[None]
    nodes = {
        "/": xr.Dataset({"world": ("run", [world]), "init": ("run", [0])}),
        "training": xr.Dataset({"accuracy": (("run", "evaluation"), curve)}, {"evaluation": steps}),
        **{name: xr.Dataset({"x": ("run", [value])}) for name, value in more.items()},
    }
    return xr.DataTree.from_dict(nodes), version


def test_runs_of_an_old_version_are_replaced(tmp_path):
    path = tmp_path / "arm.nc"
    for world in (0, 1):
        archive.keep(path, *run_of(world, 1, [0, 10, 20]))
    assert archive.there(path) == {(0, 0), (1, 0)} and archive.there(path, 2) == set()
    archive.keep(path, *run_of(1, 2, [0, 10], claims=1.0))
    assert archive.there(path) == {(0, 0)} and archive.there(path, 2) == {(1, 0)}
    kept = archive.read(path)
    assert kept["claims/x"].values.tolist()[1] == 1 and np.isnan(kept["claims/x"].values[0])
    assert kept["training/evaluation"].values.tolist() == [0, 10, 20]
    archive.keep(path, *run_of(0, 2, [0, 10], claims=0.0))
    kept = archive.read(path)
    assert archive.there(path, 2) == {(0, 0), (1, 0)}
    assert kept["claims/x"].values.tolist() == [0, 1]
    assert kept["training/evaluation"].values.tolist() == [0, 10]


@pytest.mark.slow
def test_figures_of_what_is_kept():
    """Runs of arms have different lengths, and there are no results of some arms."""
    arms = results.read_arms(Path("results/reasoning_or_shortcut"))
    thought = arms["ladder_chain_of_thought"]
    short = thought.parts["training"].sel(evaluation=slice(0, 3_000))
    parts = {**thought.parts, "training": short}
    arms["ladder_chain_of_thought"] = results.Arm(parts, thought.worlds, thought.inits)
    both = figures.draw_curves(
        arms, ("ladder", "ladder_chain_of_thought"), figures.SPLITS, explained=True
    )
    assert len(both.axes) == 2 and len({ax.get_xlim() for ax in both.axes}) == 1
    assert len(figures.draw_times(arms).axes) >= 4
    assert len(figures.draw_instruments(arms).axes) == 6
    assert figures.draw_cues({"ladder": arms["ladder"]}) is None and figures.draw_taught({}) is None
    assert len(figures.draw_cues(arms).axes) == 3
