"""From answers to the ladder follows whether a code is shared, and whether the fact sets it."""

import jax
import numpy as np
import pytest

from implicit_reasoning.analysis.claims import Claim
from implicit_reasoning.analysis.truth.by_answers import (
    correct_probes,
    factors,
    grounded,
    mechanism_by_answers,
)
from implicit_reasoning.analysis.truth.known import small_world
from implicit_reasoning.errors import InputError
from implicit_reasoning.worlds.shortcuts import RULES
from tests.analysis.subjects import random_checkpoints

LADDER = {"n_entities": 90, "n_relations": 12, "out_degree": 6, "phi": 3.0, "facts_per_rung": 25}


@pytest.fixture(scope="module")
def data():
    return small_world(name="ladder", **LADDER)


def answered(data, **accuracies):
    """Whether each probe is right: a share of the bridges of each split, with all their chains.

    Splits that are not named are answered as `cluster_oracle` does, and training rows are right.
    """
    rows = np.flatnonzero(data.probe)
    right = rows < data.n_train
    chain = data.truth["fact2"][rows] >= 0
    rule = RULES["cluster_oracle"].predict(data, rows[chain])
    right[chain] |= rule == data.truth["answer"][rows[chain]]
    for split, accuracy in accuracies.items():
        members = np.flatnonzero(data.split[rows] == data.splits.index(split))
        bridges = data.truth["e2"][rows[members]]
        some = np.unique(bridges)
        right[members] = np.isin(bridges, some[: round(accuracy * len(some))])
    return right


@pytest.mark.parametrize(
    "c0, c2, holds",
    [
        (1.0, 1.0, True),
        (0.7, 0.7, True),
        (0.0, 0.9, False),
        (0.3, 1.0, False),  # above the rules, but clearly less than .8 of c2
        (0.2, 0.2, None),  # the interval of c0 includes the threshold
        (0.7, 0.95, None),  # above the rules; .8 of c2 is within the interval
    ],
)
def test_a_code_is_grounded_where_the_cold_facts_are_composed_as_the_others(data, c0, c2, holds):
    judged = grounded(data, answered(data, test_c0=c0, test_c2=c2))
    assert judged.holds is holds
    assert judged.accuracy.n_clusters == judged.compared.n_clusters == 25
    assert judged.by_rule < 0.2


def test_the_threshold_is_that_of_the_best_rule_on_the_same_rows(data):
    rows = data.probes("test_c0")
    accuracies = {
        name: (RULES[name].predict(data, rows) == data.truth["answer"][rows]).mean()
        for name in ("modal_r2", "modal_e1_r2", "modal_r1_r2", "row_completion", "cluster_oracle")
    }
    judged = grounded(data, answered(data))
    assert judged.by_rule == max(accuracies.values()) == accuracies[judged.rule]
    assert judged.holds is not True  # the best rule is not above itself


@pytest.mark.parametrize(
    "train, test, holds",
    [(1.0, 0.9, True), (0.5, 0.45, True), (1.0, 0.02, False), (1.0, 0.5, None)],
)
def test_prefixes_share_a_code_where_most_held_out_chains_are_right(data, train, test, holds):
    judged = factors(data, answered(data, train_ii=train, test_ii=test))
    assert judged.holds is holds and judged.by_rule < 0.1


def test_who_goes_by_evidence_from_chains_has_a_code_that_no_fact_sets(data):
    """The oracle that groups prefixes by chains is the model of a code without a fact."""
    mechanism = mechanism_by_answers(data, answered(data, test_c0=0.0))
    assert mechanism.holds(Claim("factors", "e2")) is True
    assert mechanism.holds(Claim("grounded", "e2")) is False
    assert mechanism.holds(Claim("memorised", "e2")) is None
    everything = mechanism_by_answers(data, np.ones(data.probe.sum(), bool))
    assert everything.true == {Claim("factors", "e2"), Claim("grounded", "e2")}


def test_with_fewer_than_20_bridges_the_claim_is_open():
    few = small_world(name="ladder", **LADDER | {"facts_per_rung": 19})
    assert grounded(few, np.ones(few.probe.sum(), bool)).holds is None


def test_a_world_without_cold_facts_is_refused(data):
    other = small_world()
    with pytest.raises(InputError, match="needs the split 'test_c0', but the dataset has only"):
        grounded(other, np.ones(other.probe.sum(), bool))
    with pytest.raises(InputError, match="`correct` has 3 values"):
        grounded(data, np.ones(3, bool))


def test_correct_probes_are_those_of_each_checkpoint():
    subject = random_checkpoints(2)
    found = correct_probes(subject)
    probes = np.flatnonzero(subject.dataset.probe)
    assert found.shape == (2, len(probes))
    forward = jax.jit(subject.model.forward)
    logits, _ = forward(subject.checkpoints[1], subject.dataset.tokens[probes])
    position = subject.dataset.truth["position"][probes]
    answer = np.asarray(logits)[np.arange(len(probes)), position].argmax(-1)
    np.testing.assert_array_equal(found[1], answer == subject.dataset.truth["answer"][probes])
    np.testing.assert_array_equal(correct_probes(subject, (1,))[0], found[1])
