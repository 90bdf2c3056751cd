"""Counterfactual answers are true, and no state is on both sides of a split."""

import numpy as np
import pytest

from implicit_reasoning.analysis.states import chain_splits, prompts
from implicit_reasoning.analysis.variables import counterfactuals
from implicit_reasoning.analysis.variables.interchange import Rules, find_pairs
from tests.analysis.planted_subject import dataset

SPLITS = ("train_ii", "test_ii")


@pytest.fixture(scope="module", params=["e r r", "r r e"])
def chosen(request):
    data = dataset(order=request.param)
    fitted = counterfactuals.rows_to_fit(data)
    return data, fitted, counterfactuals.choose_cases(data, SPLITS, 50, fitted)


def test_expected_answers_are_what_the_world_says(chosen):
    data, _, cases = chosen
    tail, truth = data.world.tail, data.truth
    for index, name in enumerate(cases.variables.names):
        new, expected = cases.new[index], cases.expected[index]
        there = new >= 0
        assert there.mean() > 0.9
        np.testing.assert_array_equal(there, expected >= 0)
        values = {v: truth[v][cases.rows][there].copy() for v in ("e1", "r1", "e2", "r2", "answer")}
        assert (values[name] != new[there]).all()
        clean = values["answer"].copy()
        values[name] = new[there]
        if name in ("e1", "r1"):
            values["e2"] = tail[values["e1"], values["r1"]]
        if name != "answer":
            values["answer"] = tail[values["e2"], values["r2"]]
        np.testing.assert_array_equal(values["answer"], expected[there])
        assert (expected[there] != clean).all() and (expected[there] >= 0).all()


def test_prefixes_that_are_fitted_to_are_not_scored_on(chosen):
    data, fitted, cases = chosen
    first = data.truth["fact1"]
    assert not set(first[fitted]) & set(first[cases.rows])
    assert (fitted < data.n_train).all()
    # Half the facts of every bridge are on each side.
    chains = np.flatnonzero(data.truth["fact2"][: data.n_train] >= 0)
    half = counterfactuals.fitting_half(data, chains)
    for bridge in np.unique(data.truth["e2"][chains]):
        here = data.truth["e2"][chains] == bridge
        counts = [len(np.unique(first[chains[here & side]])) for side in (half, ~half)]
        assert abs(counts[0] - counts[1]) <= 1


def test_a_state_can_know_what_its_prefix_tells():
    cells = counterfactuals.determined_cells(dataset(), np.arange(dataset().n_train)[-200:])
    names = ("e1", "r1", "e2", "r2", "answer")
    found = {(names[variable], pos) for variable, pos in zip(*cells, strict=True)}
    assert found == {
        *(("e1", pos) for pos in range(3)),
        *((name, pos) for name in ("r1", "e2") for pos in (1, 2)),
        *((name, 2) for name in ("r2", "answer")),
    }


def test_rows_are_spread_over_kinds():
    rows, kinds = np.array([5, 6, 7, 8, 9]), np.array([1, 1, 1, 0, 2])
    assert counterfactuals.round_robin(rows, kinds).tolist() == [5, 8, 9, 6, 7]


def test_pairs_ask_for_what_follows_and_compose_no_trained_prompt():
    data = dataset()
    truth, tail = data.truth, data.world.tail
    bases = data.rows("test_ii")
    pool = np.flatnonzero(truth["fact2"][: data.n_train] >= 0)
    facts = np.random.default_rng(1).random((24, 24)) < 0.5
    rules = Rules("e2", 1, facts, untrained=True)
    pairs = find_pairs(data, bases, pool, rules, np.random.default_rng(0))
    trained = {tuple(row) for row in prompts(data, pool)}
    for kind in (0, 1):
        there = pairs.source[kind] >= 0
        assert there.mean() > 0.3
        base, source = bases[there], pairs.source[kind][there]
        wanted = tail[truth["e2"][source], truth["r2"][base]]
        np.testing.assert_array_equal(pairs.expected[kind][there], wanted)
        same = truth["e2"][base] == truth["e2"][source]
        assert same.all() if kind else not same.any()
        assert (truth["fact1"][base] != truth["fact1"][source]).all()
        composed = np.column_stack([prompts(data, source)[:, :2], prompts(data, base)[:, 2]])
        assert not trained & {tuple(row) for row in composed}
        if kind == 0:
            assert facts[truth["e2"][source], truth["r2"][base]].all()


def test_a_decoy_is_taken_for_the_bridge():
    data = dataset(name="shadow")
    cases = counterfactuals.choose_cases(
        data, chain_splits(data), 20, counterfactuals.rows_to_fit(data)
    )
    index = cases.variables.names.index("decoy")
    there = cases.new[index] >= 0
    wanted = data.world.tail[cases.new[index][there], data.truth["r2"][cases.rows][there]]
    np.testing.assert_array_equal(cases.expected[index][there], wanted)


def test_of_a_memoriser_what_was_taught_is_expected():
    """With another token, the expected answer is the trained one, not that of the world."""
    data = dataset(name="scrambled")
    trained = np.flatnonzero(data.truth["fact2"][: data.n_train] >= 0)
    parts = np.stack([data.truth[name][trained] for name in ("e1", "r1", "r2")], axis=1)
    taught = dict(zip(map(tuple, parts.tolist()), data.truth["answer"][trained], strict=True))
    fitted = counterfactuals.rows_to_fit(data)
    cases = counterfactuals.choose_cases(data, ("train_ii",), 30, fitted)
    for place, name in enumerate(("e1", "r1", "r2")):
        index = cases.variables.names.index(name)
        there = cases.new[index] >= 0
        assert there.sum() > 5
        asked = np.stack([data.truth[n][cases.rows[there]] for n in ("e1", "r1", "r2")], axis=1)
        asked[:, place] = cases.new[index][there]
        wanted = [taught[tuple(question)] for question in asked.tolist()]
        np.testing.assert_array_equal(cases.expected[index][there], wanted)
