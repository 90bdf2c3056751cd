import dataclasses
import json
import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytest

from implicit_reasoning.config import apply_overrides, load_config
from implicit_reasoning.errors import InputError
from implicit_reasoning.worlds import ROLES, build, read_grokked, write_grokked
from implicit_reasoning.worlds.exchange import split_name, type_name

FILES = ["meta.json", "test.json", "train.json", "valid.json", "vocab.json"]


def read(path):
    return json.loads(Path(path).read_text())


@pytest.fixture
def folder(make, tmp_path):
    write_grokked(make(), tmp_path / "data")
    return tmp_path / "data"


def test_the_layout_is_the_published_one(make, folder):
    dataset = make()
    assert sorted(p.name for p in folder.iterdir()) == FILES
    train, test, valid = (read(folder / f"{name}.json") for name in ("train", "test", "valid"))
    assert len(train) == dataset.n_train and len(test) == dataset.probe.sum()
    assert all(set(row) == {"input_text", "target_text"} for row in train + valid)
    assert all(set(row) == {"input_text", "target_text", "type"} for row in test)

    e1, r1, e2 = (dataset.truth[name][0] for name in ("e1", "r1", "e2"))
    prompt = f"<e_{e1}><r_{r1}>"
    assert train[0] == {"input_text": prompt, "target_text": f"{prompt}<e_{e2}></a>"}
    row = dataset.rows("train_ii")[0]
    e1, r1, r2, e3 = (dataset.truth[name][row] for name in ("e1", "r1", "r2", "e3"))
    prompt = f"<e_{e1}><r_{r1}><r_{r2}>"
    assert train[row] == {"input_text": prompt, "target_text": f"{prompt}<e_{e3}></a>"}

    types = ["ID Triples", "OOD Triples", "Train-II", "Test-II", "Test-IO", "Test-OI", "Test-OO"]
    assert list(dict.fromkeys(row["type"] for row in test)) == types
    assert [{**row, "type": "Test-OO"} for row in valid] == test[-len(valid) :]
    vocab = read(folder / "vocab.json")
    assert vocab[:2] == ["<e_0>", "<e_1>"] and vocab[20] == "<r_0>"
    assert vocab[26:] == ["<mask>", "<sep>", "<a>", "</a>", "<q>", "</q>"]
    # The files are byte for byte what json.dump writes, as in the published notebooks.
    assert (folder / "train.json").read_text() == json.dumps(train)
    assert (folder / "test.json").read_text() == json.dumps(test)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"end_token": True},
        {"probes": 5, "world_seed": 3},
        {"phi": 0.1},  # most I facts are in no training chain
        {"ood_fraction": 0.0},  # and therefore there are empty splits
        {"hops": 3, "end_token": True},
        {"mixed_chains": False},
        {"name": "without_id_triples"},
        {"name": "held_out_id_triples"},
        {"name": "second_hop_restricted", "ood_fraction": 0.0},
        {"name": "scrambled", "end_token": True},
    ],
)
def test_round_trip_without_loss(make, tmp_path, changes):
    dataset = make(**changes)
    write_grokked(dataset, tmp_path / "data")
    assert read_grokked(tmp_path / "data").fingerprint() == dataset.fingerprint()


def test_a_shadow_loses_its_decoy_and_nothing_else(make, tmp_path):
    dataset = make(name="shadow")
    write_grokked(dataset, tmp_path)
    again = read_grokked(tmp_path)
    truth = {name: column for name, column in dataset.truth.items() if name != "decoy"}
    assert again.fingerprint() == dataclasses.replace(dataset, truth=truth).fingerprint()


def published(dataset, folder):
    """Read a folder as others write it, without our `meta.json`."""
    write_grokked(dataset, folder)
    (folder / "meta.json").unlink()
    return read_grokked(folder)


def test_a_published_folder_without_id_triples(make, tmp_path):
    dataset = make(name="without_id_triples", end_token=True, probes=40)
    with pytest.warns(UserWarning, match=r"\d+ chains use facts that no atomic row states"):
        again = published(dataset, tmp_path)
    assert again.splits == dataset.splits and again.n_train == dataset.n_train
    for field in ("tokens", "targets", "split", "probe"):
        assert np.array_equal(getattr(again, field), getattr(dataset, field))
    assert np.array_equal(again.truth["answer"], dataset.truth["answer"])
    # Stated fields are known, and fields that are not stated are not invented.
    for name in ("e1", "r1", "r2"):
        assert np.array_equal(again.truth[name], dataset.truth[name])
    for name in ("e2", "e3"):
        known = again.truth[name] >= 0
        assert 0 < known[dataset.rows("train_ii")].mean() < 1
        assert (again.truth[name] == dataset.truth[name])[known].all()
    stated = np.concatenate([dataset.rows("id_triples"), dataset.rows("ood_triples")])
    assert again.world.n_facts == len(stated)


