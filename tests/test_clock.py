"""A clock that is set back between two starts of a run, or during one, does not mislead readers."""

import json

import pytest

from implicit_reasoning.runs import Layout, Run
from implicit_reasoning.sweeps.directory import DONE, RUNNING, Journal, SweepLayout


class Bare(Run):
    """A run that has only its record."""

    def __init__(self, workdir):
        self.files = Layout(workdir)


def record(folder, starts, rows):
    (folder / "provenance.json").write_text(json.dumps([dict(step=s, time=t) for s, t in starts]))
    lines = [json.dumps(dict(step=s, time=t)) + "\n" for s, t in rows]
    (folder / "metrics.jsonl").write_text("".join(lines))
    return [(start["until"], start["seconds"]) for start in Bare(folder).starts]


@pytest.mark.parametrize(
    ("starts", "rows", "found"),
    [
        # The clock is right.
        ([(0, 100), (20, 200)], [(0, 101), (20, 110), (40, 205)], [(20, 10), (40, 5)]),
        # The second start is an hour before the first.
        ([(0, 4000), (20, 400)], [(0, 4001), (20, 4010), (40, 405)], [(20, 10), (40, 5)]),
        # The clock was set back during the first start.
        ([(0, 100), (20, 200)], [(0, 101), (20, 50), (40, 205)], [(20, 0), (40, 5)]),
        # The clock was set back twice, and the second start wrote nothing.
        (
            [(0, 300), (20, 200), (20, 100)],
            [(0, 301), (20, 310), (40, 105)],
            [(20, 10), (None, 0), (40, 5)],
        ),
        # The rows of the second start after step 20 were lost, because the third start resumed
        # there.
        (
            [(0, 300), (10, 200), (20, 100)],
            [(10, 305), (20, 210), (40, 105)],
            [(10, 5), (20, 10), (40, 5)],
        ),
        # The first start wrote nothing, not even step 0.
        ([(0, 100), (0, 200)], [(0, 201), (5, 205)], [(None, 0), (5, 5)]),
        # The same with a clock that was set back: step 0 and all other rows belong to the second
        # start.
        ([(0, 900), (0, 200)], [(0, 201), (5, 205)], [(None, 0), (5, 5)]),
    ],
)
def test_rows_are_of_the_start_that_wrote_them(starts, rows, found, tmp_path):
    assert record(tmp_path, starts, rows) == found


def test_a_trial_never_took_less_than_no_time(tmp_path, monkeypatch):
    journal = Journal(SweepLayout(tmp_path))
    clock = iter([5000.0, 1000.0])
    monkeypatch.setattr("implicit_reasoning.sweeps.directory.time.time", lambda: next(clock))
    journal.note("a", RUNNING)
    assert 0 <= journal.note("a", DONE).seconds < 5
    journal.close()
