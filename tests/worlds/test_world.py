import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from implicit_reasoning.errors import InputError
from implicit_reasoning.worlds import ROLES, make_world, world_from_table


@given(
    n_entities=st.integers(1, 12),
    n_relations=st.integers(1, 8),
    degree_share=st.floats(0, 1),
    ood_fraction=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_a_world_is_what_was_asked_for(n_entities, n_relations, degree_share, ood_fraction, seed):
    degree = max(1, round(degree_share * n_relations))
    world = make_world(n_entities, n_relations, degree, ood_fraction, seed)
    exists = world.tail >= 0
    assert world.tail.shape == (n_entities, n_relations) and world.tail.dtype == np.int32
    assert (exists.sum(1) == degree).all()
    assert world.tail.max() < n_entities
    assert ((world.role >= 0) == exists).all() and world.role.dtype == np.int8
    assert (world.role == ROLES.index("O")).sum() == round(ood_fraction * exists.sum())


def test_facts_are_numbered_in_row_major_order():
    world = make_world(7, 5, 3, 0.3, seed=1)
    facts, expected = world.facts, []
    for head in range(7):
        for relation in range(5):
            if world.tail[head, relation] >= 0:
                assert world.fact_id[head, relation] == len(expected)
                tail, role = world.tail[head, relation], world.role[head, relation]
                expected.append((head, relation, tail, role))
            else:
                assert world.fact_id[head, relation] == -1
    assert list(zip(*facts, strict=True)) == expected
    assert world.n_facts == len(expected) == 21


def test_tails_and_relations_are_uniform():
    world = make_world(2000, 20, 10, 0.05, seed=3)
    # 20,000 tails over 10 bins of 200 entities; 1,000 +- 5 standard deviations each.
    bins = np.bincount(world.facts.tail // 200, minlength=10)
    uses = np.bincount(world.facts.relation, minlength=20)
    assert np.abs(bins - 2000).max() < 5 * np.sqrt(2000)
    assert np.abs(uses - 1000).max() < 5 * np.sqrt(1000)


def test_one_choice_does_not_disturb_another():
    base = make_world(30, 8, 4, 0.1, seed=5)
    other_roles = make_world(30, 8, 4, 0.5, seed=5)
    other_seed = make_world(30, 8, 4, 0.1, seed=6)
    assert (base.tail == other_roles.tail).all()
    # A larger share of O facts keeps the earlier O facts and adds others.
    outside = ROLES.index("O")
    assert (other_roles.role[base.role == outside] == outside).all()
    assert (base.tail != other_seed.tail).any()


def test_a_world_from_a_table():
    tail = np.array([[1, -1], [0, 1]])
    world = world_from_table(tail, np.array([0, 1, 0]))
    assert world.role.tolist() == [[0, -1], [1, 0]]
    assert world_from_table(tail, 1).role.tolist() == [[1, -1], [1, 1]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_entities": 0}, "n_entities = 0 .* at least 1"),
        ({"n_relations": -1}, "n_relations = -1 .* at least 1"),
        ({"out_degree": 0}, "out_degree = 0 .* from 1 to 5"),
        ({"out_degree": 6}, r"out_degree = 6 .* from 1 to 5 \(n_relations\)"),
        ({"ood_fraction": 1.5}, "ood_fraction = 1.5 .* from 0 to 1"),
        ({"ood_fraction": float("nan")}, "ood_fraction = nan"),
        ({"seed": -1}, "world_seed = -1 .* at least 0"),
    ],
)
def test_errors_name_the_value_and_the_bound(changes, message):
    good = {"n_entities": 6, "n_relations": 5, "out_degree": 3, "ood_fraction": 0.1, "seed": 0}
    with pytest.raises(InputError, match=message):
        make_world(**(good | changes))
