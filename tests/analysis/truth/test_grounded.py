"""Patching and swaps tell a code that single facts set from a code that only chains set."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis import queries
from implicit_reasoning.analysis.claims import Claim, describe
from implicit_reasoning.analysis.patching.cross_query_patching import CrossQueryPatching
from implicit_reasoning.analysis.patching.query_pairs import COLD, GROUPS, OOD, choose_pairs
from implicit_reasoning.analysis.runner import Runner, measure
from implicit_reasoning.analysis.truth.by_answers import correct_probes, factors, grounded
from implicit_reasoning.analysis.truth.known import planted_model, scored_world, small_world
from implicit_reasoning.analysis.variables import mean_swap
from implicit_reasoning.analysis.variables.mean_swap import MeanSwap
from implicit_reasoning.analysis.variables.subspaces import ClassMeans
from implicit_reasoning.worlds import ROLES

FACTORS, GROUNDED = Claim("factors", "e2"), Claim("grounded", "e2")
LADDER = {"n_entities": 75, "n_relations": 10, "out_degree": 5, "phi": 2.5, "facts_per_rung": 22}


@functools.cache
def known(name):
    dataset = scored_world(0)
    splits = ("train_ii",) if name == "cluster_composer" else dataset.splits
    return planted_model(name, dataset, splits)


@functools.cache
def runner(name, instrument):
    return Runner(instrument(), known(name).subject.model)


def measured(name, instrument):
    """Measure anew, with the program of the first time."""
    subject = known(name).subject
    result = measure(instrument(), subject, runner=runner(name, instrument), progress=False)
    return result.isel(step=0, drop=True)


@functools.cache
def result(name, instrument):
    return measured(name, instrument)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, whole, instrument",
    [
        ("cluster_composer", {FACTORS}, CrossQueryPatching),
        ("composer", {FACTORS, GROUNDED}, CrossQueryPatching),
        ("composer", {FACTORS, GROUNDED}, MeanSwap),
        ("cluster_composer", {FACTORS}, MeanSwap),
    ],
)
def test_a_code_from_chains_factors_and_only_the_code_of_facts_is_grounded(name, whole, instrument):
    claims = instrument().claims(result(name, instrument))
    assert claims & {FACTORS, GROUNDED} == whole
    assert describe(claims, known(name).mechanism)["false"] == []


@pytest.mark.slow
def test_sources_that_chains_identify_would_make_every_code_grounded(monkeypatch):
    """Mutation: sources whose facts begin training chains take the place of `O` sources."""
    right = queries.have_roles
    monkeypatch.setattr(
        queries,
        "have_roles",
        lambda data, table, first: right(data, table, "I" if first == "O" else first),
    )
    broken = measured("cluster_composer", CrossQueryPatching)
    assert int(broken.fraction_n.sel(group=OOD).max()) >= 20
    assert GROUNDED in CrossQueryPatching().claims(broken)


@pytest.mark.slow
def test_chains_of_other_facts_would_make_every_code_grounded(monkeypatch):
    """Mutation: the swap is judged by chains whose bridge training chains do identify."""
    monkeypatch.setitem(mean_swap._EVIDENCE, "grounded", ("test_ii",))
    assert GROUNDED in MeanSwap().claims(result("cluster_composer", MeanSwap))


@pytest.mark.slow
def test_means_of_other_values_show_no_shared_code(monkeypatch):
    """Mutation: the class means are those of other values."""
    right = mean_swap.class_means

    def wrong(*args):
        means = right(*args)
        return ClassMeans(jnp.roll(means.mean, 1, axis=0), means.size)

    monkeypatch.setattr(mean_swap, "class_means", wrong)
    broken = measure(MeanSwap(), known("composer").subject, progress=False)
    assert not MeanSwap().claims(broken.isel(step=0, drop=True)) & {FACTORS, GROUNDED}


@pytest.mark.slow
def test_a_few_right_answers_do_not_stand_for_the_others():
    """Only right answers are counted, so a claim needs that most answers are right."""
    found = result("composer", MeanSwap)
    few = found.assign(counted_low=found.counted_low.where(found.group != "test_oi", 0.3))
    assert GROUNDED in MeanSwap().claims(found)
    assert MeanSwap().claims(few) == MeanSwap().claims(found) - {GROUNDED}


def test_cold_sources_have_a_group_for_each_rung():
    dataset = small_world(name="ladder", **LADDER)
    pairs = choose_pairs(dataset)
    assert pairs.groups == (*GROUPS, *COLD)
    first = pairs.composed.facts[:, 0]
    is_cold = dataset.world.facts.role[first] == ROLES.index("C")
    new = ~pairs.composed.trained
    np.testing.assert_array_equal(is_cold[new], pairs.group[new] >= len(GROUPS))
    evidence = {
        int(fact): int(e)
        for fact, e in zip(dataset.truth["fact1"], dataset.truth["evidence1"], strict=True)
        if e >= 0
    }
    for rung, name in enumerate(COLD):
        facts = first[pairs.group == pairs.groups.index(name)]
        assert len(np.unique(facts)) >= 20
        assert {evidence[int(fact)] for fact in facts} == {rung}
    cold = pairs.group >= len(GROUPS)
    assert not pairs.composed.trained[cold].any()
    assert choose_pairs(scored_world(0)).groups == GROUPS


@pytest.mark.parametrize(
    "name, is_grounded",
    [pytest.param("cluster_composer", False, marks=pytest.mark.slow), ("composer", True)],
)
def test_the_rule_by_answers_says_what_is_written_into_the_weights(name, is_grounded):
    dataset = small_world(name="ladder", **LADDER)
    splits = ("train_ii",) if name == "cluster_composer" else dataset.splits
    planted = planted_model(name, dataset, splits)
    [correct] = correct_probes(planted.subject)
    probes = np.flatnonzero(dataset.probe)
    of_split = {name: correct[dataset.split[probes] == n] for n, name in enumerate(dataset.splits)}
    atomic = np.concatenate([of_split["id_triples"], of_split["ood_triples"]])
    assert atomic.all() and of_split["train_ii"].all()
    assert factors(dataset, correct).holds is True is planted.mechanism.holds(FACTORS)
    assert grounded(dataset, correct).holds is is_grounded is planted.mechanism.holds(GROUNDED)
    if not is_grounded:
        chance = 2 / dataset.world.n_entities
        assert of_split["test_c0"].mean() <= chance and of_split["test_oi"].mean() <= chance
        assert min(of_split["test_c1"].mean(), of_split["test_c2"].mean()) > 0.8
