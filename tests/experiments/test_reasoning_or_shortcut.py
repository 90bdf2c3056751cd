"""What the study keeps of a run, and what its decision rules say, on results made by hand."""

import numpy as np
import pytest
import xarray as xr

from implicit_reasoning.config import load_config
from implicit_reasoning.worlds import ROLES, build
from tests.experiments.scripts import load

study, tables = load("reasoning_or_shortcut"), load("reasoning_or_shortcut_tables")
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
    return tables.Arm({"stages": stages, "training": training}, worlds, inits)


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
    shuffled = tables.Arm(
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
