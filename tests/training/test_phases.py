"""The rules that date the phases, on hand-made rows."""

import dataclasses

import numpy as np
import pytest

from implicit_reasoning.config import load_config
from implicit_reasoning.runs import Run
from implicit_reasoning.statistics import clustered_interval
from implicit_reasoning.training.phases import Phases, Splits, phases, run_phases
from implicit_reasoning.worlds import build, shortcuts
from implicit_reasoning.worlds.shortcuts import RULES
from tests.training.tiny import tiny

SPLITS = Splits("train_ii", "test_ii", "test_oi")
NOT_REACHED = Phases(None, None, None, None)


def rows(every=100, **series):
    """Return rows of evaluations, `every` steps apart; `train_ii=[...]` is an accuracy."""
    (length,) = {len(values) for values in series.values()}
    keys = {name: name if "/" in name else f"accuracy/{name}" for name in series}
    return [
        {"step": i * every, "loss": 1.0, **{keys[name]: series[name][i] for name in series}}
        for i in range(length)
    ]


def memorised(accuracies):
    return phases(rows(train_ii=accuracies), SPLITS, None).memorised


@pytest.mark.parametrize(
    ("accuracies", "step"),
    [
        ([0, 0.99, 0.99, 0.99, 0.99], 100),  # the first of the three; a value at the bound counts
        ([1, 1, 1], 0),
        ([0, 1, 1, 0.98, 1, 1, 1], 400),  # a dip restarts the count
        ([1, 1, 0, 1, 1, 0, 1, 1], None),
        ([0, 0, 0, 1, 1], None),  # two are fewer than three
        ([0.989] * 9, None),
        ([1, 1], None),
        ([], None),
        ([1, 1, 1, 0, 0, 1, 1, 1], 0),  # a phase that is lost again was still reached
    ],
)
def test_three_in_a_row(accuracies, step):
    assert memorised(accuracies) == step


def test_each_phase_has_its_rule():
    found = phases(
        rows(
            train_ii=[0.5, 0.99, 0.99, 0.99, 1, 1, 1, 1, 1],
            test_ii=[0.1, 0.2, 0.5, 0.5, 0.5, 0.94, 0.95, 0.95, 0.95],
        ),
        SPLITS,
        None,
    )
    assert found == Phases(100, 200, 600, None)
    assert found.lag == 500
    assert found.describe() == {
        "memorised": "100 steps",
        "in distribution half": "200 steps",
        "in distribution": "600 steps",
        "cross distribution": "not reached",
        "lag": "500 steps",
    }


def test_the_lag_is_negative_where_it_generalised_first_and_unknown_without_either():
    found = phases(rows(train_ii=[0.9, 0.9, 1, 1, 1], test_ii=[1.0] * 5), SPLITS, None)
    assert (found.memorised, found.in_distribution, found.lag) == (200, 0, -200)
    assert found.describe()["lag"] == "-200 steps"
    assert dataclasses.replace(found, memorised=None).lag is None
    assert dataclasses.replace(found, in_distribution=None).lag is None


def test_rows_without_an_evaluation_do_not_break_a_run_of_three():
    evaluated = rows(train_ii=[0, 1, 1, 1])
    logged = [{"step": step, "loss": 1.0} for step in range(50, 400, 100)]
    mixed = sorted(evaluated + logged, key=lambda row: row["step"])
    assert phases(mixed, SPLITS, None).memorised == 100
    assert phases(logged, SPLITS, None) == NOT_REACHED


def crossed(low, above=0.4):
    """Return the step from which the lower ends `low` are above a shortcut."""
    table = rows(test_oi=[0.9] * len(low), **{"accuracy_low95/test_oi": low})
    return phases(table, SPLITS, above).cross_distribution


def test_crossing_wants_the_lower_bound_above_the_shortcut():
    low = [0.2, 0.4, 0.41, 0.5, 0.6]
    assert crossed(low) == 200  # equal is not above
    assert crossed(low, 0.39) == 100
    assert crossed(low, 0.5) is None  # although every mean is above
    assert crossed(low, None) is None
    assert crossed([float("nan")] * 5, 0.0) is None  # too few clusters for an interval


