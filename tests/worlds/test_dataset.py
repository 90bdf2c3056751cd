import dataclasses
import io
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from implicit_reasoning.errors import InputError
from implicit_reasoning.worlds import Dataset, coverage, make_rows, prefix_keys


def assert_same(a, b):
    """Check that every field is equal, including dtypes."""
    for field in ("tokens", "targets", "split", "probe"):
        left, right = getattr(a, field), getattr(b, field)
        assert left.dtype == right.dtype and np.array_equal(left, right)
    assert (a.splits, a.n_train, a.vocab) == (b.splits, b.n_train, b.vocab)
    assert a.positions == b.positions
    assert list(a.truth) == list(b.truth)
    for name, column in a.truth.items():
        assert column.dtype == b.truth[name].dtype == np.int32
        assert np.array_equal(column, b.truth[name])
    assert np.array_equal(a.world.tail, b.world.tail) and a.world.seed == b.world.seed
    assert np.array_equal(a.world.role, b.world.role)


@pytest.fixture(scope="module")
def dataset(make):
    return make()


def test_rows_probes_and_sizes(make):
    dataset = make(probes=5)
    assert sum(dataset.sizes().values()) == len(dataset)
    for split, size in dataset.sizes().items():
        rows = dataset.rows(split)
        assert len(rows) == size and (dataset.split[rows] == dataset.splits.index(split)).all()
        assert dataset.probes(split).tolist() == rows[:5].tolist()
    assert dataset.n_vocab == len(dataset.vocab) == 26 and dataset.n_ctx == 3
    assert dataset.vocab[0] == "<e_0>" and dataset.vocab[20] == "<r_0>"
    with pytest.raises(
        InputError, match="'test_xx'; the splits of this dataset are id_triples, ood_"
    ):
        dataset.rows("test_xx")


def test_the_end_token_lengthens_rows_and_vocabulary(make):
    dataset = make(end_token=True)
    assert dataset.vocab[-1] == "</a>" and dataset.n_vocab == 27 and dataset.n_ctx == 4
    assert "</a>" not in make().vocab


def test_the_bridge_is_between_two_hops_only(dataset):
    chain = dataset.truth["position"] == 2
    assert (dataset.bridge[chain] == dataset.truth["e2"][chain]).all()
    assert (dataset.bridge[~chain] == -1).all() and (~chain).any()


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=12))
def test_prefix_keys_tell_prefixes_apart(rows):
    tokens = np.array(rows, np.int32)
    small, huge = prefix_keys(tokens, 4), prefix_keys(tokens, 2**31)  # 2**93 would overflow
    for keys in (small, huge):
        for place in range(3):
            for i, j in np.ndindex(len(rows), len(rows)):
                same = rows[i][: place + 1] == rows[j][: place + 1]
                assert (keys[i, place] == keys[j, place]) == same


def test_save_and_load_without_loss(make, tmp_path):
    kinds: list[dict] = [
        {},
        {"end_token": True, "hops": 3},
        {"ood_fraction": 0},
        {"name": "shadow"},
    ]
    for number, changes in enumerate([*kinds, {"names": 5}, {"name": "second_hop_restricted"}]):
        dataset = make(**changes)
        path = tmp_path / f"{number}" / "world.npz"
        dataset.save(path)
        loaded = Dataset.load(path)
        assert_same(dataset, loaded)
        assert loaded.fingerprint() == dataset.fingerprint()
        assert [p.name for p in path.parent.iterdir()] == ["world.npz"]


def test_the_fingerprint_is_of_the_contents(make):
    fingerprint = make().fingerprint()
    assert fingerprint == make().fingerprint()
    # This value is pinned, because a change of it changes the fingerprint of every saved dataset.
    assert fingerprint.startswith("8dadf5feafe15723")
    others = [make(world_seed=1), make(phi=1.6), make(probes=9), make(end_token=True)]
    others.append(dataclasses.replace(make(), vocab=("<e_x>", *make().vocab[1:])))
    others.append(dataclasses.replace(make(), positions=("a", "b", "c")))
    assert len({fingerprint, *(other.fingerprint() for other in others)}) == 7


def test_a_dataset_without_a_world(dataset, tmp_path):
    rows = dataset.truth["position"], dataset.truth["answer"]
    bare = dataclasses.replace(
        dataset, world=None, truth=dict(zip(("position", "answer"), rows, strict=True))
    )
    bare.save(tmp_path / "world.npz")
    assert Dataset.load(tmp_path / "world.npz").world is None
    assert coverage(bare) is None
    with pytest.raises(
        InputError, match="has no bridge entities: its task does not consist of chains"
    ):
        _ = bare.bridge


