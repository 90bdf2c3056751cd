"""When things happen: the spacing of steps, and the next and previous step against brute force."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from implicit_reasoning.config import flatten
from implicit_reasoning.training.schedule import Schedule, faults, log_spaced
from tests.training.tiny import tiny

horizons, intervals = st.integers(1, 3000), st.integers(1, 800)


@given(horizon=horizons, per_doubling=st.integers(0, 8), every=intervals)
def test_spaced(horizon, per_doubling, every):
    steps = log_spaced(horizon, per_doubling, every)
    assert list(steps) == sorted(set(steps))
    assert steps[0] == 0 and steps[-1] == horizon
    regular = set(range(0, horizon + 1, every)) | {horizon}
    assert regular <= set(steps)
    if per_doubling:
        # Below `every`, the steps are each power of two and its even subdivisions, rounded.
        count = math.ceil(per_doubling * math.log2(max(every, 2))) + 1
        powers = {round(2 ** (i / per_doubling)) for i in range(count)}
        assert set(steps) - regular == {p for p in powers if p < min(every, horizon)} - regular
    else:
        assert set(steps) == regular


def test_spaced_by_example():
    assert log_spaced(100, 1, 25) == (0, 1, 2, 4, 8, 16, 25, 50, 75, 100)
    assert log_spaced(30, 2, 12) == (0, 1, 2, 3, 4, 6, 8, 11, 12, 24, 30)
    assert log_spaced(10, 0, 4) == (0, 4, 8, 10)
    assert log_spaced(5, 1, 100) == (0, 1, 2, 4, 5)
    assert log_spaced(1, 3, 1) == (0, 1)


events = st.fixed_dictionaries({"every": intervals, "per_doubling": st.integers(0, 3)})
configs = st.fixed_dictionaries(
    {
        "steps": horizons,
        "log_every": intervals,
        "resume_every": intervals,
        "evaluation": events,
        "checkpoints": events,
    }
)


@given(config=configs, data=st.data())
def test_forward_and_back_agree_with_brute_force(config, data):
    schedule = Schedule.from_config(ConfigDict(config))
    step = data.draw(st.integers(0, schedule.horizon))
    events = {*schedule.rows, *schedule.checkpoints, *schedule.resumes}
    assert schedule.next_event(step) == min(
        (event for event in events if event > step), default=schedule.horizon
    )
    assert schedule.previous_row(step) == max((r for r in schedule.rows if r < step), default=0)


@given(config=configs)
def test_what_the_loop_relies_on(config):
    """Every evaluation has a row, the state is saved at the end, and never at the start."""
    schedule = Schedule.from_config(ConfigDict(config))
    assert set(schedule.evaluations) <= set(schedule.rows)
    for steps in (schedule.rows, schedule.evaluations, schedule.checkpoints):
        assert steps[0] == 0 and steps[-1] == schedule.horizon
    assert schedule.resumes[0] > 0 and schedule.resumes[-1] == schedule.horizon


def test_the_window_of_losses_is_long_enough():
    """The window holds `log_every` losses, so rows may be no further apart."""
    schedule = Schedule.from_config(tiny(steps=500, log_every=7, evaluation__every=40))
    assert max(b - a for a, b in zip(schedule.rows, schedule.rows[1:], strict=False)) == 7


@pytest.mark.parametrize(
    "key", ["log_every", "resume_every", "evaluation.every", "checkpoints.every"]
)
def test_intervals_are_at_least_one(key):
    (said,) = faults(flatten(tiny(**{key.replace(".", "__"): 0})))
    assert said.startswith(f"{key} is 0; it must be at least 1")
