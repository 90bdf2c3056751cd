"""Rows of one bridge are one cluster in every task, and both facts of a chain nest in it."""

from types import SimpleNamespace

import numpy as np
import pytest

from implicit_reasoning.config import load_config
from implicit_reasoning.worlds import Dataset, build
from implicit_reasoning.worlds.clusters import clusterings, clusters_of

CHAINS = {
    "name": "composition",
    "n_entities": 30,
    "n_relations": 6,
    "out_degree": 4,
    "ood_fraction": 0.2,
    "phi": 2.0,
    "hops": 2,
    "holdout": 0.2,
    "probes": 200,
    "world_seed": 0,
    "mixed_chains": True,
    "order": "e r r",
    "names": 0,
    "end_token": False,
}


def chains(**changes):
    return build(SimpleNamespace(**CHAINS | changes))


def same(one, other):
    """Return whether two clusterings are equal up to numbering."""
    pairs = np.unique(np.stack([one, other]), axis=1).shape[1]
    return pairs == len(np.unique(one)) == len(np.unique(other))


@pytest.mark.parametrize("name", ["composition", "shadow", "scrambled", "without_id_triples"])
@pytest.mark.parametrize("order", ["e r r", "r r e"])
def test_chains_are_clustered_by_bridge(name, order):
    data = chains(name=name, order=order)
    rows = np.flatnonzero(data.truth["fact2"] >= 0)
    found = clusters_of(data, rows)
    assert same(found, data.truth["e2"][rows]) and found.min() >= 0
    for fact in ("fact1", "fact2"):  # each fact is in one cluster
        both = np.stack([data.truth[fact][rows], found])
        assert np.unique(both, axis=1).shape[1] == len(np.unique(both[0]))


def test_atomic_triples_are_clustered_by_fact_and_never_with_chains():
    data = chains()
    rows = np.arange(len(data))
    found, atomic = clusters_of(data, rows), data.truth["fact2"] < 0
    assert same(found[atomic], data.truth["fact1"][atomic])
    assert not np.isin(found[atomic], found[~atomic]).any()
    picked = rows[::3]
    np.testing.assert_array_equal(clusters_of(data, picked), found[::3])


def test_three_hops_have_two_bridges_and_the_first_is_the_cluster():
    data = chains(hops=3, phi=3.0)
    rows = data.probes("test_iii")
    assert same(clusters_of(data, rows), data.truth["e2"][rows])
    by_e2, by_e3 = clusterings(data, rows)
    assert same(by_e2, data.truth["e2"][rows]) and same(by_e3, data.truth["e3"][rows])
    (by_fact,) = clusterings(data, data.probes("id_triples"))
    assert same(by_fact, data.truth["fact1"][data.probes("id_triples")])


@pytest.mark.parametrize(
    ("name", "split", "columns"),
    [
        ("comparison", "test_ii", ["fact1", "fact2"]),
        ("modular_addition", "test_pairs", None),
        ("in_context", "test_repeated", None),
        ("greater_than", "test_years", None),
    ],
)
def test_tasks_without_chains(name, split, columns):
    data = build(load_config(f"configs/{name}.py:pocket").task)
    rows = data.probes(split)
    wanted = [data.truth[c][rows] for c in columns] if columns else [rows]
    assert same(clusters_of(data, rows), wanted[0])
    found = clusterings(data, rows)
    assert len(found) == len(wanted) and all(map(same, found, wanted))


def test_a_task_with_fact1_only_and_one_with_nothing():
    data = chains()
    rows = data.probes("test_ii")
    for truth, wanted in (({"fact1": data.truth["fact1"]}, "fact1"), ({}, None)):
        less = Dataset(**{**vars(data), "truth": truth})
        expected = rows if wanted is None else truth[wanted][rows]
        assert same(clusters_of(less, rows), expected)
