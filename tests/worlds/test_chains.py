import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from implicit_reasoning.worlds import enumerate_chains, exposure, make_world, world_from_table
from implicit_reasoning.worlds.chains import expand, patterns
from implicit_reasoning.worlds.world import ROLES


@st.composite
def small_worlds(draw, roles=2):
    """Draw a world with any number of facts per head, including none, which `make_world` cannot
    make.
    """
    n_entities, n_relations = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    cells = st.lists(
        st.integers(-1, n_entities - 1),
        min_size=n_entities * n_relations,
        max_size=n_entities * n_relations,
    )
    tail = np.array(draw(cells)).reshape(n_entities, n_relations)
    n_facts = int((tail >= 0).sum())
    role = draw(st.lists(st.integers(0, roles - 1), min_size=n_facts, max_size=n_facts))
    return world_from_table(tail, np.array(role, np.int8))


def walk(world, entity, hops):
    """Return all chains from an entity by plain recursion: [(facts, entities, relations, name)]."""
    if hops == 0:
        return [((), (entity,), (), "")]
    found = []
    for relation in range(world.n_relations):
        tail = int(world.tail[entity, relation])
        if tail < 0:
            continue
        fact, letter = int(world.fact_id[entity, relation]), ROLES[world.role[entity, relation]]
        for facts, entities, relations, name in walk(world, tail, hops - 1):
            found.append(
                ((fact, *facts), (entity, *entities), (relation, *relations), letter.lower() + name)
            )
    return found


@given(world=small_worlds(), hops=st.integers(1, 3))
def test_chains_are_those_of_plain_enumeration(world, hops):
    expected = [chain for e in range(world.n_entities) for chain in walk(world, e, hops)]
    chains = enumerate_chains(world, hops)
    assert len(chains) == len(expected) and chains.hops == hops
    assert chains.facts.tolist() == [list(facts) for facts, *_ in expected]
    assert chains.entities.tolist() == [list(entities) for _, entities, *_ in expected]
    assert chains.relations.tolist() == [list(relations) for *_, relations, _ in expected]
    for name in patterns(hops):
        wanted = [list(facts) for facts, *_, pattern in expected if pattern == name]
        assert chains.where(name).facts.tolist() == wanted


@given(world=small_worlds(roles=len(ROLES)), hops=st.integers(1, 3))
def test_a_pattern_allows_what_training_allows_at_that_hop(world, hops):
    chains = enumerate_chains(world, hops)
    allowed = [{"i": "IHR", "o": "O"}, {"i": "IHC", "o": "O"}]
    for name in patterns(hops):
        wanted = [
            all(ROLES[r] in allowed[hop > 0][name[hop]] for hop, r in enumerate(roles))
            for roles in chains.roles.tolist()
        ]
        assert chains.where(name).facts.tolist() == chains.facts[np.array(wanted, bool)].tolist()
    few = chains[chains.allows(*["RO"] * hops)]
    assert {ROLES[role] for role in few.roles.ravel()} <= {"R", "O"}
    assert len(few) == sum(set(roles) <= {1, 3} for roles in chains.roles.tolist())


def test_patterns_put_the_first_hop_first():
    assert patterns(2) == ["ii", "io", "oi", "oo"]
    assert patterns(3)[0] == "iii" and patterns(3)[1] == "iio" and patterns(3)[4] == "oii"


def test_a_shuffle_keeps_every_chain():
    chains = enumerate_chains(make_world(6, 4, 3, 0.3, 0), 2)
    shuffled = chains.shuffled(np.random.default_rng(0))
    assert (shuffled.facts != chains.facts).any()
    assert sorted(shuffled.facts.tolist()) == chains.facts.tolist()


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 4)), max_size=8))
def test_expand_writes_out_ranges(ranges):
    start, length = (np.array([r[i] for r in ranges], np.int64) for i in (0, 1))
    owner, item = expand(start, length)
    expected = [(i, s + k) for i, (s, n) in enumerate(ranges) for k in range(n)]
    assert list(zip(owner.tolist(), item.tolist(), strict=True)) == expected


@given(st.lists(st.tuples(*[st.integers(0, 5)] * 3), max_size=20))
def test_exposure_counts_uses_by_hop(rows):
    facts = np.array(rows, np.int32).reshape(-1, 3)
    counts = exposure(facts, n_facts=6)
    for fact, hop in itertools.product(range(6), range(3)):
        assert counts[fact, hop] == sum(row[hop] == fact for row in rows)
