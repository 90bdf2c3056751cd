"""The exponent of the training chains that composition needs, on trials made by hand."""

import numpy as np
import pytest

from tests.experiments.scripts import load

scaling = load("scaling")
SIZES = (60, 90, 120, 180)


def trials(power, reached=SIZES, enough=()):
    """Return trials in which accuracy .5 needs tokens ** power chains, at the reached sizes."""
    rows = []
    for tokens in SIZES:
        limit = tokens**power
        factors = (
            (1.0, 2.0) if tokens in enough else (0.5, 2.0) if tokens in reached else (0.3, 1.0)
        )
        for factor in factors:
            accuracy = 0.5 + 0.25 * np.log2(factor) if tokens in reached else 0.1
            best = dict.fromkeys(scaling.SPLITS, accuracy)
            rows.append({"n_tokens": tokens, "n_chains": factor * limit, "best": best})
    return rows


def test_the_exponent_is_that_of_the_trials():
    found = scaling.needed(trials(2.5), "test_ii")
    assert [one.bound for one in found] == [0] * 4
    assert [one.n_chains for one in found] == pytest.approx([size**2.5 for size in SIZES])
    fit = scaling.exponent(found)
    assert fit.slope == pytest.approx(2.5) and not fit.at_least and fit.sizes == 4


def test_bounds_at_the_largest_sizes_give_a_bound():
    found = scaling.needed(trials(2.5, reached=SIZES[:2]), "test_ii")
    assert [one.bound for one in found] == [0, 0, 1, 1]
    fit = scaling.exponent(found)
    assert fit.at_least and fit.slope == pytest.approx(2.5)
    below = scaling.needed(trials(1.5, reached=SIZES[:3]), "test_ii")
    text = scaling.table({"data": trials(1.5, reached=SIZES[:3]), "steps": 100})
    assert scaling.exponent(below).high < 2 and "| not excluded | not excluded |" in text
    assert "| consistent with at least 2 | no | no |" in scaling.table(
        {"data": trials(1.5), "steps": 100}
    )


@pytest.mark.parametrize("reached", [(), SIZES[2:], (60, 120, 180), (90, 120)])
def test_other_bounds_give_no_statement(reached):
    assert scaling.exponent(scaling.needed(trials(2.0, reached=reached), "test_ii")) is None


def test_upper_bounds_count_at_the_smallest_sizes_only():
    small = scaling.needed(trials(2.0, enough=SIZES[:1]), "test_ii")
    assert small[0].bound == -1 and scaling.exponent(small).at_least
    large = scaling.needed(trials(2.0, enough=SIZES[-1:]), "test_ii")
    assert large[-1].bound == -1 and scaling.exponent(large) is None
    assert scaling.exponent(small[:2]) is None