def test_a_published_folder_with_held_out_id_triples(make, tmp_path):
    dataset = make(name="held_out_id_triples", end_token=True)
    assert published(dataset, tmp_path).fingerprint() == dataset.fingerprint()
    test = read(tmp_path / "test.json")
    assert "Held-out ID Triples" in {row["type"] for row in test}
    for row in test:  # Ye et al. use these names for trained rows
        row["type"] = row["type"].replace("ID Triples", "Retained ID Triples", 1)
        row["type"] = row["type"].replace("Held-out Retained", "Held-out")
    (tmp_path / "test.json").write_text(json.dumps(test))
    assert read_grokked(tmp_path).fingerprint() == dataset.fingerprint()


def test_a_published_folder_with_restricted_second_hops(make, tmp_path):
    dataset = make(name="second_hop_restricted", restricted_fraction=0.2, phi=2.0, end_token=True)
    again = published(dataset, tmp_path)
    asked = dataset.truth["fact2"][dataset.rows("test_ii_sr")]
    assert (again.world.facts.role[asked] == ROLES.index("R")).all()
    assert np.array_equal(again.tokens, dataset.tokens) and again.splits == dataset.splits


@pytest.mark.parametrize(
    ("name", "first", "target"),
    [
        ("two_token_entities", r"<first_\d+><last_\d+><r_\d+>", "<first_\\d+><last_\\d+></a>"),
        ("relations_first", r"<r_\d+><e_\d+>", "<e_\\d+></a>"),
        ("comparison", r"<e_\d+><attr_\d+>", "<\\d+></a>"),
        ("complex", r"<e_\d+><attr_\d+>", "<\\d+></a>"),
        ("modular_addition", r"<\d+><\d+><=>", "<\\d+></a>"),
        ("in_context", r"(<x_\d+>)+", r"<x_\d+></a>"),
        ("successor", r"(<\d+_\d+>){6}<next_\d+>", r"<\d+_\d+></a>"),
        ("greater_than", r"<century_\d+><\d+><century_\d+>", r"<\d+></a>"),
        ("indirect_object", r"(<(name|filler)_\d+>){8}<to>", r"<name_\d+></a>"),
    ],
)
def test_rows_of_other_spellings_and_tasks_are_written(tmp_path, name, first, target):
    dataset = build(load_config(f"configs/{name}.py:pocket").task)
    write_grokked(dataset, tmp_path)
    rows, vocab = read(tmp_path / "train.json"), read(tmp_path / "vocab.json")
    assert len(rows) == dataset.n_train and len(set(vocab)) == len(vocab)
    assert re.fullmatch(first, rows[0]["input_text"])
    assert rows[0]["target_text"].startswith(rows[0]["input_text"])
    assert re.fullmatch(target, rows[0]["target_text"].removeprefix(rows[0]["input_text"]))
    for row in (*rows[:50], *read(tmp_path / "test.json")[-50:]):
        assert set(re.findall("<.*?>", row["target_text"])) <= set(vocab)
    assert not (tmp_path / "meta.json").exists()
    with pytest.raises(InputError, match=r"\.json"):  # and they are not mistaken for chains
        read_grokked(tmp_path)


def test_comparisons_are_written_as_wang_et_al_do(tmp_path):
    config = apply_overrides(
        load_config("configs/comparison.py:pocket"), {"task.mixed_chains": False}
    )
    dataset = build(config.task)
    write_grokked(dataset, tmp_path, wang_types=True)
    row = dataset.rows("train_ii")[0]
    truth = {name: int(column[row]) for name, column in dataset.truth.items()}
    a, label = truth["attribute"], truth["label"]
    prompt = f"<attr_{a}><q><e_{truth['entity1']}><mask><e_{truth['entity2']}>"
    expected = {"input_text": prompt, "target_text": f"{prompt}<attr_{a}_{label}></a>"}
    assert read(tmp_path / "train.json")[row] == expected
    types = {row["type"] for row in read(tmp_path / "test.json")}
    assert types >= {"id_atomic", "train_inferred", "test_inferred_iid", "test_inferred_ood"}
    # 100 entities, 5 attributes, 10 values, 15 labels and six special tokens.
    assert len(read(tmp_path / "vocab.json")) == 136
    asked = [row["input_text"] for row in read(tmp_path / "valid.json")]
    assert len(asked) == len(dataset.rows("test_oo"))