def test_positions_are_those_of_the_longest_prompt(make):
    for changes in ({}, {"hops": 3, "phi": 0.5}, {"order": "r r e"}, {"names": 5}):
        dataset = make(**changes)
        assert len(dataset.positions) == dataset.truth["position"].max() + 1
    assert make(names=5).positions == ("e1.first", "e1.last", "r1", "r2")
    assert make(order="r r e").positions == ("r1", "r2", "e1")


@pytest.mark.parametrize("names", [0, 5])
def test_answers_are_what_is_supervised(make, names):
    dataset = make(names=names)
    assert dataset.answers.shape == (len(dataset), 2 if names else 1)
    for row, (answer, places) in enumerate(
        zip(dataset.answers, dataset.answer_positions, strict=True)
    ):
        assert dataset.targets[row, places].tolist() == answer.tolist()
        assert np.flatnonzero(dataset.targets[row] >= 0).tolist() == places.tolist()


@given(n_prompt=st.integers(1, 3), n_answer=st.integers(1, 3), end=st.sampled_from([None, 9]))
def test_rows_from_columns(n_prompt, n_answer, end):
    prompt = [np.array([10 + i, 20 + i]) for i in range(n_prompt)]
    answer = [np.array([30 + i, 40 + i]) for i in range(n_answer)]
    tokens, targets, truth = make_rows(prompt, answer, {"kind": np.array([7, 8])}, end)
    asked, said = [c.tolist() for c in prompt], [c.tolist() for c in answer]
    ending = [*said, *([] if end is None else [[end, end]])]
    assert tokens.T.tolist() == [*asked, *ending[:-1]]
    assert targets.T.tolist() == [[-1, -1]] * (n_prompt - 1) + ending
    assert truth["kind"].tolist() == [7, 8]
    for number, column in enumerate(said):
        suffix = number + 1 if number else ""
        assert truth[f"answer{suffix}"].tolist() == column
        assert truth[f"position{suffix}"].tolist() == [n_prompt - 1 + number] * 2


def test_a_file_cut_anywhere_is_refused(dataset, tmp_path):
    path = tmp_path / "world.npz"
    dataset.save(path)
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"world.npz is not a complete dataset file"):
            Dataset.load(path)


def test_a_changed_file_is_refused(dataset, tmp_path):
    path = tmp_path / "world.npz"
    dataset.save(path)
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1  # a flipped bit, which the checksum of the zip format detects
    path.write_bytes(whole)
    with pytest.raises(InputError, match=r"world\.npz"):
        Dataset.load(path)

    dataset.save(path)
    with np.load(path) as file:
        arrays = dict(file)
    arrays["tokens"][0, 0] += 1  # a valid zip file; only the fingerprint detects the change
    np.savez(path, **arrays)
    with pytest.raises(InputError, match="changed after it was written"):
        Dataset.load(path)

    np.savez(path, **(arrays | {"format_version": 99}))
    with pytest.raises(InputError, match="has format version 99, expected 2"):
        Dataset.load(path)
    del arrays["split"]
    np.savez(path, **arrays)
    with pytest.raises(InputError, match="is not a dataset file: 'split' is missing"):
        Dataset.load(path)


def test_no_flipped_bit_goes_unseen(make, tmp_path):
    dataset, path = make(n_entities=4, n_relations=3, out_degree=2, phi=0.5), tmp_path / "world.npz"
    dataset.save(path)
    whole, random = path.read_bytes(), np.random.default_rng(0)
    for place in random.integers(len(whole), size=300):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        try:  # a bit that nothing reads, such as a date in the zip directory, may flip
            assert_same(Dataset.load(path), dataset)
        except InputError as error:
            assert str(path) in str(error)


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "world.npz"
    with pytest.raises(InputError, match=r"world\.npz does not exist"):
        Dataset.load(path)
    lone_array, pickled = io.BytesIO(), io.BytesIO()
    np.save(lone_array, np.arange(3))
    np.savez(pickled, tokens=np.array([{}], object))
    for content in (b"", b"not a zip at all", lone_array.getvalue(), pickled.getvalue()):
        path.write_bytes(content)
        with pytest.raises(InputError, match="is not a complete dataset file"):
            Dataset.load(path)
    np.savez(path, weights=np.arange(3))
    with pytest.raises(InputError, match="is not a dataset file: format_version"):
        Dataset.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(
        InputError, match=r"is not a valid dataset file: the entry readme\.txt is not an"
    ):
        Dataset.load(path)


def test_a_failed_save_leaves_the_old_file(dataset, tmp_path, monkeypatch):
    path = tmp_path / "world.npz"
    dataset.save(path)
    before = path.read_bytes()

    def fail(file, **arrays):
        file.write(b"half a fi")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        dataset.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["world.npz"]
