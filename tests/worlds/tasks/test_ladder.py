"""The ladder against plain enumeration: which chains are trained, and what they say of a bridge."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from implicit_reasoning.errors import InputError
from implicit_reasoning.worlds import ROLES, coverage, shortcuts
from implicit_reasoning.worlds.shortcuts import RULES
from tests.worlds.test_shortcuts import plain_answers, training_clusters, training_rows

SPLITS = (
    *("id_triples", "ood_triples", "train_ii", "test_ii", "test_c0", "test_c1", "test_c2"),
    *("test_private", "test_io", "test_oi", "test_oo"),
)


def queries(dataset, split):
    """The rows of a split as (e1, r1) or (e1, r1, r2)."""
    rows = dataset.rows(split)
    found = np.column_stack([dataset.truth[name][rows] for name in ("e1", "r1", "r2")])
    return [tuple(value for value in row if value >= 0) for row in found.tolist()]


def all_chains(world):
    """Every chain (e1, r1, r2) with its two facts (entity, relation), one after the other."""
    found = {}
    for e1, r1 in np.argwhere(world.tail >= 0).tolist():
        bridge = int(world.tail[e1, r1])
        for r2 in np.flatnonzero(world.tail[bridge] >= 0).tolist():
            found[e1, r1, r2] = (e1, r1), (bridge, r2)
    return found


@given(
    seed=st.integers(0, 10_000),
    n_entities=st.integers(12, 24),
    ood_fraction=st.sampled_from([0.0, 0.1]),
    phi=st.sampled_from([0.6, 1.5, 2.0]),
    holdout=st.sampled_from([0.0, 0.2]),
    facts_per_rung=st.integers(1, 3),
    spelling=st.sampled_from([{}, {"order": "r r e", "names": 6, "end_token": True}]),
)
@hypothesis_settings(max_examples=25)
def test_the_ladder_against_plain_enumeration(
    make, seed, n_entities, ood_fraction, phi, holdout, facts_per_rung, spelling
):
    try:
        dataset = make(
            name="ladder",
            world_seed=seed,
            n_entities=n_entities,
            ood_fraction=ood_fraction,
            phi=phi,
            holdout=holdout,
            facts_per_rung=facts_per_rung,
            **spelling,
        )
    except InputError as error:
        assert "phi" in str(error) or "facts_per_rung can be at most" in str(error)
        return
    world = dataset.world
    role = {tuple(cell): ROLES[world.role[tuple(cell)]] for cell in np.argwhere(world.tail >= 0)}
    chains, asked = all_chains(world), {split: queries(dataset, split) for split in SPLITS}
    assert dataset.splits == SPLITS
    everything = [query for part in asked.values() for query in part]
    assert len(set(everything)) == len(everything)

    # Every bridge has at most one cold fact, and each rung has the same number of them.
    cold = [fact for fact, letter in role.items() if letter == "C"]
    assert len(cold) == 3 * facts_per_rung == len({int(world.tail[fact]) for fact in cold})
    assert set(asked["id_triples"]) == {fact for fact in role if role[fact] != "O"}
    assert set(asked["ood_triples"]) == {fact for fact in role if role[fact] == "O"}

    # Two chains of each cold fact are trained on; others are trained at the shared cells only.
    trained, by_cell, by_fact = set(asked["train_ii"]), defaultdict(list), defaultdict(list)
    for query in trained:
        first, second = chains[query]
        by_cell[second].append(first)
        by_fact[first].append(second)
    private, rungs = set(), Counter()
    of_rung = {split: set(asked[split]) for split in ("test_c0", "test_c1", "test_c2")}
    for fact in cold:
        assert len(by_fact[fact]) == 2
        alone = {cell for cell in by_fact[fact] if by_cell[cell] == [fact]}
        private |= alone
        rung = 2 - len(alone)
        rungs[rung] += 1
        rest = {
            query
            for query, (first, second) in chains.items()
            if first == fact and role[second] in "IC" and query not in trained
        }
        assert rest and rest <= of_rung[f"test_c{rung}"]
        of_rung[f"test_c{rung}"] -= rest
    assert not any(of_rung.values())
    assert rungs == dict.fromkeys((0, 1, 2), facts_per_rung)

    # The other splits: everything else is as in composition.
    inside = {
        query
        for query, (first, second) in chains.items()
        if role[first] == "I" and role[second] in "IC"
    }
    withheld = {query for query in inside if chains[query][1] in private}
    assert set(asked["test_private"]) == withheld
    n_inside = sum(letter == "I" for letter in role.values())
    assert len(trained) == round(phi * n_inside) + 2 * len(cold)
    assert {query for query in trained if role[chains[query][0]] == "I"} <= inside - withheld
    assert set(asked["test_ii"]) <= inside - withheld
    assert len(asked["test_ii"]) == round(holdout * len(inside - withheld))
    for split, letters in {"test_io": ("I", "O"), "test_oi": ("O", "IC"), "test_oo": "OO"}.items():
        assert set(asked[split]) == {
            query
            for query, (first, second) in chains.items()
            if role[first] in letters[0] and role[second] in letters[1]
        }
    check_truth(dataset, chains, by_cell)


def check_truth(dataset, chains, by_cell):
    """Every truth column that says something about evidence, row by row."""
    truth, known, clusters = dataset.truth, training_rows(dataset), training_clusters(dataset)
    prefixes = defaultdict(set)  # of every bridge, in training
    for (bridge, _), firsts in by_cell.items():
        prefixes[bridge] |= set(firsts)
    judged = {"row_completion_right": "row_completion", "oracle_right": "cluster_oracle"}
    for row in range(len(dataset)):
        if truth["r2"][row] < 0:
            assert {truth[name][row] for name in ("evidence1", "peers", *judged)} == {-1}
            continue
        first = int(truth["e1"][row]), int(truth["r1"][row])
        bridge = int(truth["e2"][row])
        shared = [r2 for r2 in known.get(first, {}) if len(by_cell[bridge, r2]) > 1]
        assert truth["evidence1"][row] == len(shared)
        assert truth["peers"][row] == len(prefixes[bridge] - {first})
        if row % 7 == 0:  # the plain rules are slow
            said = plain_answers(dataset, row, known, clusters)
            answer = tuple(dataset.answers[row].tolist())
            for column, rule in judged.items():
                assert truth[column][row] == (said[rule] == answer)


@pytest.mark.slow
def test_the_oracle_in_a_world_with_many_prefixes_of_each_bridge(make):
    """Here bridges differ in how many chains of a prefix they agree with."""
    dataset = make(
        name="ladder", n_entities=60, n_relations=12, out_degree=9, phi=4.0, facts_per_rung=18
    )
    known, clusters = training_rows(dataset), training_clusters(dataset)
    rows = np.concatenate([dataset.rows(f"test_c{rung}") for rung in range(3)])
    said = RULES["cluster_oracle"].predict(dataset, rows).tolist()
    expected = [plain_answers(dataset, row, known, clusters)["cluster_oracle"] for row in rows]
    assert said == [answer for (answer,) in expected]


def test_more_facts_and_a_larger_phi_keep_what_was_there(make):
    size = {"name": "ladder", "n_entities": 60, "n_relations": 12, "out_degree": 6}
    few, many = make(**size), make(**size, facts_per_rung=5)
    cold = [dataset.world.role == ROLES.index("C") for dataset in (few, many)]
    assert (cold[1][cold[0]]).all() and cold[0].sum() == 6 and cold[1].sum() == 15
    for split in ("test_c0", "test_c1", "test_c2"):
        kept = {query[:2] for query in queries(few, split)}
        assert kept <= {query[:2] for query in queries(many, split)}
    small, large = make(**size, phi=1.0), make(**size, phi=2.0)
    assert set(queries(small, "train_ii")) < set(queries(large, "train_ii"))
    for split in SPLITS[3:]:
        assert queries(small, split) == queries(large, split)


def test_without_cold_facts_the_order_of_rows_is_that_of_composition(make):
    size = {"n_entities": 60, "n_relations": 12, "out_degree": 6}
    ladder, plain = make(name="ladder", **size), make(**size)
    assert (ladder.world.tail == plain.world.tail).all()
    assert queries(ladder, "id_triples") == queries(plain, "id_triples")
    assert queries(ladder, "test_oo") == queries(plain, "test_oo")
    shared = set(queries(ladder, "train_ii")) & set(queries(plain, "train_ii"))
    assert len(shared) > 0.7 * len(queries(plain, "train_ii"))
    in_both = [query for query in queries(plain, "train_ii") if query in shared]
    assert [query for query in queries(ladder, "train_ii") if query in shared] == in_both


@pytest.mark.parametrize(
    ("size", "facts_per_rung", "noted"),
    [
        # Row completion and oracle on c0, c1, c2: the numbers noted when the task was designed.
        ((100, 20, 10, 0.05, 5.0), 30, [0.03, 0.07, 0.84, 0.88, 0.96, 1.0]),
        pytest.param(
            *((250, 30, 15, 0.1, 8.0), 70, [0.02, 0.03, 0.90, 0.91, 0.97, 1.0]),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_rules_climb_the_ladder(make, size, facts_per_rung, noted):
    names = ("n_entities", "n_relations", "out_degree", "ood_fraction", "phi")
    found = []
    for seed in range(6):
        changes = dict(zip(names, size, strict=True))
        dataset = make(name="ladder", facts_per_rung=facts_per_rung, world_seed=seed, **changes)
        table = shortcuts(dataset)
        found.append(
            [
                table[rule][f"test_c{rung}"]
                for rung in range(3)
                for rule in ("row_completion", "cluster_oracle")
            ]
        )
        right = dataset.truth["oracle_right"][dataset.probes("test_c1")]
        assert right.mean() == pytest.approx(table["cluster_oracle"]["test_c1"])
        assert max(by_split["test_c0"] for by_split in table.values()) < 0.15
        assert table["row_completion"]["test_ii"] > 0.95
        expected = size[4] / ((1 - size[3]) * size[2])
        assert coverage(dataset) == pytest.approx(expected, abs=0.02)
    error = np.std(found, axis=0, ddof=1) / len(found) ** 0.5
    assert (np.abs(np.mean(found, axis=0) - noted) < 0.02 + 2 * error).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out_degree": 6}, "out_degree = 6 must be less than n_relations = 6: if every entity"),
        ({"facts_per_rung": 0}, "facts_per_rung = 0 is out of bounds: it must be at least 1"),
        (
            {"facts_per_rung": 7},
            r"facts_per_rung = 7 needs 21 bridges, .* can be at most \d$",
        ),
        ({"phi": 20}, "phi = 20 needs .* phi can be at most"),
        ({"phi": 0.01}, r"phi = 0.01 gives 1 training chains .* at least \d+: choose a larger phi"),
        ({"n_entities": 4}, "facts_per_rung = 2 needs 6 bridges, but only"),
    ],
)
def test_what_cannot_be_built_is_refused(make, changes, message):
    with pytest.raises(InputError, match=message):
        make(name="ladder", **changes)


def test_the_largest_number_of_facts_that_the_error_names_can_be_built(make):
    for seed in range(5):
        with pytest.raises(InputError) as caught:
            make(name="ladder", facts_per_rung=50, world_seed=seed)
        make(name="ladder", facts_per_rung=int(str(caught.value).split()[-1]), world_seed=seed)
