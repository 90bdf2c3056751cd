"""The closure of comparisons agrees with trying every path."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from implicit_reasoning.worlds.tasks.transitivity import from_comparisons, from_facts_too


@st.composite
def comparisons(draw):
    n = draw(st.integers(2, 9))
    value = np.array(draw(st.lists(st.integers(0, 4), min_size=n, max_size=n)))
    pairs = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda p: p[0] != p[1])
    compared = np.array(draw(st.lists(pairs, max_size=12)), int).reshape(-1, 2)
    known = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    return value, compared, known


def closure(value, compared):
    path = np.eye(len(value), dtype=bool)
    for i, j in compared:
        path[i, j] |= value[i] <= value[j]
        path[j, i] |= value[j] <= value[i]
    for stop in range(len(value)):
        path |= path[:, stop, None] & path[stop]
    return path


def labels(path):
    return np.select([path & path.T, path, path.T], [1, 0, 2], default=-1)


@given(comparisons())
def test_from_comparisons_alone(given):
    value, compared, _ = given
    everyone = np.arange(len(value))
    expected = labels(closure(value, compared))
    assert from_comparisons(value, compared, everyone).tolist() == expected.tolist()
    some = everyone[::-2]
    assert from_comparisons(value, compared, some).tolist() == expected[np.ix_(some, some)].tolist()


@given(comparisons())
def test_from_facts_too(given):
    value, compared, known = given
    asked = np.flatnonzero(~known)
    # As in the task, no entity of a query is compared with another entity of a query.
    compared = compared[known[compared].any(1)]
    inside = np.flatnonzero(known)
    facts = np.array([(i, j) for i in inside for j in inside], int).reshape(-1, 2)
    expected = labels(closure(value, np.concatenate([compared, facts])))
    found = from_facts_too(value, known, compared, asked)
    different = ~np.eye(len(asked), dtype=bool)
    assert found[different].tolist() == expected[np.ix_(asked, asked)][different].tolist()
