"""The variations of composition agree with plain walks through their worlds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from implicit_reasoning.errors import InputError
from implicit_reasoning.worlds import ROLES

VARIATIONS = (
    "without_id_triples",
    "held_out_id_triples",
    "second_hop_restricted",
    "shadow",
    "scrambled",
)


def queries(dataset, split):
    """Return the rows of a split as (e1, r1, r2, ...), with the relations that exist."""
    names = ["e1", *(f"r{hop + 1}" for hop in range(dataset.hops))]
    columns = np.column_stack([dataset.truth[name][dataset.rows(split)] for name in names])
    return [tuple(value for value in row if value >= 0) for row in columns.tolist()]


def walk(dataset, query):
    """Follow one fact after another and return (letters of the roles, visited entities)."""
    entity, letters, entities = query[0], "", []
    for relation in query[1:]:
        letters += ROLES[dataset.world.role[entity, relation]]
        entity = int(dataset.world.tail[entity, relation])
        entities.append(entity)
    return letters, entities


def trained_queries(dataset):
    trained = [s for s in dataset.splits if (dataset.rows(s) < dataset.n_train).any()]
    return {split: queries(dataset, split) for split in trained}


@pytest.mark.parametrize("name", VARIATIONS)
@given(
    seed=st.integers(0, 10_000),
    hops=st.integers(2, 3),
    ood_fraction=st.sampled_from([0.0, 0.2]),
    spelling=st.sampled_from([("e r r", 0, False), ("r r e", 6, True)]),
)
@hypothesis_settings(max_examples=15)
def test_splits_and_truth_of_every_variation(make, name, seed, hops, ood_fraction, spelling):
    order, names, end_token = spelling
    dataset = make(
        name=name,
        world_seed=seed,
        hops=hops,
        ood_fraction=ood_fraction,
        phi=0.4,
        order=order,
        names=names,
        end_token=end_token,
    )
    truth, inside = dataset.truth, "i" * hops
    # Every chain has the roles that the name of its split states. A first hop I may also be R or H,
    # and a later hop I may also be H.
    first, later = set("IHR"), set("IH")
    for split in dataset.splits:
        for query in queries(dataset, split):
            letters, _ = walk(dataset, query)
            if split == f"test_{inside}_sr":
                assert letters[0] in "IR" and set(letters) <= set("IR") and "R" in letters[1:]
            elif split == "held_out_id_triples":
                assert letters == "H"
            elif split == "id_triples":
                assert letters in set("IR")
            else:
                pattern = {"ood_triples": "o"}.get(split) or split.split("_")[1]
                for hop, letter in enumerate(pattern):
                    inner = first if hop == 0 else later
                    assert letters[hop] in (inner if letter == "i" else "O")
    # The truth agrees with the world in every row and at every hop.
    for row in range(len(dataset)):
        n_hops = 1 + sum(int(truth[f"r{hop}"][row]) >= 0 for hop in range(2, hops + 1))
        query = [int(truth[k][row]) for k in ("e1", *(f"r{h + 1}" for h in range(n_hops)))]
        letters, entities = walk(dataset, query)
        for hop in range(n_hops):
            assert truth[f"e{hop + 2}"][row] == entities[hop]
            assert ROLES[truth[f"role{hop + 1}"][row]] == letters[hop]
    # No query is both trained on and tested.
    trained = {q for part in trained_queries(dataset).values() for q in part}
    tested = set(queries(dataset, f"test_{inside}")) | set(queries(dataset, "test_" + "o" * hops))
    assert not trained & tested
    # Exposures are counts over the training chains only.
    used = np.zeros((dataset.world.n_facts, hops), int)
    for query in queries(dataset, f"train_{inside}"):
        entity = query[0]
        for hop, relation in enumerate(query[1:]):
            used[dataset.world.fact_id[entity, relation], hop] += 1
            entity = dataset.world.tail[entity, relation]
    assert dataset.exposure.tolist() == used.tolist()


def test_without_id_triples_differs_in_nothing_else(make):
    plain, without = make(), make(name="without_id_triples")
    for split in plain.splits:
        assert queries(without, split) == queries(plain, split)
    assert without.splits[:3] == ("ood_triples", "train_ii", "id_triples")
    assert set(trained_queries(without)) == {"ood_triples", "train_ii"}
    assert (without.exposure == plain.exposure).all()


def test_held_out_facts_are_used_and_never_taught(make):
    dataset = make(name="held_out_id_triples", held_out_fraction=0.25)
    n_outside = round(0.2 * 80)
    assert dataset.sizes()["held_out_id_triples"] == round(0.25 * (80 - n_outside))
    taught = {q for part in trained_queries(dataset).values() for q in part}
    held_out = queries(dataset, "held_out_id_triples")
    assert not taught & set(held_out)
    facts = [dataset.world.fact_id[query] for query in held_out]
    assert (dataset.exposure[facts].sum(0) > 0).all()  # at one of the hops
    plain = make()
    everything = queries(dataset, "id_triples") + held_out
    assert sorted(everything) == sorted(queries(plain, "id_triples"))
    for split in ("train_ii", "test_ii", "test_oi"):
        assert queries(dataset, split) == queries(plain, split)


def test_restricted_facts_are_never_second_in_training(make):
    dataset = make(name="second_hop_restricted", restricted_fraction=0.25, ood_fraction=0.0)
    restricted = dataset.world.facts.role == ROLES.index("R")
    assert restricted.sum() == 20
    assert dataset.exposure[restricted, 0].sum() > 0
    assert dataset.exposure[restricted, 1].sum() == 0
    taught = {dataset.world.fact_id[q] for q in queries(dataset, "id_triples")}
    assert taught == set(range(dataset.world.n_facts))
    # Every chain with a restricted second hop is tested.
    facts = dataset.world.facts
    wanted = {
        (int(facts.head[a]), int(facts.relation[a]), int(facts.relation[b]))
        for a in range(dataset.world.n_facts)
        for b in np.flatnonzero(restricted)
        if facts.tail[a] == facts.head[b]
    }
    assert set(queries(dataset, "test_ii_sr")) == wanted


def test_the_shadow_table_is_taught_and_the_other_used(make):
    dataset = make(name="shadow", n_entities=60, out_degree=6)
    truth, tokens = dataset.truth, dataset.tokens
    taught = {}
    for split in ("id_triples", "ood_triples"):
        for row in dataset.rows(split):
            taught[tuple(tokens[row, :2].tolist())] = int(dataset.targets[row, 1])
    assert len(taught) == dataset.world.n_facts
    chains = np.concatenate([dataset.rows(s) for s in dataset.splits if "triples" not in s])
    for row in chains:  # chains follow the world; the decoy is the tail of the atomic row
        query = [int(truth[name][row]) for name in ("e1", "r1", "r2")]
        assert dataset.targets[row, 2] == truth["answer"][row] == walk(dataset, query)[1][-1]
        assert truth["decoy"][row] == taught[tuple(tokens[row, :2].tolist())]
    # The tables agree at the rate of chance, 1 / 60 of 360 facts, so 6 are expected.
    atomic = dataset.rows("id_triples")
    assert (truth["decoy"][atomic] == truth["answer"][atomic]).all()
    same = (truth["decoy"] == truth["e2"])[np.concatenate([atomic, dataset.rows("ood_triples")])]
    assert same.sum() < 20
    plain = make(n_entities=60, out_degree=6)
    assert (plain.world.tail >= 0).tolist() == (dataset.world.tail >= 0).tolist()
    assert plain.targets[atomic, 1].tolist() == dataset.targets[atomic, 1].tolist()


def test_scrambled_answers_are_drawn_once_and_for_all(make):
    small, large = make(name="scrambled", phi=1.0), make(name="scrambled", phi=2.0)
    plain = make(phi=2.0)
    assert (large.tokens == plain.tokens).all()
    triples = large.rows("id_triples")
    assert (large.targets[triples] == plain.targets[triples]).all()
    for split in (s for s in large.splits if "triples" not in s):
        few, many = small.rows(split), large.rows(split)[: len(small.rows(split))]
        answers = large.truth["answer"][many]
        assert (small.truth["answer"][few] == answers).all()
        assert (large.targets[many, 2] == answers).all()
        assert (large.truth["e3"][many] == plain.truth["answer"][many]).all()
    big = make(name="scrambled", n_entities=100, n_relations=10, out_degree=10, phi=7)
    chains = big.rows("train_ii")
    right = big.truth["answer"][chains] == big.truth["e3"][chains]
    assert abs(right.mean() - 0.01) < 0.006  # five standard deviations of 5,600 draws
    counts = np.bincount(big.truth["answer"][chains], minlength=100)
    assert np.abs(counts - counts.mean()).max() < 5 * np.sqrt(counts.mean())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "held_out_id_triples", "held_out_fraction": 2}, "held_out_fraction = 2 is out"),
        ({"name": "second_hop_restricted", "restricted_fraction": -1}, "restricted_fraction = -1"),
        ({"order": "r e r"}, "order is 'r e r'; it must be 'e r r' or 'r r e'"),
        (
            {"names": 4},
            "names = 4 is out of bounds: for 20 entities, it must be from 5 to 20, or 0",
        ),
        ({"names": 21}, "names = 21 .* from 5 to 20"),
    ],
)
def test_settings_out_of_bounds_are_named(make, changes, message):
    with pytest.raises(InputError, match=message):
        make(**changes)
