"""Objects in notebooks: what they show, and that no name, missing file or damage breaks them."""

import shutil

import pytest

from implicit_reasoning.analysis.truth.score import Score, Scores
from implicit_reasoning.files import read_json, write_json
from implicit_reasoning.formatting import attempt, card, fields, listed, plural, short_count, table
from implicit_reasoning.runs import Run
from implicit_reasoning.sweeps import Runs, SweepLayout, define
from implicit_reasoning.sweeps.directory import DONE, FAILED, RUNNING, Journal, begin
from tests import shared
from tests.notebooks import cells, checked

HOSTILE = "<script>alert('&')</script>"


def test_counts_as_text():
    assert plural(1, "layer") == "1 layer" and plural(2000, "layer") == "2,000 layers"
    assert [short_count(n) for n in (950, 1234, 45_600_000)] == ["950", "1.23k", "45.6M"]
    assert listed([]) == "none" and listed(range(5), limit=2) == "0, 1 and 3 more"


def test_everything_is_escaped():
    html = card(
        HOSTILE, HOSTILE, fields({HOSTILE: HOSTILE}), table([HOSTILE], [[HOSTILE]]), HOSTILE
    )
    assert "<script" not in html
    assert HOSTILE in checked(html) and "".join(checked(html)).count("alert('&')") == 6


def test_a_long_table_is_cut_and_says_so():
    html = card("x", "", table(["a", "b"], [("row", n) for n in range(1000)], limit=3))
    assert cells(html) == [["a", "b"], ["row", "0"], ["row", "1"], ["row", "2"]]
    assert checked(html)[-1] == "and 997 more"
    with pytest.raises(ValueError):
        table(["a", "b"], [("only one",)])


def test_an_error_becomes_a_text():
    assert attempt(lambda: 1 / 0) == "cannot be read: division by zero"


def test_a_run():
    run = Run(shared.finished())
    html = run._repr_html_()
    texts = checked(html)
    assert texts[0] == f"Run {run.files.workdir}"
    shown = dict(zip(texts[1:9:2], texts[2:10:2], strict=True))
    data = run.dataset
    assert shown["task"] == (
        f"composition, 12 entities, 4 relations, {data.world.n_facts} facts, "
        f"{data.n_train} training rows"
    )
    n_params = sum(leaf[0].size for leaf in _leaves(run.params([0])))
    assert run.n_params == n_params
    assert shown["model"] == (
        f"2 layers, d_model 8, 2 heads, d_mlp 16, d_vocab {data.n_vocab}, "
        f"{short_count(n_params)} parameters"
    )
    assert shown["steps"] == f"0 to 60 ({len(run.steps)} checkpoints); trained to step 60 of 60"
    header, *rows = cells(html)
    assert header == ["accuracy at step 60", "mean", "95% interval", "n", "clusters"]
    last = run.metrics[-1]
    row = next(row for row in rows if row[0] == "test_ii")
    assert row[1] == f"{last['accuracy/test_ii']:.3f}"
    assert row[2] == f"{last['accuracy_low/test_ii']:.3f} to {last['accuracy_high/test_ii']:.3f}"
    assert row[3] == str(len(data.probes("test_ii")))


def _leaves(tree):
    return [x for v in tree.values() for x in (_leaves(v) if isinstance(v, dict) else [v])]


def test_a_run_reads_no_parameters(monkeypatch):
    run = Run(shared.finished())
    monkeypatch.setattr(type(run.store), "params", None)
    checked(run._repr_html_())


def test_a_run_shows_its_results_and_hostile_names(tmp_path):
    workdir = shared.finished_copy(tmp_path / "<b>&")
    config = read_json(workdir / "config.json")
    config["task"]["name"] = HOSTILE
    write_json(workdir / "config.json", config)
    (workdir / "analysis").mkdir(exist_ok=True)
    (workdir / "analysis" / "mine & <i>.nc").touch()
    texts = checked(Run(workdir)._repr_html_())
    assert texts[0] == f"Run {workdir}" and "mine & <i>" in texts
    assert any(text.startswith(HOSTILE) for text in texts)


def test_a_run_without_its_files_is_still_shown(tmp_path):
    run = Run(shared.finished_copy(tmp_path / "run"))
    run.files.metrics.write_text("damage\n")
    assert any("line 1, is not JSON" in text for text in checked(run._repr_html_()))
    run.files.metrics.unlink()
    shutil.rmtree(run.files.checkpoints)
    texts = checked(run._repr_html_())
    assert "none saved (0 checkpoints); not trained yet of 60" in texts
    assert texts[-1] == "No accuracies yet."
    shutil.rmtree(run.files.workdir)
    fresh = Run.__new__(Run)  # nothing is cached yet
    fresh.__dict__.update(files=run.files, store=run.store)
    assert sum("cannot be read" in text for text in checked(fresh._repr_html_())) >= 2
    assert repr(fresh) == f"Run({str(run.files.workdir)!r}, 0 checkpoints)"


@pytest.fixture
def runs(tmp_path):
    """A sweep of eight trials, of which none has trained."""
    begin(SweepLayout(tmp_path), define(shared.SWEEP, "points"))
    return Runs(tmp_path)


def test_a_sweep(runs):
    html = runs._repr_html_()
    texts = checked(html)
    assert texts[0] == f"Runs {runs.files.workdir}"
    assert "0.1, 1.0 (2 values)" in texts and "8 waiting" in texts
    assert cells(html)[0] == ["trial", "state", "step"] and len(cells(html)) == 9
    journal, names = Journal(runs.files), list(runs.sweep.trials)
    journal.note(names[0], RUNNING)
    journal.note(names[0], DONE, step=60)
    journal.note(names[1], FAILED, step=20, why=HOSTILE)
    journal.close()
    html = runs._repr_html_()
    assert "6 waiting, 1 done, 1 failed" in checked(html)
    assert cells(html)[:3] == [
        ["trial", "state", "step", "reason"],
        [names[0], "done", "60", ""],
        [names[1], "failed", "20", HOSTILE],
    ]


def test_a_sweep_with_a_damaged_journal_is_still_shown(runs):
    runs.files.journal.write_text("damage\n")
    assert any("is not a valid event" in text for text in checked(runs._repr_html_()))


def test_scores():
    claims = {"true": ["one"], "open": ["two", "three"]}
    scores = Scores(
        (
            Score(HOSTILE, "a", "right", claims),
            Score(HOSTILE, "b", "wrong", {"false": ["four"]}),
            Score("plain", "a", "makes no claims", {}),
            Score("plain", "b", "makes no claims", {}),
        )
    )
    about = (
        "2 instruments, 2 models: 1 right, 1 wrong, 0 silent, 0 not applicable, 2 without claims"
    )
    assert repr(scores) == f"Scores({about})"
    html = scores._repr_html_()
    assert checked(html)[0] == f"Scores {about}"
    assert cells(html)[1] == [HOSTILE, "1", "1", "0", "0", "1", "1", "2"]
    assert checked(html)[-1] == "Not run, because they make no claims: plain."
    assert checked(Scores(())._repr_html_())
