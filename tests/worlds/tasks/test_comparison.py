"""Comparisons agree with brute force; every row is read back by the names of its tokens."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from implicit_reasoning.errors import InputError
from implicit_reasoning.worlds import ROLES, build
from implicit_reasoning.worlds.tasks import pairs

SIZES = {
    "world_seed": 0,
    "n_entities": 20,
    "n_attributes": 3,
    "n_values": 5,
    "ood_fraction": 0.25,
    "holdout": 0.2,
    "probes": 3000,
    "end_token": False,
}


def comparison(**changes):
    settings = {"name": "comparison", "phi": 4.0, "mixed_chains": True}
    return build(SimpleNamespace(**(SIZES | settings | changes)))


def complex(**changes):
    settings = {"name": "complex", "share": 0.1, "hard_queries": 50}
    return build(SimpleNamespace(**(SIZES | settings | changes)))


def asked(dataset, split):
    """Return the comparisons of a split from its truth: [(attribute, entity, entity)]."""
    columns = [dataset.truth[name] for name in ("attribute", "entity1", "entity2")]
    return [tuple(row) for row in np.column_stack(columns)[dataset.rows(split)].tolist()]


def letters(dataset, query):
    attribute, *entities = query
    return "".join(ROLES[dataset.world.role[e, attribute]] for e in entities).lower()


def check_rows(dataset, n_entities):
    """Every row agrees with its truth, and the truth agrees with the world."""
    truth, world, vocab = dataset.truth, dataset.world, dataset.vocab
    end = ["</a>"] if "</a>" in vocab else []
    for row in range(len(dataset)):
        a, e1, e2 = (int(truth[name][row]) for name in ("attribute", "entity1", "entity2"))
        value = [int(world.tail[e, a]) - n_entities for e in (e1, e2)]
        if e2 < 0:
            prompt, answer = [f"<e_{e1}>", f"<attr_{a}>"], f"<{value[0]}>"
        else:
            label = 0 if value[0] < value[1] else 1 if value[0] == value[1] else 2
            prompt = [f"<attr_{a}>", "<q>", f"<e_{e1}>", "<mask>", f"<e_{e2}>"]
            answer = f"<attr_{a}_{label}>"
            assert truth["label"][row] == label and truth["value2"][row] == n_entities + value[1]
            assert truth["fact2"][row] == world.fact_id[e2, a]
            assert truth["role2"][row] == world.role[e2, a]
        assert truth["value1"][row] == n_entities + value[0]
        assert truth["fact1"][row] == world.fact_id[e1, a]
        assert truth["role1"][row] == world.role[e1, a]
        n = len(prompt)
        said = [vocab[token] for token in dataset.tokens[row, : n + len(end)]]
        assert said == [*prompt, *([answer] if end else [])]
        targets = dataset.targets[row]
        assert [vocab[t] for t in targets[targets >= 0]] == [answer, *end]
        assert vocab[truth["answer"][row]] == answer and truth["position"][row] == n - 1
        assert (targets[: n - 1] == -1).all() and (dataset.tokens[row, n + len(end) :] == 0).all()


@given(
    seed=st.integers(0, 10_000),
    n_values=st.integers(1, 6),
    ood_fraction=st.sampled_from([0.0, 0.25, 0.5]),
    phi=st.sampled_from([0.0, 1.0, 3.0]),
    holdout=st.sampled_from([0.0, 0.3]),
    end_token=st.booleans(),
)
@hypothesis_settings(max_examples=20)
def test_comparison_against_plain_enumeration(
    seed, n_values, ood_fraction, phi, holdout, end_token
):
    dataset = comparison(
        world_seed=seed,
        n_values=n_values,
        ood_fraction=ood_fraction,
        phi=phi,
        holdout=holdout,
        end_token=end_token,
    )
    check_rows(dataset, 20)
    # Every attribute has the same number of O entities, drawn separately.
    outside = dataset.world.role[:20] == ROLES.index("O")
    assert (outside.sum(0) == round(ood_fraction * 20)).all()
    n_id = int((~outside).sum())
    sizes = dataset.sizes()
    assert (sizes["id_triples"], sizes["ood_triples"]) == (n_id, 60 - n_id)
    assert sizes["train_ii"] == round(phi * n_id)

    everything = [(a, i, j) for a in range(3) for i in range(20) for j in range(20) if i != j]
    trained, held_out = set(asked(dataset, "train_ii")), set(asked(dataset, "test_ii"))
    assert len(trained) == sizes["train_ii"] and len(held_out) == sizes["test_ii"]
    assert {letters(dataset, query) for query in trained | held_out} <= {"ii"}
    # Held-out pairs are held out in both orders, and trained on in neither.
    assert {(a, j, i) for a, i, j in held_out} == held_out
    assert not trained & held_out
    for pattern in ("io", "oi", "oo"):
        wanted = {query for query in everything if letters(dataset, query) == pattern}
        assert set(asked(dataset, f"test_{pattern}")) == wanted
        assert sizes[f"test_{pattern}"] == len(wanted)
    used = np.zeros((dataset.world.n_facts, 2), int)
    for a, i, j in trained:
        used[dataset.world.fact_id[i, a], 0] += 1
        used[dataset.world.fact_id[j, a], 1] += 1
    assert dataset.exposure.tolist() == used.tolist()


def test_the_share_held_out_is_what_was_asked_for():
    dataset = comparison(n_entities=100, holdout=0.1, ood_fraction=0.1, probes=100_000)
    n_pairs = 3 * 90 * 89 / 2
    deviation = np.sqrt(n_pairs * 0.1 * 0.9)
    assert abs(dataset.sizes()["test_ii"] / 2 - 0.1 * n_pairs) < 5 * deviation


@pytest.mark.parametrize("written_out", [2**20, 0])
def test_phi_is_a_ratio_of_counts_and_nested(monkeypatch, written_out):
    monkeypatch.setattr(pairs, "_WRITTEN_OUT", written_out)
    small, large = comparison(phi=1.0), comparison(phi=6.0)
    few, many = asked(small, "train_ii"), asked(large, "train_ii")
    assert len(few) == 45 and len(many) == 270 and many[:45] == few
    for split in ("id_triples", "ood_triples", "test_ii", "test_io", "test_oi", "test_oo"):
        assert asked(small, split) == asked(large, split)
    assert len(set(many)) == 270 and not set(many) & set(asked(large, "test_ii"))


@pytest.mark.parametrize("holdout", [0.0, 0.02, 0.5, 1.0])
def test_drawing_ends_whatever_is_held_out(monkeypatch, holdout):
    written = comparison(holdout=holdout, phi=0)
    monkeypatch.setattr(pairs, "_WRITTEN_OUT", 0)
    drawn = comparison(holdout=holdout, phi=0)
    for split in written.splits:
        assert set(asked(drawn, split)) == set(asked(written, split))


@pytest.mark.slow
def test_drawn_pairs_are_uniform(monkeypatch):
    monkeypatch.setattr(pairs, "_WRITTEN_OUT", 0)
    counts = np.zeros(20)
    for seed in range(30):
        for _, first, second in asked(comparison(world_seed=seed, ood_fraction=0), "train_ii"):
            counts[[first, second]] += 1
    assert np.abs(counts - counts.mean()).max() < 5 * np.sqrt(counts.mean())


def test_probes_cap_tests_and_wang_drops_mixed_pairs():
    full, capped = comparison(), comparison(probes=7, mixed_chains=False)
    assert capped.splits == ("id_triples", "ood_triples", "train_ii", "test_ii", "test_oo")
    assert asked(capped, "train_ii") == asked(full, "train_ii")
    for split in ("test_ii", "test_oo"):
        assert asked(capped, split) == asked(full, split)[:7]
    assert capped.positions == ("attribute", "q", "entity1", "mask", "entity2")


@pytest.mark.slow
def test_sizes_of_the_published_world():
    # Wang et al., section 4: 18,000 + 2,000 facts, 1,106 tokens, four of them unused in rows.
    wang = {"n_entities": 1000, "n_attributes": 20, "n_values": 20, "ood_fraction": 0.1}
    dataset = comparison(**wang, phi=12.6, holdout=0.1, end_token=True)
    sizes = dataset.sizes()
    assert (sizes["id_triples"], sizes["ood_triples"]) == (18_000, 2_000)
    assert sizes["train_ii"] == 226_800 and sizes["test_ii"] == 3000
    assert dataset.n_vocab == 1106 - 3 and dataset.n_ctx == 6


def follows(arrows, n_entities):
    """Return whether there is a path, by trying every intermediate stop: bool [entity, entity]."""
    path = np.eye(n_entities, dtype=bool)
    for low, high in arrows:
        path[low, high] = True
    for stop in range(n_entities):
        path |= path[:, stop, None] & path[stop]
    return path


def label_of(path, i, j):
    return {(1, 0): 0, (1, 1): 1, (0, 1): 2}.get((int(path[i, j]), int(path[j, i])))


def hard_queries(dataset, n_entities):
    """Return the hard queries by label: {label: queries of two O entities}.

    Facts and comparisons together answer them, but comparisons alone do not.
    """
    world, found = dataset.world, {0: set(), 1: set(), 2: set()}
    known = [q for s in dataset.splits if s.startswith("train_") for q in asked(dataset, s)]
    for a in range(world.n_relations):
        value, outside = world.tail[:n_entities, a], world.role[:n_entities, a] == 1

        def arrows(compared, value=value):
            both = [*compared, *((j, i) for i, j in compared)]
            return [(i, j) for i, j in both if value[i] <= value[j]]

        said = [(i, j) for attribute, i, j in known if attribute == a]
        inside = np.flatnonzero(~outside)
        alone = follows(arrows(said), n_entities)
        both = follows(arrows(said + [(i, j) for i in inside for j in inside]), n_entities)
        for i in np.flatnonzero(outside):
            for j in np.flatnonzero(outside):
                label = label_of(both, i, j)
                if i != j and label is not None and label_of(alone, i, j) is None:
                    found[label].add((a, int(i), int(j)))
    return found


@given(
    seed=st.integers(0, 10_000),
    n_values=st.integers(1, 6),
    share=st.sampled_from([0.03, 0.1, 0.3]),
)
@hypothesis_settings(max_examples=12)
def test_hard_queries_against_plain_search(seed, n_values, share):
    dataset = complex(world_seed=seed, n_values=n_values, share=share, hard_queries=4)
    check_rows(dataset, 20)
    wanted = hard_queries(dataset, 20)
    queries = asked(dataset, "test_hard")
    labels = dataset.truth["label"][dataset.rows("test_hard")].tolist()
    each = min(4, *map(len, wanted.values()))
    assert len(queries) == len(set(queries)) == 3 * each
    for label, possible in wanted.items():
        assert labels.count(label) == each
        assert {q for q, said in zip(queries, labels, strict=True) if said == label} <= possible


def test_there_are_hard_queries_to_test():
    dataset = complex(n_entities=60, n_values=15, share=0.08)
    wanted = hard_queries(dataset, 60)
    each = dataset.sizes()["test_hard"] // 3
    assert each == min(map(len, wanted.values())) > 3
    for label in range(3):  # all queries of the rarest label are there, so the count is exact
        chosen = dataset.truth["label"][dataset.rows("test_hard")] == label
        assert chosen.sum() == each


def test_complex_teaches_no_fact_of_o_entities():
    dataset = complex()
    trained = [s for s in dataset.splits if (dataset.rows(s) < dataset.n_train).any()]
    assert trained == ["id_triples", "train_ii", "train_io", "train_oi"]
    for split in trained[1:]:
        assert {letters(dataset, q) for q in asked(dataset, split)} == {
            split.removeprefix("train_")
        }
    assert dataset.sizes()["ood_triples"] == 15
    n_pairs = 3 * 15 * 5
    assert len(asked(dataset, "train_io")) == len(asked(dataset, "train_oi")) == round(n_pairs / 10)
    known = {q for split in trained[1:] for q in asked(dataset, split)}
    assert not known & {q for s in ("test_ii", "test_hard", "test_oo") for q in asked(dataset, s)}


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        (comparison, {"phi": 20}, r"phi = 20 needs 900 training comparisons .* phi can be at"),
        (comparison, {"phi": -1}, "phi = -1 is out of bounds"),
        (comparison, {"n_entities": 1}, "n_entities = 1 .* at least 2"),
        (comparison, {"n_values": 0}, "n_values = 0 .* at least 1"),
        (comparison, {"n_attributes": 0}, "n_attributes = 0 .* at least 1"),
        (comparison, {"ood_fraction": 1.5}, "ood_fraction = 1.5"),
        (comparison, {"holdout": -0.1}, "holdout = -0.1"),
        (comparison, {"probes": 0}, "probes = 0"),
        (comparison, {"world_seed": -1}, "world_seed = -1"),
        (complex, {"share": 1.5}, "share = 1.5 .* from 0 to 1"),
        (complex, {"hard_queries": 0}, "hard_queries = 0 .* at least 1"),
    ],
)
def test_settings_out_of_bounds_are_named(task, changes, message):
    with pytest.raises(InputError, match=message):
        task(**changes)
