"""The journal, and a sweep directory that is begun, extended and locked."""

import json

import pytest

from implicit_reasoning.errors import InputError
from implicit_reasoning.sweeps import Status, SweepLayout, grid, make_sweep
from implicit_reasoning.sweeps.directory import Journal, begin, exclusive, load, read_journal
from tests.training.tiny import tiny


@pytest.fixture
def files(tmp_path):
    return SweepLayout(tmp_path)


def seeds(count, **changes):
    return make_sweep(tiny(**changes), list(grid({"seed": range(count)})))


def test_what_is_written_is_what_is_read(files):
    sweep = make_sweep(tiny(), [{"task.order": "r r e"}, {"optimizer.weight_decay": 1, "seed": 2}])
    begin(files, sweep)
    kept = load(files)
    assert kept.trials == sweep.trials and kept.base == sweep.base
    assert [kept.config(name) for name in kept.trials] == [sweep.config(n) for n in sweep.trials]


def test_planning_writes_one_file_however_many_trials_there_are(files):
    begin(files, seeds(500))
    assert [path.name for path in files.workdir.iterdir()] == ["sweep.json"]


def test_a_sweep_may_grow_and_keeps_what_was_there(files):
    begin(files, seeds(2))
    grown = begin(files, make_sweep(tiny(), [{"seed": 5}]))
    assert list(grown.trials) == ["seed=0", "seed=1", "seed=5"] == list(load(files).trials)


def test_a_trial_that_began_with_another_configuration_is_refused_by_name(files):
    begin(files, seeds(2))
    journal = Journal(files)
    journal.note("seed=1", "running")
    journal.close()
    # This also holds if the trial is not among the new ones, because a directory has one base.
    for count in (2, 1):
        with pytest.raises(InputError, match=r"trial seed=1 .* \(steps was 60, is 50\)"):
            begin(files, seeds(count, steps=50))
    assert load(files).base.steps == 60
    begin(files, seeds(2, writers__tensorboard=False))  # it changes no result


def test_what_has_not_begun_may_have_another_configuration(files):
    begin(files, seeds(2))
    begin(files, seeds(2, steps=50))
    assert load(files).base.steps == 50


def test_the_journal_counts_attempts_and_adds_up_time(files):
    journal = Journal(files)
    journal.note("a", "running")
    journal.note("a", "failed", step=20, why="killed")
    journal.note("a", "running")
    assert journal.status("a").step == 20  # it resumes from there
    last = journal.note("a", "done", step=60)
    journal.close()
    assert last == read_journal(files)["a"]
    assert (last.state, last.step, last.attempts, last.why) == ("done", 60, 2, "")
    events = [json.loads(line) for line in files.journal.read_text().splitlines()]
    assert last.seconds == pytest.approx(events[1]["seconds"] + events[3]["seconds"])
    assert read_journal(files).get("b", Status()) == Status()


def test_a_line_cut_short_by_a_crash_is_dropped(files):
    journal = Journal(files)
    journal.note("a", "done", step=60)
    journal.close()
    with files.journal.open("a") as file:
        file.write('{"trial": "b", "sta')
    assert set(read_journal(files)) == {"a"}
    journal = Journal(files)
    journal.note("c", "running")
    journal.close()
    assert set(read_journal(files)) == {"a", "c"}


def test_another_line_that_is_no_event_is_named(files):
    files.journal.write_text('{"state": "done"}\n')
    with pytest.raises(InputError, match="line 1, is not a valid event"):
        read_journal(files)


def test_a_second_launcher_is_refused(files):
    with exclusive(files), pytest.raises(InputError, match="another launcher"), exclusive(files):
        pass
    with exclusive(files):  # when the process has ended
        pass


def test_what_is_no_sweep_is_told_so(files, tmp_path):
    with pytest.raises(InputError, match=r"does not contain sweep\.json"):
        load(files)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="contains a run, not a sweep"):
        begin(files, seeds(1))
    files.sweep.write_text('{"base": {}}')
    with pytest.raises(InputError, match="does not contain a valid list of trials"):
        load(files)
