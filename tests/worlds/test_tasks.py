import itertools
import textwrap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from implicit_reasoning.errors import InputError
from implicit_reasoning.worlds import (
    Chains,
    Spelling,
    assemble,
    enumerate_chains,
    make_world,
    position_names,
    rows_from_chains,
    vocabulary,
)


def prompts(dataset, split):
    """Return the prompts of a split as tuples of tokens."""
    rows = dataset.rows(split)
    ends = dataset.truth["position"][rows] + 1
    return [tuple(t[:end].tolist()) for t, end in zip(dataset.tokens[rows], ends, strict=True)]


def all_prompts(world, hops):
    """Return every prompt of a world by pattern, by brute force: {"io": {prompt: answer}}."""
    found = {"".join(letters): {} for letters in itertools.product("io", repeat=hops)}
    for e1 in range(world.n_entities):
        for relations in itertools.product(range(world.n_relations), repeat=hops):
            entity, pattern = e1, ""
            for relation in relations:
                if entity >= 0 and world.tail[entity, relation] >= 0:
                    pattern += "io"[world.role[entity, relation]]
                    entity = int(world.tail[entity, relation])
                else:
                    entity = -1
            if entity >= 0:
                prompt = (e1, *(world.n_entities + r for r in relations))
                found[pattern][prompt] = entity
    return found


@given(
    seed=st.integers(0, 10_000),
    n_entities=st.integers(2, 12),
    out_degree=st.integers(1, 4),
    hops=st.integers(2, 3),
    ood_fraction=st.sampled_from([0.0, 0.25, 0.5]),
    phi=st.sampled_from([0.0, 0.3, 0.9]),
    holdout=st.sampled_from([0.0, 0.1]),
    end_token=st.booleans(),
)
def test_composition_against_plain_enumeration(
    make, seed, n_entities, out_degree, hops, ood_fraction, phi, holdout, end_token
):
    try:
        dataset = make(
            world_seed=seed,
            n_entities=n_entities,
            out_degree=out_degree,
            hops=hops,
            ood_fraction=ood_fraction,
            phi=phi,
            holdout=holdout,
            end_token=end_token,
        )
    except InputError as error:
        assert "phi can be at most" in str(error)
        return
    world = dataset.world
    chains, facts = all_prompts(world, hops), all_prompts(world, 1)
    inside = "i" * hops
    split = {name: prompts(dataset, name) for name in dataset.splits}

    # Every split has the right rows, and the right number of them.
    assert set(split["id_triples"]) == set(facts["i"])
    assert set(split["ood_triples"]) == set(facts["o"])
    n_held_out = round(holdout * len(chains[inside]))
    assert len(split[f"train_{inside}"]) == round(phi * len(facts["i"]))
    assert len(split[f"test_{inside}"]) == n_held_out
    assert set(split[f"train_{inside}"]) | set(split[f"test_{inside}"]) <= set(chains[inside])
    for pattern in set(chains) - {inside}:
        assert set(split[f"test_{pattern}"]) == set(chains[pattern])

    # Every prompt occurs once, and trained rows come first.
    everything = [prompt for part in split.values() for prompt in part]
    assert len(everything) == len(set(everything)) == len(dataset)
    n_trained = sum(len(split[name]) for name in ("id_triples", "ood_triples", f"train_{inside}"))
    assert dataset.n_train == n_trained
    assert dataset.splits[:3] == ("id_triples", "ood_triples", f"train_{inside}")
    assert (np.diff(dataset.split) >= 0).all()

    # Check the answer, the targets and the truth of every row.
    answer_of = {p: a for table in (*chains.values(), *facts.values()) for p, a in table.items()}
    used = [[0] * hops for _ in range(world.n_facts)]
    for row in dataset.rows(f"train_{inside}"):
        for hop in range(hops):
            used[dataset.truth[f"fact{hop + 1}"][row]][hop] += 1
    assert dataset.exposure.tolist() == used
    for row in range(len(dataset)):
        check_row(dataset, row, answer_of, used, end_token)


