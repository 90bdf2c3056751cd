"""Shared parts of instruments that read states: ranks, rows, folds, figures of the logit lens."""

import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis.claims import Claim
from implicit_reasoning.analysis.drawing import some_steps
from implicit_reasoning.analysis.facts import (
    assign_folds,
    fact_rows,
    first_known_position,
    first_occurrences,
    is_taught_atomic,
    is_training_prefix,
)
from implicit_reasoning.analysis.reading.lens import LogitLens
from implicit_reasoning.analysis.reading.ranking import ranks
from implicit_reasoning.config import apply_overrides, load_config
from implicit_reasoning.worlds import build
from tests.analysis.tiny_states import make_dataset, run


def test_ranks_are_those_of_sorting_and_ties_count_against():
    logits = np.array([[3.0, 1.0, 2.0, 2.0], [0.0, 0.0, 0.0, np.nan]])
    wanted = np.array([[[2, 1], [0, 0]]])
    among = np.array([[True, True, True, False], [True] * 4])
    found = ranks(jnp.asarray(logits), jnp.asarray(wanted), jnp.asarray(among))
    assert found.tolist() == [[[1, 2], [0, 3]]]
    assert ranks(jnp.asarray(logits), jnp.asarray(wanted)).tolist() == [[[2, 3], [0, 3]]]


def test_one_row_for_each_fact_or_all_facts_of_some_bridges():
    dataset = make_dataset()
    facts = fact_rows(dataset, 10_000)
    assert len(np.unique(dataset.truth["fact1"][facts.rows])) == len(facts.rows)
    assert facts.groups == ("id", "ood")
    few = fact_rows(dataset, 40)
    assert 0 < len(few.rows) <= 40
    kept = np.isin(dataset.truth["e2"][facts.rows], dataset.truth["e2"][few.rows])
    assert kept.sum() == len(few.rows)


@pytest.mark.parametrize("kind", ["entities", "chains"])
def test_groups_of_a_ladder_with_identity_rows(kind):
    """A row [e] -> e states no fact, so it does not change what is taught about one."""
    changes = {"task.identity": kind, "task.world_seed": 1}
    dataset = build(apply_overrides(load_config("configs/ladder.py:pocket"), changes).task)
    facts = fact_rows(dataset, 10_000)
    sizes = dict(zip(facts.groups, np.bincount(facts.group).tolist(), strict=True))
    more = {"identity": 100} if kind == "chains" else {}
    assert sizes == {"id": 860, "cold": 90, **more, "ood": 50}
    taught = is_taught_atomic(dataset, facts.rows, dataset.truth["e2"][facts.rows])
    is_identity = np.array(facts.groups)[facts.group] == "identity"
    assert (taught == ~is_identity).all()


def test_folds_keep_equal_keys_together_and_are_even():
    keys = np.repeat(np.arange(20), 3)
    folds = assign_folds(keys, 5)
    assert len(np.unique(np.stack([keys, folds]), axis=1).T) == 20
    assert (np.bincount(folds) == 12).all()
    assert first_occurrences(keys[None]).sum() == 20


@pytest.mark.parametrize(
    ("variable", "positions", "pos"),
    [
        ("e2", ["e1", "r1", "r2"], "r1"),
        ("e2", ["r1", "r2", "e1"], "e1"),
        ("e3", ["e1", "r1", "r2", "r3"], "r2"),
        ("r2", ["e1", "r1", "r2"], "r2"),
        ("answer", ["e1", "r1", "r2"], "r2"),
        ("decoy", ["e1", "r1", "r2"], "r1"),
    ],
)
def test_where_a_variable_is_first_known(variable, positions, pos):
    assert first_known_position(variable, positions) == pos


def test_which_prefixes_are_trained_on():
    """Chains of an O fact are never training rows, but its own prompt (e1, r1) is one."""
    dataset = make_dataset()
    facts = fact_rows(dataset, 10_000)
    e1, r1, r2 = is_training_prefix(dataset, facts.rows)
    assert e1.all() and r1.all()
    np.testing.assert_array_equal(r2, facts.rows < dataset.n_train)
    assert not r2[facts.group == facts.groups.index("ood")].any()


def test_the_logit_lens_draws_what_it_measured():
    result, _ = run(LogitLens(), make_dataset(), n_checkpoints=3)
    rank, top1 = result["rank"], result["top1"]
    assert (rank >= 1 - top1 - 1e-6).all() and rank.max() <= make_dataset().n_vocab - 1
    assert (result["reciprocal_rank"] >= 1 / (1 + rank) - 1e-5).all()  # Jensen's inequality
    assert some_steps(result, 2) == [0, 2]
    assert [figure.name for figure in LogitLens().figures(result)] == ["lens", "lens_map"]
    one = result.isel(step=[0])
    assert some_steps(one) == [0]
    assert all(figure.drawing.axes for figure in LogitLens().figures(one))


def test_the_logit_lens_claims_by_the_null_of_a_split_that_is_large_enough():
    result, _ = run(LogitLens(), make_dataset())
    result = result.isel(step=0).copy(deep=True)
    result["n_states"][:] = 19
    result["top1_low"][:], result["top1"][:] = 0.0, 0.0
    at = {"variable": "e2", "layer": 1, "pos": "r1", "norm": "final norm"}
    here = {**at, "vocabulary": "all tokens", "group": "test_ii"}
    result["top1_low"].loc[{**here, "truth": "true"}] = 0.95
    assert LogitLens().claims(result) == set()  # there are too few states for a claim
    result["n_states"].loc[{"group": "test_ii"}] = 20
    result["top1"].loc[{**here, "group": "test_oo", "truth": "shuffled"}] = 0.5
    # Chance in another split does not matter.
    assert LogitLens().claims(result) == {Claim("decodable", "e2", 1, "r1")}
    result["top1"].loc[{**here, "truth": "shuffled"}] = 0.5
    assert LogitLens().claims(result) == set()