def test_round_trip_in_wangs_names(make, tmp_path):
    dataset = make(mixed_chains=False)
    write_grokked(dataset, tmp_path / "data", wang_types=True)
    types = dict.fromkeys(row["type"] for row in read(tmp_path / "data" / "test.json"))
    assert list(types) == [
        "id_atomic",
        "ood_atomic",
        "train_inferred",
        "test_inferred_iid",
        "test_inferred_ood",
    ]
    assert read_grokked(tmp_path / "data").fingerprint() == dataset.fingerprint()


def test_a_published_folder_is_read_from_its_rows_alone(make, tmp_path):
    dataset = make(end_token=True)  # so small that every ID triple is a probe and no role is lost
    write_grokked(dataset, tmp_path)
    (tmp_path / "meta.json").unlink()
    read = read_grokked(tmp_path)
    assert read.fingerprint() == dataset.fingerprint()  # the seed also happens to be 0
    plain = read_grokked(tmp_path, end_token=False)
    assert plain.vocab == dataset.vocab[:-1] and plain.n_ctx == 3


def test_roles_of_a_published_folder(make, tmp_path):
    dataset = make(phi=0.1, probes=10)
    write_grokked(dataset, tmp_path)
    (tmp_path / "meta.json").unlink()
    read = read_grokked(tmp_path, end_token=False)
    # I facts are used by a training chain or probed as ID triples. Other I facts are
    # indistinguishable from O facts.
    inside = dataset.exposure.sum(1) > 0
    inside[dataset.truth["fact1"][dataset.probes("id_triples")]] = True
    assert ((read.world.facts.role == ROLES.index("I")) == inside).all()
    assert np.array_equal(read.world.tail, dataset.world.tail)
    assert len(read.rows("id_triples")) == inside.sum()
    assert read.n_train == dataset.n_train and read.probe.sum() == dataset.probe.sum()


def test_a_changed_folder_is_read_afresh(make, folder):
    rows = read(folder / "train.json")
    dropped = rows.pop()
    (folder / "train.json").write_text(json.dumps(rows))
    test = [r for r in read(folder / "test.json") if r["input_text"] != dropped["input_text"]]
    (folder / "test.json").write_text(json.dumps(test))
    with pytest.warns(UserWarning, match="changed after it was written"):
        changed = read_grokked(folder)
    assert changed.n_train == make().n_train - 1


def test_a_meta_file_of_somebody_else_is_passed_over(folder):
    (folder / "meta.json").write_text('{"author": "somebody"}')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_grokked(folder).vocab[-1] == "</a>"


@pytest.mark.parametrize(
    "change",
    [
        {"tails": [1]},
        {"tails": None},
        {"roles": "I"},
        {"roles": "IX"},
        {"heads": "abc"},
        lambda meta: {"heads": [99, *meta["heads"][1:]]},
        lambda meta: {"tails": [99, *meta["tails"][1:]]},
        lambda meta: {"tails": [-2, *meta["tails"][1:]]},
        lambda meta: {"heads": [10**12, *meta["heads"][1:]]},
    ],
)
def test_a_damaged_meta_file_is_named(folder, change):
    path = folder / "meta.json"
    meta = read(path)
    path.write_text(json.dumps(meta | (change(meta) if callable(change) else change)))
    with pytest.raises(InputError, match=r"meta\.json is damaged"):
        read_grokked(folder)


def test_a_folder_of_chains_alone_is_refused(folder):
    for name in ("train", "test", "valid"):
        rows = read(folder / f"{name}.json")
        chains = [row for row in rows if row["input_text"].count(">") > 2]
        (folder / f"{name}.json").write_text(json.dumps(chains))
    (folder / "meta.json").unlink()
    with pytest.raises(InputError, match="contains no atomic rows, but at least one is needed"):
        read_grokked(folder)


