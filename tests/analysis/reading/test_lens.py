"""What the instruments that read states share: ranks, rows, folds, figures of the logit lens."""

import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis.drawing import some_steps
from implicit_reasoning.analysis.facts import fact_rows, first_of_each, fold_of, known_at
from implicit_reasoning.analysis.reading.lens import LogitLens
from implicit_reasoning.analysis.reading.ranking import ranks
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


def test_folds_keep_equal_keys_together_and_are_even():
    keys = np.repeat(np.arange(20), 3)
    folds = fold_of(keys, 5)
    assert len(np.unique(np.stack([keys, folds]), axis=1).T) == 20
    assert (np.bincount(folds) == 12).all()
    assert first_of_each(keys[None]).sum() == 20


@pytest.mark.parametrize(
    ("variable", "positions", "pos"),
    [
        ("e2", ["e1", "r1", "r2"], "r1"),
        ("e2", ["r1", "r2", "e1"], "e1"),
        ("e3", ["e1", "r1", "r2", "r3"], "r2"),
        ("r2", ["e1", "r1", "r2"], "r2"),
        ("answer", ["e1", "r1", "r2"], "r2"),
    ],
)
def test_where_a_variable_is_first_known(variable, positions, pos):
    assert known_at(variable, positions) == pos


def test_the_logit_lens_draws_what_it_measured():
    result, _ = run(LogitLens(), make_dataset(), n_checkpoints=3)
    assert some_steps(result, 2) == [0, 2]
    assert [figure.name for figure in LogitLens().figures(result)] == ["lens", "lens_map"]
    one = result.isel(step=[0])
    assert some_steps(one) == [0]
    assert all(figure.drawing.axes for figure in LogitLens().figures(one))
