from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from implicit_reasoning.errors import InputError
from implicit_reasoning.worlds import coverage, distinct_states, enumerate_chains, shortcuts
from implicit_reasoning.worlds.shortcuts import (
    RULES,
    modal_given_first_and_last,
    modal_given_last,
    row_completion,
)

OF_CHAINS = ("modal_r2", "modal_e1_r2", "row_completion")


def training_rows(dataset):
    """{prefix: {last relation: answer}} of the training chains."""
    known = defaultdict(dict)
    for row in range(dataset.n_train):
        end = dataset.truth["position"][row]
        if end == dataset.hops:
            prompt = dataset.tokens[row, : end + 1].tolist()
            known[tuple(prompt[:-1])][prompt[-1]] = int(dataset.truth["answer"][row])
    return known


def elect(votes):
    return min(votes, key=lambda answer: (-votes[answer], answer))


def plain_modal(known, keep):
    votes = Counter(
        answer
        for prefix, row in known.items()
        for last, answer in row.items()
        if keep(prefix, last)
    )
    return elect(votes) if votes else None


def plain_answers(dataset, row, known):
    """What each rule answers, from its definition alone."""
    end = dataset.truth["position"][row]
    *prefix, last = dataset.tokens[row, : end + 1].tolist()
    mine = known.get(tuple(prefix), {})
    overall = plain_modal(known, lambda p, r: True) or 0
    by_last = plain_modal(known, lambda p, r: r == last)
    by_last = overall if by_last is None else by_last
    by_pair = plain_modal(known, lambda p, r: r == last and p[0] == prefix[0])
    votes = Counter()
    for other in known.values():
        shared = mine.keys() & other.keys()
        agreements = sum(mine[r] == other[r] for r in shared)
        if agreements and agreements == len(shared) and last in other:
            votes[other[last]] += agreements
    return {
        "modal_r2": by_last,
        "modal_e1_r2": by_last if by_pair is None else by_pair,
        "row_completion": elect(votes) if votes else by_last,
    }


@given(
    seed=st.integers(0, 10_000),
    n_entities=st.integers(3, 14),
    hops=st.integers(2, 3),
    phi=st.sampled_from([0.0, 0.5, 1.5]),
    end_token=st.booleans(),
)
@hypothesis_settings(max_examples=40)
def test_every_rule_against_its_definition(make, seed, n_entities, hops, phi, end_token):
    try:
        dataset = make(
            world_seed=seed,
            n_entities=n_entities,
            hops=hops,
            phi=phi,
            out_degree=3,
            end_token=end_token,
            probes=10,
        )
    except InputError:  # too few chains of I facts for this phi
        return
    known = training_rows(dataset)
    # Trained chains are asked as well: a rule may not fall over on what it has seen.
    rows = np.flatnonzero((dataset.truth["position"] == hops) & dataset.probe)
    expected = [plain_answers(dataset, row, known) for row in rows]
    for name in OF_CHAINS:
        assert RULES[name].predict(dataset, rows).tolist() == [
            answers[name] for answers in expected
        ]
    table = shortcuts(dataset)
    for name, row in [(n, s) for n in OF_CHAINS for s in dataset.splits if s.startswith("test")]:
        asked = np.flatnonzero(dataset.split[rows] == dataset.splits.index(row))
        if not len(asked):
            assert row not in table[name]
            continue
        right = [expected[i][name] == dataset.truth["answer"][rows[i]] for i in asked]
        assert table[name][row] == pytest.approx(np.mean(right))


@pytest.mark.parametrize(
    ("size", "phi", "ood_fraction", "expected", "noted"),
    [
        ((100, 10, 10), 7, 0.05, 1.0, 1.0),
        ((100, 10, 10), 5, 0.05, 0.962, 0.99),
        ((400, 40, 20), 7.2, 0.1, 0.994, 0.99),
        ((400, 40, 20), 3.6, 0.1, 0.766, 0.72),
        ((2000, 200, 20), 7.2, 0.05, 0.998, 1.0),
    ],
)
def test_row_completion_at_the_sizes_of_the_studies(make, size, phi, ood_fraction, expected, noted):
    """`expected` is this rule on world 0; `noted` is the prototype's figure in the house's notes.

    World to world it is 0.956 to 0.987 at phi 5 (8 worlds), 0.752 to 0.766 at 3.6 (4), 0.998 at the
    papers' size (3). The notes do not say how theirs were drawn; the rule itself is held exactly
    against its definition above.
    """
    dataset = make(
        n_entities=size[0],
        n_relations=size[1],
        out_degree=size[2],
        phi=phi,
        ood_fraction=ood_fraction,
        holdout=0.05,
    )
    rows = dataset.probes("test_ii")
    accuracy = (row_completion(dataset, rows) == dataset.truth["answer"][rows]).mean()
    assert accuracy == pytest.approx(expected, abs=0.0006)
    assert abs(accuracy - noted) < 0.05
    assert coverage(dataset) == pytest.approx(phi / ((1 - ood_fraction) * size[2]), abs=0.01)


def test_what_the_rules_cannot_do(make):
    dataset = make(n_entities=100, n_relations=10, out_degree=10, ood_fraction=0.05, phi=7)
    table = shortcuts(dataset)
    assert table["row_completion"]["test_ii"] > 0.98
    # The answer of an O fact at hop 2, and the row of one at hop 1, are in no training chain.
    assert max(table["row_completion"][s] for s in ("test_io", "test_oi")) < 0.1
    assert 0.01 < table["modal_r2"]["test_ii"] < 0.07
    assert 0.0 < table["modal_e1_r2"]["test_ii"] < 0.07
    # Without a training row of its prefix, row completion is the modal answer.
    rows = dataset.probes("test_oi")
    assert (row_completion(dataset, rows) == modal_given_last(dataset, rows)).all()


def test_predictions_do_not_depend_on_the_order_asked(make):
    dataset = make()
    rows = dataset.probes("test_ii")
    mixed = np.random.default_rng(0).permutation(len(rows))
    for rule in (modal_given_last, modal_given_first_and_last, row_completion):
        assert (rule(dataset, rows[mixed]) == rule(dataset, rows)[mixed]).all()
        assert rule(dataset, rows[:0]).tolist() == []


@pytest.mark.parametrize("hops", [2, 3])
def test_coverage_counts_all_inside_chains(make, hops):
    dataset = make(hops=hops)
    inside = enumerate_chains(dataset.world, hops).where("i" * hops)
    trained = len(dataset.rows(f"train_{'i' * hops}"))
    assert coverage(dataset) == pytest.approx(trained / len(inside))


def test_distinct_states_are_distinct_prefixes(make):
    dataset = make(n_entities=100, n_relations=10, out_degree=10, phi=7)
    states = distinct_states(dataset)
    assert states == {"e1": 100, "r1": 1000, "r2": int((dataset.truth["position"] == 2).sum())}