@pytest.mark.parametrize("name", ["train.json", "valid.json", "test.json", "vocab.json"])
def test_missing_and_cut_files_are_named(folder, name):
    text = (folder / name).read_text()
    (folder / name).write_text(text[: len(text) // 2])
    with pytest.raises(InputError, match=f"{name} is not complete, valid JSON"):
        read_grokked(folder)
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"{name} does not exist"):
        read_grokked(folder)


def broken(text, **changes):
    return {"input_text": text, "target_text": f"{text}<e_1></a>", **changes}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (broken("<e_99><r_0>"), "train.json, row 2: unknown token '<e_99>'"),
        (broken("<e_1><r_77>"), "train.json, row 2: unknown token '<r_77>'"),
        (broken("<e_1>, <r_0>"), "train.json, row 2: unknown token ', <r_0>'"),
        (broken("<e_1><r_0>", target_text="<e_1></a>"), "row 2: target_text '<e_1></a>' must be"),
        (broken("<e_1><r_0>", target_text="<e_1><r_0><e_1>"), "row 2: target_text .* and </a>"),
        (
            broken("<r_0><e_1>"),
            "row 2: .* must consist of an entity, relations, an entity and </a>",
        ),
        (
            broken("<e_1><r_0>", target_text="<e_1><r_0></a>"),
            "row 2: .* must consist of an entity, rel",
        ),
        (broken("<e_1>"), "row 2: .* must consist of an entity, relations"),
        ({"question": "why?"}, r"train.json must be a list of rows .* KeyError\('input_text'\)"),
        (["<e_1>"], "train.json must be a list of rows with the fields input_text, .* TypeError"),
    ],
)
def test_a_bad_row_is_named(folder, row, message):
    rows = read(folder / "train.json")
    rows[2] = row
    (folder / "train.json").write_text(json.dumps(rows))
    with pytest.raises(InputError, match=message):
        read_grokked(folder)


def edit(path, change):
    rows = read(path)
    change(rows)
    path.write_text(json.dumps(rows))


@pytest.mark.filterwarnings("ignore:.*changed after it was written")
@pytest.mark.filterwarnings("ignore:.*no atomic row states")
def test_rows_that_do_not_fit_together_are_named(make, folder):
    test, train = folder / "test.json", folder / "train.json"
    original = test.read_text(), train.read_text()

    def check(message):
        with pytest.raises(InputError, match=message):
            read_grokked(folder)
        test.write_text(original[0])
        train.write_text(original[1])

    edit(train, lambda rows: rows.append(broken("<e_1><r_0><r_1><r_2><r_3>")))
    check(
        r"train.json, row \d+: no atomic row says|row \d+: .* \d hops, but all chains must have 4"
    )
    leak = next(row["input_text"] for row in read(test) if row["type"] == "Test-II")
    edit(train, lambda rows: rows.append(broken(leak)))
    check(r"test.json, row \d+: .* test_ii in test.json, but in the split train_ii in train")
    edit(test, lambda rows: rows[-1].update(type="Train-II"))
    check(r"test.json, row \d+: .* is in the training split train_ii, but not in train.json")
    answer = int(read(train)[0]["target_text"].split("<e_")[2].split(">")[0])
    prompt = read(train)[0]["input_text"]
    other = {"input_text": prompt, "target_text": f"{prompt}<e_{(answer + 1) % 20}></a>"}
    edit(train, lambda rows: rows.append(other))
    check("<e_.* has different answers in two rows")
    edit(train, lambda rows: rows.pop(0))
    check("no atomic row says where hop|but not in train.json")
    train.write_text("[]")
    check("train.json contains no rows")
    for bad in ({}, ["<e_0>"], ["<e_1>", "<r_0>"], [1, 2]):
        (folder / "vocab.json").write_text(json.dumps(bad))
        check("vocab.json (must be a JSON list of tokens|does not contain <[er]_0>)")


def test_what_has_no_place_is_refused(make, tmp_path):
    with pytest.raises(InputError, match="do not have the split 'test_io', only id_triples"):
        write_grokked(make(), tmp_path / "data", wang_types=True)
    dataset = make()
    dataset.probe[-1] = False
    with pytest.raises(InputError, match="some test rows of this dataset are not probes"):
        write_grokked(dataset, tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing", ["write_text", "replace"])
def test_a_failed_write_leaves_nothing(make, tmp_path, monkeypatch, failing):
    calls = []

    def fail(*args, **kwargs):
        calls.append(args)
        if failing == "replace" or len(calls) == 3:
            raise OSError("disk full")
        return original(*args, **kwargs)

    owner = os if failing == "replace" else Path
    original = getattr(owner, failing)
    monkeypatch.setattr(owner, failing, fail)
    with pytest.raises(OSError, match="disk full"):
        write_grokked(make(), tmp_path / "data")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    assert [p.name for p in tmp_path.iterdir()] in ([], ["data"])


def test_type_names():
    for split, ye in [
        ("id_triples", "ID Triples"),
        ("ood_triples", "OOD Triples"),
        ("train_iii", "Train-III"),
        ("test_ii_sr", "Test-II-SR"),
        ("held_out_id_triples", "Held-out ID Triples"),
    ]:
        assert type_name(split) == ye and split_name(ye) == split
    assert split_name("test_inferred_iid") == "test_ii"
