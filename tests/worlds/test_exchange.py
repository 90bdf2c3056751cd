import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest

from implicit_reasoning.errors import InputError
from implicit_reasoning.worlds import ROLES, read_grokked, write_grokked
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
    # Byte for byte what json.dump writes, as the published notebooks do.
    assert (folder / "train.json").read_text() == json.dumps(train)
    assert (folder / "test.json").read_text() == json.dumps(test)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"end_token": True},
        {"probes": 5, "world_seed": 3},
        {"phi": 0.1},  # most I facts are in no training chain
        {"ood_fraction": 0.0},  # and so empty splits
        {"hops": 3, "end_token": True},
        {"mixed_chains": False},
    ],
)
def test_round_trip_without_loss(make, tmp_path, changes):
    dataset = make(**changes)
    write_grokked(dataset, tmp_path / "data")
    assert read_grokked(tmp_path / "data").fingerprint() == dataset.fingerprint()


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
    dataset = make(end_token=True)  # so small that every ID triple is a probe: no role is lost
    write_grokked(dataset, tmp_path)
    (tmp_path / "meta.json").unlink()
    read = read_grokked(tmp_path)
    assert read.fingerprint() == dataset.fingerprint()  # the seed happens to be 0 as well
    plain = read_grokked(tmp_path, end_token=False)
    assert plain.vocab == dataset.vocab[:-1] and plain.n_ctx == 3


def test_roles_of_a_published_folder(make, tmp_path):
    dataset = make(phi=0.1, probes=10)
    write_grokked(dataset, tmp_path)
    (tmp_path / "meta.json").unlink()
    read = read_grokked(tmp_path, end_token=False)
    # I: used by a training chain, or probed as an ID triple; the others cannot be told from O.
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
        (broken("<e_1><r_0>", target_text="<e_1></a>"), "row 2: target_text '<e_1></a>' is not"),
        (broken("<e_1><r_0>", target_text="<e_1><r_0><e_1>"), "row 2: target_text .* and </a>"),
        (broken("<r_0><e_1>"), "row 2: .* is not an entity, relations, an entity and </a>"),
        (broken("<e_1><r_0>", target_text="<e_1><r_0></a>"), "row 2: .* is not an entity, rel"),
        (broken("<e_1>"), "row 2: .* is not an entity, relations"),
        ({"question": "why?"}, r"train.json is not a list of rows .* KeyError\('input_text'\)"),
        (["<e_1>"], "train.json is not a list of rows in this layout: TypeError"),
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
def test_rows_that_do_not_fit_together_are_named(make, folder):
    test, train = folder / "test.json", folder / "train.json"
    original = test.read_text(), train.read_text()

    def check(message):
        with pytest.raises(InputError, match=message):
            read_grokked(folder)
        test.write_text(original[0])
        train.write_text(original[1])

    edit(train, lambda rows: rows.append(broken("<e_1><r_0><r_1><r_2><r_3>")))
    check(r"train.json, row \d+: no atomic row says|row \d+: \d hops, but other rows have 4")
    leak = next(row["input_text"] for row in read(test) if row["type"] == "Test-II")
    edit(train, lambda rows: rows.append(broken(leak)))
    check(r"test.json, row \d+: .* of test_ii is in train.json, as train_ii")
    edit(test, lambda rows: rows[-1].update(type="Train-II"))
    check(r"test.json, row \d+: .* of train_ii is not in train.json")
    answer = int(read(train)[0]["target_text"].split("<e_")[2].split(">")[0])
    prompt = read(train)[0]["input_text"]
    other = {"input_text": prompt, "target_text": f"{prompt}<e_{(answer + 1) % 20}></a>"}
    edit(train, lambda rows: rows.append(other))
    check("another row gives <e_.* another answer")
    edit(train, lambda rows: rows.pop(0))
    check("no atomic row says where hop|is not in train.json")
    train.write_text("[]")
    check("train.json has no rows")
    for bad in ({}, ["<e_0>"], ["<e_1>", "<r_0>"], [1, 2]):
        (folder / "vocab.json").write_text(json.dumps(bad))
        check("vocab.json (is not a list of tokens|has no <[er]_0>)")


def test_what_has_no_place_is_refused(make, tmp_path):
    with pytest.raises(InputError, match="no type for split 'test_io', only for id_triples"):
        write_grokked(make(), tmp_path / "data", wang_types=True)
    dataset = make()
    dataset.probe[-1] = False
    with pytest.raises(InputError, match="test rows that are not probes"):
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
    ]:
        assert type_name(split) == ye and split_name(ye) == split
    assert split_name("test_inferred_iid") == "test_ii"