def check_row(dataset, row, answer_of, used, end_token):
    world, truth = dataset.world, {name: int(c[row]) for name, c in dataset.truth.items()}
    tokens, targets = dataset.tokens[row].tolist(), dataset.targets[row].tolist()
    n_hops = truth["position"]
    prompt = tuple(tokens[: n_hops + 1])
    assert truth["answer"] == truth[f"e{n_hops + 1}"] == answer_of[prompt]
    ending = [answer_of[prompt]] + [dataset.n_vocab - 1] * end_token
    expected = [-1] * n_hops + ending
    assert targets == expected + [-1] * (dataset.n_ctx - len(expected))
    filled = list(prompt) + [answer_of[prompt]] * end_token
    assert tokens == filled + [0] * (dataset.n_ctx - len(filled))
    for hop in range(1, dataset.hops + 1):
        if hop > n_hops:
            names = (f"r{hop}", f"e{hop + 1}", f"fact{hop}", f"role{hop}", f"exposure{hop}")
            assert {truth[name] for name in names} == {-1}
            continue
        entity, relation = truth[f"e{hop}"], truth[f"r{hop}"]
        fact = int(world.fact_id[entity, relation])
        assert prompt[hop] == world.n_entities + relation
        assert truth[f"e{hop + 1}"] == world.tail[entity, relation]
        assert truth[f"fact{hop}"] == fact
        assert truth[f"role{hop}"] == world.role[entity, relation]
        assert truth[f"exposure{hop}"] == used[fact][hop - 1]


def test_phi_is_a_ratio_of_counts_and_nested(make):
    small, large = make(phi=1.0), make(phi=2.0)
    n_id = len(small.rows("id_triples"))
    assert len(small.rows("train_ii")) == n_id and len(large.rows("train_ii")) == 2 * n_id
    assert prompts(large, "train_ii")[:n_id] == prompts(small, "train_ii")
    assert small.n_train == large.n_train - n_id
    for split in ("id_triples", "ood_triples", "test_ii", "test_io", "test_oi", "test_oo"):
        assert prompts(small, split) == prompts(large, split)


def test_holdout_changes_neither_world_nor_training(make):
    few, many = make(holdout=0.05), make(holdout=0.2)
    assert (few.world.tail == many.world.tail).all() and (few.world.role == many.world.role).all()
    assert prompts(few, "train_ii") == prompts(many, "train_ii")
    assert prompts(many, "test_ii")[: len(few.rows("test_ii"))] == prompts(few, "test_ii")


def test_probes_cap_every_split(make):
    full, capped = make(), make(probes=7)
    for split in full.splits:
        assert len(capped.probes(split)) == min(7, len(full.rows(split)))
    assert capped.probe[capped.n_train :].all()
    assert capped.n_train == full.n_train


def test_wang_leaves_mixed_chains_out(make):
    wang, ye = make(mixed_chains=False), make()
    assert wang.splits == ("id_triples", "ood_triples", "train_ii", "test_ii", "test_oo")
    for split in wang.splits:
        assert prompts(wang, split) == prompts(ye, split)


