"""Definitions of sweeps, and the errors of definitions that cannot be run."""

import itertools
from typing import Any

import numpy as np
import pytest

from implicit_reasoning.errors import InputError
from implicit_reasoning.sweeps import (
    Choice,
    Integer,
    Real,
    define,
    grid,
    make_sweep,
    random_search,
    times,
    zipped,
)
from implicit_reasoning.sweeps.definition import names
from tests.training.tiny import tiny

FILE = "tests/sweeps/small.py"


def test_grids_and_zips_are_what_they_are_called():
    found = list(grid({"a": [1, 2], "b": ["x", "y", "z"]}))
    assert found == [{"a": a, "b": b} for a, b in itertools.product([1, 2], "xyz")]
    assert list(zipped({"a": [1, 2], "b": [3, 4]})) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    crossed = list(times(zipped({"a": [1, 2], "b": [3, 4]}), grid({"seed": range(2)})))
    assert [trial["seed"] for trial in crossed] == [0, 1, 0, 1]
    assert crossed[3] == {"a": 2, "b": 4, "seed": 1}


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(
        InputError, match="the same number of values for every field, got a: 1, b: 2"
    ):
        list(zipped({"a": [1], "b": [1, 2]}))
    with pytest.raises(
        InputError, match="parts of times\\(\\) set a; set every field in only one part"
    ):
        list(times([{"a": 1}], [{"a": 2}]))


def test_random_points_are_seeded_and_a_longer_search_begins_with_them():
    space: dict[str, Any] = {
        "a": Real(1e-4, 1.0, log=True),
        "b": Integer(1, 8),
        "c": Choice(("x", "y")),
    }
    few, many = list(random_search(space, 5, seed=3)), list(random_search(space, 9, seed=3))
    assert many[:5] == few != list(random_search(space, 5, seed=4))


def test_points_fill_their_ranges_as_the_scale_says():
    rng = np.random.default_rng(0)
    logs = np.log10([Real(1e-4, 1.0, log=True).sample(rng) for _ in range(4_000)])
    np.testing.assert_allclose(
        np.quantile(logs, [0, 0.25, 0.5, 0.75, 1]), [-4, -3, -2, -1, 0], atol=0.12
    )
    counts = np.bincount([Integer(1, 4).sample(rng) for _ in range(4_000)], minlength=5)
    assert counts[0] == 0 and (abs(counts[1:] - 1_000) < 120).all()
    small = np.bincount([Integer(1, 100, log=True).sample(rng) for _ in range(4_000)])
    assert small[1] > 5 * small[10:20].mean() and len(small) == 101


@pytest.mark.parametrize(
    "made",
    [
        lambda: Real(2.0, 1.0),
        lambda: Real(0.0, 1.0, log=True),
        lambda: Integer(3, 2),
        lambda: Choice(()),
    ],
)
def test_a_range_without_values_is_refused(made):
    with pytest.raises(InputError):
        made()


def test_a_sweep_is_found_by_name_and_has_typed_overrides():
    sweep = define(FILE, "points")
    assert len(sweep.trials) == 8 and sweep.keys == ("optimizer.weight_decay", "task.phi", "seed")
    name = "weight_decay=1.0,phi=1.2,seed=1"
    assert sweep.config(name).optimizer.weight_decay == 1.0
    assert sweep.config(name).task.phi == 1.2 and sweep.config(name).seed == 1
    assert sweep.base.seed == 0  # no trial changes it
    assert define(FILE, "seeds", {"steps": 50}).base.steps == 50


def test_an_unknown_sweep_names_those_there_are():
    with pytest.raises(InputError, match=r"did you mean seeds.*mixed, points, seeds"):
        define(FILE, "seed")
    with pytest.raises(InputError, match="does not define a function sweep_<name>"):
        define("configs/modular_addition.py", "seeds")


def test_all_faults_are_listed_at_once_and_nothing_is_started():
    trials = [
        {"optimizer.learning_rate": -1.0},
        {"sed": 1},
        {"seed": "a"},
        {"task.phi": 1.5},
        {"task.phi": "1.5"},
        ["seed", 1],
        {"model.n_layers": 0, "seed": 1},
        {"model.n_layers": 0, "seed": 2},
        {"steps": 10, "distributed.num_processes": 3},
    ]
    with pytest.raises(InputError) as caught:
        make_sweep(tiny(), trials)
    said = str(caught.value)
    for part in (
        "trial 0: optimizer.learning_rate is -1.0; it must be between 0 and inf",
        "trial 1: sed is not a field; did you mean seed?",
        "trial 2: seed must be an int, got 'a'",
        "trial 4: it is a duplicate of trial 3",
        "trial 5: it is a list, not a dict of overrides",
        "trial 6, 7: model.n_layers is 0",
        "trial 8: the configuration cannot be trained: distributed.num_processes is 3",
    ):
        assert part in said
    assert "trial 3" not in said.replace("is a duplicate of trial 3", "")


def test_a_sweep_needs_trials():
    with pytest.raises(InputError, match="no trials"):
        make_sweep(tiny(), [])


def test_names_are_what_is_set_and_fit_any_file_system():
    assert names([{"optimizer.weight_decay": 0.5, "seed": 1}]) == ["weight_decay=0.5,seed=1"]
    # Two fields with the same last part have their full names.
    both = names([{"task.order": "r r e", "order": "epochs"}])[0]
    assert both.startswith("task.order=r_r_e,order=epochs-") and "/" not in both
    assert names([{}]) == ["base"]
    long = names([{"task.name": "a" * 300}, {"task.name": "a" * 299 + "b"}])
    assert len(set(long)) == 2 and max(map(len, long)) <= 80


def test_a_thousand_trials_are_planned_at_once():
    """Planning ten thousand by whole configurations took 20 s."""
    sweep = make_sweep(tiny(), list(grid({"seed": range(500), "optimizer.weight_decay": [0.1, 1]})))
    assert len(sweep.trials) == 1_000