def test_crossing_holds_from_then_on():
    """Among many tests, one that passes proves nothing, so all following tests have to pass as
    well.
    """
    assert crossed([0.5] * 5 + [0.3]) is None
    assert crossed([0.5] * 5 + [0.3] + [0.5] * 2) is None  # fewer than three
    assert crossed([0.5] * 5 + [0.3] + [0.5] * 3) == 600
    assert crossed([0.5] * 5 + [float("nan")] + [0.5] * 3) == 600


def test_crossing_is_as_rarely_wrong_as_one_test_whatever_the_number_of_evaluations():
    """The true accuracy equals the shortcut's, so at any evaluation 2.5% of the lower ends are
    above it.
    """
    rng = np.random.default_rng(0)
    early, found = 0, 0
    for _ in range(200):
        noise = rng.normal(size=200)
        walk = np.zeros(200)
        for i in range(1, 200):  # correlated evaluations of standard deviation 1
            walk[i] = 0.95 * walk[i - 1] + np.sqrt(1 - 0.95**2) * noise[i]
        low = 0.4 + 0.1 * (walk - 1.96)
        found += crossed(low.tolist()) is not None
        above = low > 0.4
        early += any(above[i : i + 3].all() for i in range(198))
    assert found <= 0.025 * 200 + 5 and early > 0.3 * 200


def test_a_dataset_without_the_splits_has_no_phases():
    table = rows(train_ii=[1.0] * 5, test_ii=[1.0] * 5)
    assert phases(table, Splits(None, None, None), 0.1) == NOT_REACHED


@pytest.fixture(scope="module")
def dataset():
    return build(tiny().task)


def test_splits_by_their_names(dataset):
    assert Splits.of(dataset) == SPLITS
    three = build(tiny(task__hops=3, task__phi=1.0).task)
    assert Splits.of(three) == Splits("train_iii", "test_iii", "test_oii")


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("comparison", Splits("train_ii", "test_ii", "test_oi")),
        ("complex", Splits("train_ii", "test_ii", None)),
        ("modular_addition", Splits("train_pairs", "test_pairs", None)),
        ("in_context", Splits("train_repeated", "test_repeated", None)),
        ("successor", Splits("train_runs", "test_runs", None)),
        ("second_hop_restricted", Splits("train_ii", "test_ii", None)),
        ("without_id_triples", SPLITS),
        ("two_token_entities", SPLITS),
    ],
)
def test_every_task_has_its_parts(name, splits):
    dataset = build(load_config(f"configs/{name}.py:pocket").task)
    assert Splits.of(dataset) == splits
    table = rows(**{splits.trained: [1.0] * 3, splits.held_out: [0.6] * 3})
    assert phases(table, splits, None) == Phases(0, 0, None, None)


def test_splits_that_are_missing_or_have_no_probes_are_none(dataset):
    unmixed = build(tiny(task__mixed_chains=False).task)
    assert Splits.of(unmixed) == Splits("train_ii", "test_ii", None)
    cross = dataset.split == dataset.splits.index("test_oi")
    unprobed = dataclasses.replace(dataset, probe=dataset.probe & ~cross)
    assert Splits.of(unprobed) == Splits("train_ii", "test_ii", None)
    other = dataclasses.replace(dataset, splits=tuple(f"my_{name}" for name in dataset.splits))
    assert Splits.of(other) == Splits(None, None, None)


def test_a_run_is_held_against_the_intervals_of_all_shortcuts(dataset):
    cross = dataset.probes("test_oi")
    highest = max(
        clustered_interval(
            rule.predict(dataset, cross) == dataset.truth["answer"][cross],
            dataset.truth["e2"][cross],
        ).high
        for rule in (RULES[name] for name in shortcuts(dataset))
    )
    assert highest > max(rule["test_oi"] for rule in shortcuts(dataset).values()) + 0.01
    low = {"accuracy_low95/test_oi": [highest - 0.01, highest, *[highest + 0.01] * 3]}

    class Made(Run):
        """A run that has only the given attributes."""

        def __init__(self):
            self.dataset = dataset

        metrics = rows(train_ii=[1.0] * 5, **low)

    assert run_phases(Made()) == Phases(0, None, None, 200)
