"""Split facts against plain enumeration: what the triple teaches, and what the chains follow."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from implicit_reasoning.errors import InputError
from implicit_reasoning.worlds import ROLES, shortcuts
from tests.worlds.tasks.test_ladder import all_chains, queries

COUNTS = (1, 2, 4)
SIZE = {"n_entities": 24, "n_relations": 10, "out_degree": 9, "phi": 2.0}


@given(
    seed=st.integers(0, 10_000),
    ood_fraction=st.sampled_from([0.0, 0.1]),
    facts_per_count=st.integers(1, 3),
    spelling=st.sampled_from([{}, {"order": "r r e", "names": 6, "end_token": True}]),
)
@hypothesis_settings(max_examples=15)
def test_split_facts_against_plain_enumeration(make, seed, ood_fraction, facts_per_count, spelling):
    changes = {"world_seed": seed, "ood_fraction": ood_fraction, **spelling}
    dataset = make(name="cue_conflict", facts_per_count=facts_per_count, **SIZE, **changes)
    plain = make(**SIZE, **changes)
    world, truth = dataset.world, dataset.truth
    split = [tuple(cell) for cell in np.argwhere(world.role == ROLES.index("S")).tolist()]
    assert len(split) == 3 * facts_per_count

    # Triples are those of composition; the worlds differ in the split facts only.
    assert {tuple(c) for c in np.argwhere(world.tail != plain.world.tail).tolist()} == set(split)
    by_triple = {fact: int(plain.world.tail[fact]) for fact in split}
    by_chains = {fact: int(world.tail[fact]) for fact in split}
    for bridges in (by_triple, by_chains):
        assert len(set(bridges.values())) == len(split)
    for name in ("id_triples", "ood_triples"):
        for part in ("tokens", "targets"):
            here, there = (getattr(d, part)[d.rows(name)] for d in (dataset, plain))
            assert (here == there).all()

    # Chains that both bridges answer, and answer differently.
    def usable(bridge, relation):
        letter = ROLES[world.role[bridge, relation]] if world.role[bridge, relation] >= 0 else "-"
        return int(world.tail[bridge, relation]) if letter in "IC" else None

    contested = defaultdict(dict)
    for fact in split:
        for relation in range(world.n_relations):
            chain, triple = (usable(of[fact], relation) for of in (by_chains, by_triple))
            if None not in (chain, triple) and chain != triple:
                contested[fact][relation] = chain, triple
    trained, users = set(queries(dataset, "train_ii")), defaultdict(set)
    for e1, r1, r2 in trained:
        users[int(world.tail[e1, r1]), r2].add((e1, r1))
    found = defaultdict(list)
    for fact in split:
        mine = [r2 for e1, r1, r2 in trained if (e1, r1) == fact]
        assert set(mine) <= set(contested[fact])
        assert all(len(users[by_chains[fact], r2]) > 1 for r2 in mine)
        found[len(mine)].append(fact)
        for cue, place in (("chains", 0), ("fact", 1)):
            name = f"test_s{len(mine)}_{cue}"
            asked = {
                int(truth["r2"][row]): row
                for row in dataset.rows(name)
                if (truth["e1"][row], truth["r1"][row]) == fact
            }
            assert set(asked) == set(contested[fact]) - set(mine)
            for r2, row in asked.items():
                expected = contested[fact][r2]
                n = dataset.vocab.index("<last_0>") if "names" in spelling else world.n_entities
                assert truth["answer"][row] == expected[place] % n
                assert (truth["e3"][row], truth["decoy_answer"][row]) == expected
                bridges = by_chains[fact], by_triple[fact]
                assert (truth["e2"][row], truth["decoy"][row]) == bridges
                assert truth["evidence1"][row] == len(mine)
    assert {count: len(facts) for count, facts in found.items()} == dict.fromkeys(
        COUNTS, facts_per_count
    )
    for count in COUNTS:  # the same prompts, in the same order
        chains, fact = (dataset.rows(f"test_s{count}_{cue}") for cue in ("chains", "fact"))
        ends = len(dataset.positions)
        assert (dataset.tokens[chains, :ends] == dataset.tokens[fact, :ends]).all()

    # Split facts are in no other chain, and the other chains are those of composition.
    held_out = set(queries(dataset, "test_ii"))
    for query, (first, second) in all_chains(world).items():
        assert second not in split or query not in trained | held_out
        assert first not in split or query not in held_out
    n_inside = int((world.role == ROLES.index("I")).sum())
    assert len(trained) == round(2.0 * n_inside) + 7 * facts_per_count
    other = truth["role1"] != ROLES.index("S")
    assert (truth["decoy"] == truth["e2"])[other].all() and (truth["decoy_answer"] < 0)[other].all()


def test_rules_follow_the_chains_and_never_the_triple(make):
    size = {"n_entities": 100, "n_relations": 10, "out_degree": 10, "phi": 7, "ood_fraction": 0.05}
    table = shortcuts(make(name="cue_conflict", facts_per_count=20, **size))["row_completion"]
    assert table["test_s4_chains"] > 0.95 > table["test_s1_chains"]
    assert max(table[f"test_s{count}_fact"] for count in COUNTS) < 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"facts_per_count": 0}, "facts_per_count = 0 is out of bounds"),
        (
            {"facts_per_count": 9},
            r"facts_per_count = 9 needs 27 facts with two conflicting bridges, .* be at most \d$",
        ),
        ({"phi": 0.01}, "choose a larger phi"),
        ({"phi": 30}, "phi can be at most"),
        ({"out_degree": 2}, "can be at most 0"),
    ],
)
def test_what_cannot_be_built_is_refused(make, changes, message):
    with pytest.raises(InputError, match=message):
        make(name="cue_conflict", **(SIZE | changes))
