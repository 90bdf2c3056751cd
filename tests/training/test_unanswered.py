"""Accuracy on the rows that no shortcut answers, and shares of two cues that contradict."""

import numpy as np
import pytest

from implicit_reasoning.config import apply_overrides, load_config
from implicit_reasoning.training.evaluation import Outcome, ProbeMetrics
from implicit_reasoning.training.figures import figures
from implicit_reasoning.training.unanswered import MIN_BRIDGES, unanswered_rows
from implicit_reasoning.worlds import build
from implicit_reasoning.worlds.shortcuts import RULES, answer_numbers
from tests.training.test_figures import MadeRun


def dataset_of(name, **changes):
    changes = {f"task.{key}": value for key, value in changes.items()}
    return build(apply_overrides(load_config(f"configs/{name}.py:pocket"), changes).task)


def rows_without_an_answer(dataset, split):
    rows = dataset.probes(split)
    rules = [rule for rule in RULES.values() if {"e1", "r2"} <= set(rule.needs)]
    right = [rule.predict(dataset, rows) == answer_numbers(dataset)[rows] for rule in rules]
    assert len(right) == 5
    return rows[~np.any(right, axis=0)]


def answers(dataset, right):
    """The outcome of a model that answers the given rows, and no others."""
    rows = np.flatnonzero(dataset.probe)
    return Outcome(np.ones(len(rows)), np.where(np.isin(rows, right), 0, 3))


@pytest.mark.parametrize("name", ["ladder", "composition", "three_hops"])
def test_rows_that_no_rule_answers_are_scored_apart(name):
    dataset = dataset_of(name)
    tested = [split for split in dataset.splits if split.startswith("test_")]
    expected = {split: rows_without_an_answer(dataset, split) for split in tested}
    bridges = {s: len(np.unique(dataset.truth["e2"][rows])) for s, rows in expected.items()}
    found = unanswered_rows(dataset)
    assert set(found) == {split for split in tested if bridges[split] >= MIN_BRIDGES}
    for split, rows in found.items():
        assert rows.tolist() == expected[split].tolist()
    assert "test_ii" not in found or name == "three_hops"

    half = {split: rows[: len(rows) // 2] for split, rows in found.items()}
    summary = ProbeMetrics(dataset).summary(answers(dataset, np.concatenate(list(half.values()))))
    for split in dataset.splits:
        columns = {f"accuracy_unanswered/{split}", f"unanswered/{split}"}
        assert (columns <= summary.keys()) == bool(columns & summary.keys()) == (split in found)
    for split, rows in found.items():
        assert summary[f"accuracy_unanswered/{split}"] == len(half[split]) / len(rows)
        assert summary[f"unanswered/{split}"] == len(rows)


@pytest.mark.parametrize("name", ["comparison", "modular_addition"])
def test_tasks_without_chains_have_no_such_rows(name):
    assert unanswered_rows(dataset_of(name)) == {}


def test_what_a_rule_answers_does_not_count():
    """A model that answers as the rules do is right on no such row."""
    dataset = dataset_of("ladder")
    rows = np.flatnonzero(dataset.probe & (dataset.truth["r2"] >= 0))
    right = RULES["cluster_oracle"].predict(dataset, rows) == answer_numbers(dataset)[rows]
    summary = ProbeMetrics(dataset).summary(answers(dataset, rows[right]))
    assert summary["accuracy/test_c2"] > 0.9
    assert summary["accuracy_unanswered/test_c0"] == 0


def test_shares_of_two_cues_are_columns_and_a_figure():
    dataset = dataset_of("cue_conflict")
    chains, fact = (dataset.probes(f"test_s2_{cue}") for cue in ("chains", "fact"))
    right = np.concatenate([chains[:30], fact[30:40]])
    summary = ProbeMetrics(dataset).summary(answers(dataset, right))
    assert summary["accuracy/test_s2_chains"] == pytest.approx(30 / len(chains))
    assert summary["other/test_s2"] == pytest.approx(1 - 40 / len(chains))
    assert {key for key in summary if key.startswith("other/")} == {
        f"other/test_s{count}" for count in (1, 2, 4)
    }
    rows = [{"step": step, **summary} for step in (0, 10)]
    drawn = {figure.name: figure for figure in figures(MadeRun(dataset, rows))}
    axes = drawn["cue_conflict"].drawing.axes
    assert [ax.get_title().split(",")[0] for ax in axes] == ["test_s1", "test_s2", "test_s4"]
    heights = [area.get_paths()[0].vertices[:, 1].max() for area in axes[1].collections]
    shares = np.cumsum([30, 10, len(chains) - 40]) / len(chains)
    assert heights == pytest.approx(shares.tolist())


def test_a_line_of_the_rows_that_no_rule_answers():
    dataset = dataset_of("ladder")
    summary = ProbeMetrics(dataset).summary(answers(dataset, []))
    rows = [{"step": step, **summary} for step in (0, 10)]
    (ax,) = {f.name: f for f in figures(MadeRun(dataset, rows))}["accuracy"].drawing.axes
    n = {split: summary[f"unanswered/{split}"] for split in ("test_c0", "test_io", "test_oi")}
    names = [text.get_text() for text in ax.texts if "that no shortcut answers" in text.get_text()]
    # Rules answer hardly any row of test_io, whose line would be the same twice.
    shown = ("test_c0", "test_oi")
    assert names == [f"{split}, {n[split]} rows that no shortcut answers  0.0%" for split in shown]
