"""Searches that are killed at any write, or continued with other settings; nothing is trained."""

import json

import pytest

from implicit_reasoning.errors import InputError
from implicit_reasoning.sweeps import Choice, Integer, Real, SweepLayout
from implicit_reasoning.sweeps import search as module
from implicit_reasoning.sweeps.directory import DONE, Journal, begin, exclusive
from implicit_reasoning.sweeps.search import Search, search
from tests.training.tiny import tiny

optuna = pytest.importorskip("optuna")
SPACE = {
    "optimizer.learning_rate": Real(1e-4, 1e-2, log=True),
    "seed": Integer(0, 99),
    "order": Choice(("replacement", "epochs")),
}
WHAT = Search(metric="loss", count=5, at_once=3, minimize=True)


def fake_sweep(sweep, workdir, *, launcher=None, stop_at=None, only=None, options=None):
    """`run_sweep` without training; the loss is the distance from a point."""
    files = SweepLayout(workdir)
    with exclusive(files):
        grown = begin(files, sweep)
        journal = Journal(files)
        for name in only:
            chosen = grown.trials[name]
            loss = abs(chosen["optimizer.learning_rate"] - 3e-3) + chosen["seed"] / 1e3
            path = files.trial(name).metrics
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(
                json.dumps({"step": 1, "time": 0.0, "loss": loss, "other": loss}) + "\n"
            )
            journal.note(name, DONE, step=1)
        journal.close()
    return journal.statuses


@pytest.fixture(scope="module")
def base():
    return tiny()


@pytest.fixture
def go(base, monkeypatch):
    monkeypatch.setattr(module, "run_sweep", fake_sweep)
    return lambda workdir, space=SPACE, what=WHAT: search(base, space, workdir, what)


def study(workdir):
    backend = optuna.storages.journal.JournalFileBackend(str(workdir / "optuna.log"))
    return optuna.load_study(study_name="search", storage=optuna.storages.JournalStorage(backend))


def chosen(workdir):
    return [trial.user_attrs.get("trial") for trial in study(workdir).trials]


@pytest.mark.parametrize("torn", [False, True], ids=["before it", "in the middle of it"])
def test_killed_at_any_write_it_ends_with_the_same_trials(torn, go, tmp_path, monkeypatch):
    Backend = optuna.storages.journal.JournalFileBackend
    original, left = Backend.append_logs, [10**9]

    def append(self, logs):
        if left[0] == 0:
            if torn:
                with open(self._file_path, "ab") as file:
                    file.write(b'{"op_code":4,"wor')
            raise KeyboardInterrupt
        left[0] -= 1
        original(self, logs)

    monkeypatch.setattr(Backend, "append_logs", append)
    go(tmp_path / "whole")
    writes = 10**9 - left[0]
    wanted = chosen(tmp_path / "whole")
    assert len(wanted) == 5 and None not in wanted and writes > 10
    for count in range(writes):
        workdir, left[0] = tmp_path / str(count), count
        with pytest.raises(KeyboardInterrupt):
            go(workdir)
        left[0] = 10**9
        assert len(go(workdir)) == 5
        assert chosen(workdir) == wanted, count
        assert {trial.state.name for trial in study(workdir).trials} == {"COMPLETE"}


def test_what_was_asked_for_by_an_older_version_and_never_chosen_is_asked_for_again(go, tmp_path):
    go(tmp_path, what=Search(metric="loss", count=2, at_once=2, minimize=True))
    study(tmp_path).ask()  # the process is killed here
    assert len(go(tmp_path)) == 5
    states = [trial.state.name for trial in study(tmp_path).trials]
    assert sorted(states) == ["COMPLETE"] * 5 + ["FAIL"]
    assert len([each for each in chosen(tmp_path) if each]) == 5


WIDER = {**SPACE, "order": Choice(("replacement", "epochs", "none"))}
OTHERS = [
    ({"space": WIDER}, "order was .*epochs.*, is .*none"),
    ({"space": {**SPACE, "seed": Integer(0, 199)}}, "seed was .*99.*, is .*199"),
    ({"space": {**SPACE, "optimizer.learning_rate": Real(1e-4, 1e-2)}}, "learning_rate was .*True"),
    ({"space": {"seed": SPACE["seed"]}}, r"order was .*is \(absent\)"),
    ({"space": {**SPACE, "steps": Integer(1, 60)}}, r"steps was \(absent\), is "),
    ({"space": {**SPACE, "seed": Choice((1, 2))}}, "seed was .*Integer.*, is .*Choice"),
    ({"what": Search(metric="other", count=7, at_once=3, minimize=True)}, "metric was 'loss', is"),
    ({"what": Search(metric="loss", count=7, at_once=3)}, "minimize was True, is False"),
]


@pytest.mark.parametrize(("changed", "said"), OTHERS)
def test_another_search_in_the_same_place_is_refused_by_name(changed, said, go, tmp_path):
    go(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=said) as caught:
        go(tmp_path, **changed)
    assert "choose another --workdir" in str(caught.value)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before, "something was asked for or written"
    assert len(go(tmp_path)) == 5  # the old search is unchanged


@pytest.mark.parametrize(
    ("changed", "said"), [OTHERS[0], OTHERS[1], OTHERS[2], OTHERS[5], OTHERS[7]]
)
def test_searches_without_a_stored_definition_are_known_by_their_trials(
    changed, said, go, tmp_path, monkeypatch
):
    monkeypatch.setattr(optuna.Study, "set_user_attr", lambda *_: None)  # like older versions
    go(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(module, "run_sweep", fake_sweep)
    assert not study(tmp_path).user_attrs
    with pytest.raises(InputError, match=said):
        go(tmp_path, **changed)
    assert len(go(tmp_path)) == 5
    assert study(tmp_path).user_attrs["definition"]["metric"] == "loss"


def test_while_nothing_was_told_the_metric_may_be_corrected(go, tmp_path):
    misspelt = Search(metric="los", count=5, at_once=3, minimize=True)
    with pytest.raises(InputError, match="did you mean loss"):
        go(tmp_path, what=misspelt)
    assert len(go(tmp_path)) == 5
    with pytest.raises(InputError, match="metric was 'loss', is 'los'"):
        go(tmp_path, what=misspelt)


def test_a_search_may_be_made_longer(go, tmp_path):
    go(tmp_path)
    longer = Search(metric="loss", count=8, at_once=3, minimize=True)
    first = chosen(tmp_path)
    assert len(go(tmp_path, what=longer)) == 8
    assert chosen(tmp_path)[:5] == first