def test_sizes_of_the_published_world(make):
    # Ye et al., table 2, have 38,000 + 2,000 triples and 273,600 chains; their notebook makes
    # 686,000.
    dataset = make(n_entities=2000, n_relations=200, out_degree=20, ood_fraction=0.05, phi=7.2)
    sizes = dataset.sizes()
    assert (sizes["id_triples"], sizes["ood_triples"]) == (38_000, 2_000)
    assert sizes["train_ii"] == 273_600
    assert sizes["test_ii"] == sizes["test_io"] == sizes["test_oi"] == 3000
    assert abs(sizes["test_oo"] - 2000) < 300
    assert dataset.n_vocab == 2200 and dataset.n_ctx == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"phi": 20},
            r"phi = 20 needs 1280 .* the holdout leaves only \d+: phi can be at most \d+\.\d+$",
        ),
        ({"phi": -1.0}, "phi = -1.0 is out of bounds"),
        ({"phi": 1e308}, "phi can be at most"),  # counting these would overflow
        ({"n_entities": 2**40}, "n_entities x n_relations = .* is too large"),
        ({"hops": 1}, "hops = 1 .* from 2 to 6"),
        ({"hops": 7}, "hops = 7 .* from 2 to 6"),
        # These are refused before that many chains are made.
        ({"n_entities": 10**5, "out_degree": 6, "hops": 6}, "gives 4,665,600,000 chains"),
        ({"holdout": 1.1}, "holdout = 1.1 .* from 0 to 1"),
        ({"probes": 0}, "probes = 0 .* at least 1"),
        ({"out_degree": 7}, "out_degree = 7 .* from 1 to 6"),
        ({"name": "compositon"}, "unknown task 'compositon'; did you mean 'composition'"),
        (
            {"name": "zzz"},
            "unknown task 'zzz'. Known names: composition, .*For a user-defined task",
        ),
        ({"name": "no_such_package.tasks:f"}, "there is no task 'no_such_package.tasks'"),
        ({"name": "json:no_such_function"}, "json defines no function named 'no_such_function'"),
        ({"name": "/no/such/file.py:f"}, "task file /no/such/file.py does not exist"),
        ({"name": "builtins:repr"}, "must return a Dataset; it returned a value of type str"),
    ],
)
def test_errors_say_what_would_be_right(make, changes, message):
    with pytest.raises(InputError, match=message):
        make(**changes)


def test_the_largest_phi_that_the_error_names_can_be_built(make):
    with pytest.raises(InputError) as caught:
        make(phi=100)
    largest = float(str(caught.value).split()[-1])
    make(phi=largest)
    with pytest.raises(InputError):
        make(phi=largest + 0.05)


def test_a_task_in_a_file_of_ones_own(make, tmp_path):
    file = tmp_path / "scrambled.py"
    file.write_text(
        textwrap.dedent(
            '''
            """Chains with random answers: a memoriser by nature."""
            from implicit_reasoning.worlds import (
                assemble, enumerate_chains, make_world, position_names, rows_from_chains, stream,
                vocabulary,
            )

            def scrambled(task):
                world = make_world(task.n_entities, task.n_relations, task.out_degree, 0, 0)
                facts = rows_from_chains(enumerate_chains(world, 1))
                chains = enumerate_chains(world, 2).shuffled(stream(0, 100))
                random = stream(0, 101).integers(world.n_entities, size=len(chains))
                rows = rows_from_chains(chains, answers=random)
                return assemble(
                    {"id_triples": facts, "train_ii": rows}, {}, vocab=vocabulary(world),
                    positions=position_names(2), probes=task.probes, world=world,
                )
            '''
        )
    )
    dataset = make(name=f"{file}:scrambled")
    chains = dataset.rows("train_ii")
    answer = dataset.truth["answer"][chains]
    assert (dataset.targets[chains, 2] == answer).all()
    assert (answer == dataset.truth["e3"][chains]).mean() < 0.2


def test_a_module_that_lacks_something_shows_its_own_error(make, tmp_path, monkeypatch):
    (tmp_path / "broken_task.py").write_text("import a_package_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_package_nobody_has"):
        make(name="broken_task:f")


def test_a_trained_test_row_is_refused():
    world = make_world(6, 4, 3, 0.0, 0)
    chains = enumerate_chains(world, 2)
    with pytest.raises(
        RuntimeError, match="1 test rows are also training rows, for example <e_1><r_0><r_0>"
    ):
        assemble(
            {"train_ii": rows_from_chains(chains[:10])},
            {"test_ii": rows_from_chains(chains[9:20])},
            vocab=vocabulary(world),
            positions=position_names(2),
            probes=5,
            world=world,
        )


def test_other_answers_go_where_the_answer_was():
    world = make_world(6, 4, 3, 0.0, 0)
    chains = Chains(world, enumerate_chains(world, 2).facts[:3])
    rows = rows_from_chains(chains, Spelling(end_token=True), np.array([5, 4, 3]))
    assert rows.targets.tolist() == [[-1, -1, 5, 10], [-1, -1, 4, 10], [-1, -1, 3, 10]]
    assert rows.tokens[:, 3].tolist() == rows.truth["answer"].tolist() == [5, 4, 3]
    assert (rows.truth["e3"] == chains.entities[:, 2]).all()
