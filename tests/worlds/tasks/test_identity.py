"""Identity rows: what they add to a task, and that they add nothing else."""

import numpy as np
import pytest

from implicit_reasoning.errors import InputError
from implicit_reasoning.worlds import ROLES, Dataset, coverage
from implicit_reasoning.worlds.chains import training_roles

SIZE = {"n_entities": 30, "n_relations": 8, "out_degree": 7, "phi": 1.5}
COLUMNS = {"e1", "e2", "e3", "r1", "r2", "role1", "role2", "answer", "decoy", "decoy_answer"}
SPELLINGS = [{}, {"end_token": True}, {"names": 6, "order": "r r e", "end_token": True}]


def texts(dataset, split):
    """Prompts and supervised tokens of a split, by name of the token."""
    rows, found = dataset.rows(split), []
    for row in rows:
        end = dataset.truth["position"][row]
        prompt = [dataset.vocab[token] for token in dataset.tokens[row, : end + 1]]
        targets = dataset.targets[row][dataset.targets[row] >= 0]
        assert (np.flatnonzero(dataset.targets[row] >= 0) == end + np.arange(len(targets))).all()
        found.append((*prompt, "->", *[dataset.vocab[token] for token in targets]))
    return found


@pytest.mark.parametrize("name", ["composition", "shadow", "scrambled", "ladder", "cue_conflict"])
@pytest.mark.parametrize("spelling", SPELLINGS[1:])
@pytest.mark.parametrize(
    "kind",
    [*(pytest.param(kind, marks=pytest.mark.slow) for kind in ("entities", "chains")), "both"],
)
def test_every_other_split_is_what_it_was(make, name, spelling, kind):
    changes = {"name": name, **SIZE, **spelling}
    plain, more = make(**changes), make(**changes, identity=kind)
    added = {
        "entities": ("identity_triples",),
        "chains": ("train_identity",),
        "both": ("train_identity", "identity_triples"),
    }[kind]
    assert [split for split in more.splits if split not in added] == list(plain.splits)
    assert more.splits[3 : 3 + len(added)] == added
    for split in plain.splits:
        assert texts(more, split) == texts(plain, split)
        columns = (
            "e1",
            "e2",
            "e3",
            "r1",
            "r2",
            "role1",
            "role2",
            "answer",
            "decoy",
            "decoy_answer",
        )
        for column in filter(plain.truth.__contains__, columns):
            here, there = (d.truth[column][d.rows(split)] for d in (more, plain))
            assert (here == there).all()
    assert (more.rows(added[0]) < more.n_train).all()
    assert coverage(more) == coverage(plain)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_entities_lead_to_themselves(make, spelling):
    dataset = make(**SIZE, **spelling, identity="entities")
    names = spelling.get("names", 0)
    found = sorted(texts(dataset, "identity_triples"))
    end = ("</a>",) if "end_token" in spelling else ()
    if names:
        assert len(found) == 30 and all(row[:2] == row[3:5] and row[5:] == end for row in found)
    else:
        assert found == sorted((f"<e_{e}>", "->", f"<e_{e}>", *end) for e in range(30))
    truth, rows = dataset.truth, dataset.rows("identity_triples")
    assert sorted(truth["e1"][rows].tolist()) == list(range(30))
    for column in ("r1", "e2", "fact1", "r2", "e3", "fact2", "role1", "exposure1"):
        assert (truth[column][rows] == -1).all()


@pytest.mark.parametrize("name", ["composition", "ladder"])
def test_chains_of_an_identity_relation(make, name, tmp_path):
    plain = make(name=name, **SIZE, end_token=True)
    dataset = make(name=name, **SIZE, end_token=True, identity="chains")
    world, private = plain.world, set()
    if name == "ladder":  # cells that only a cold fact is trained with
        rows = dataset.rows("test_private")
        private = set(zip(*(dataset.truth[c][rows].tolist() for c in ("e2", "r2")), strict=True))
    expected = set()
    for entity, relation in np.argwhere(world.tail >= 0).tolist():
        letter, tail = ROLES[world.role[entity, relation]], world.tail[entity, relation]
        fact = f"<e_{entity}>", f"<r_{relation}>"
        if letter in training_roles(1) and (entity, relation) not in private:
            expected.add((fact[0], "<r_8>", fact[1], "->", f"<e_{tail}>", "</a>"))
        if letter in training_roles(0):
            expected.add((*fact, "<r_8>", "->", f"<e_{tail}>", "</a>"))
    found = texts(dataset, "train_identity")
    assert len(found) == len(expected) and set(found) == expected
    assert dataset.vocab[-2:] == ("<r_8>", "</a>") and dataset.world.n_relations == 9

    # Truth is of the wider world, and its facts are in no other row.
    truth, facts, identity = dataset.truth, dataset.world.facts, ROLES.index("E")
    for hop in (1, 2):
        rows = np.flatnonzero(truth[f"fact{hop}"] >= 0)
        fact = truth[f"fact{hop}"][rows]
        assert (facts.head[fact] == truth[f"e{hop}"][rows]).all()
        assert (facts.tail[fact] == truth[f"e{hop + 1}"][rows]).all()
        assert (facts.role[fact] == truth[f"role{hop}"][rows]).all()
        others = dataset.split[rows] != dataset.splits.index("train_identity")
        assert (facts.role[fact][others] != identity).all()
    assert (facts.role == identity).sum() == 30
    dataset.save(tmp_path / "world.npz")
    assert Dataset.load(tmp_path / "world.npz").fingerprint() == dataset.fingerprint()


def test_the_ladder_keeps_its_rungs(make):
    dataset = make(name="ladder", **SIZE, identity="both")
    for rung in range(3):
        rows = dataset.rows(f"test_c{rung}")
        assert len(rows) and (dataset.truth["evidence1"][rows] == rung).all()
    cold = dataset.world.facts.role == ROLES.index("C")
    assert (dataset.exposure[cold, 0] == 2).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"identity": "all"}, "identity is 'all'; it must be '' or 'entities' or 'chains' or"),
        ({"identity": "chains", "hops": 3}, "identity = 'chains' requires hops = 2, but hops = 3"),
    ],
)
def test_what_cannot_be_added_is_refused(make, changes, message):
    with pytest.raises(InputError, match=message):
        make(**changes)
