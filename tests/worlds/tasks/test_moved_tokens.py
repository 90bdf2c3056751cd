"""Tasks in which a head must move a known token, against the rules written out in plain Python."""

import itertools
from collections import Counter, defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from implicit_reasoning.errors import InputError
from implicit_reasoning.worlds import build, shortcuts

SETTINGS = {
    "successor": {"alphabets": (4, 3, 5), "prompt_length": 4, "n_train": 150, "holdout": 0.2},
    "greater_than": {"n_years": 9, "n_centuries": 5, "rows_per_start": 6, "holdout": 0.4},
    "indirect_object": {"n_names": 7, "n_fillers": 3, "prompt_length": 6, "n_train": 300}
    | {"holdout": 0.3},
}


def made(name, **changes):
    settings = {"world_seed": 0, "probes": 50} | SETTINGS[name]
    return build(SimpleNamespace(name=name, **(settings | changes)))


def rows_of(dataset):
    """Yield the split of each row, its words, the answer, and its truth."""
    for row in range(len(dataset)):
        truth = {name: int(column[row]) for name, column in dataset.truth.items()}
        words = [dataset.vocab[token].strip("<>") for token in dataset.tokens[row]]
        answer = dataset.vocab[truth["answer"]].strip("<>")
        assert dataset.targets[row].tolist() == [-1] * (len(words) - 1) + [truth["answer"]]
        assert truth["position"] == len(words) - 1
        assert dataset.tokens[row, truth["source_position"]] == truth["source_token"]
        yield dataset.splits[dataset.split[row]], words, answer, truth


def contexts(dataset, context):
    """Return the contexts of the training rows and of the test rows."""
    found = defaultdict(set)
    for split, words, _, truth in rows_of(dataset):
        found[split.startswith("train")].add(context(words, truth))
    return found[True], found[False]


# successor ----------------------------------------------------------------------------------------


def runs_in(words):
    """Return `{alphabet: (places, values)}` of the tokens of a prompt, without the last one."""
    found = defaultdict(lambda: ([], []))
    for place, word in enumerate(words[:-1]):
        alphabet, value = map(int, word.split("_"))
        found[alphabet][0].append(place)
        found[alphabet][1].append(value)
    return dict(found)


def ends_of(words, truth):
    return frozenset((a, values[-1]) for a, (_, values) in runs_in(words).items())


@given(
    seed=st.integers(0, 99),
    alphabets=st.sampled_from([(4, 3, 5), (3, 3), (6, 4, 3)]),
    length=st.integers(3, 4),
)
def test_a_run_goes_on_in_the_order_of_its_alphabet(seed, alphabets, length):
    dataset = made(
        "successor",
        **{"world_seed": seed, "alphabets": alphabets, "prompt_length": length},
        **{"n_train": 20, "holdout": 0.0},
    )
    assert dataset.sizes()["train_runs"] == 20 and not len(dataset.rows("test_runs"))
    for _, words, answer, truth in rows_of(dataset):
        runs, asked = runs_in(words), int(words[-1].removeprefix("next_"))
        assert len(runs) == 2 and len(words) == length
        for alphabet, (_, values) in runs.items():
            steps = [(values[0] + step) % alphabets[alphabet] for step in range(len(values))]
            assert values == steps and len(values) < alphabets[alphabet]
        [other] = runs.keys() - {asked}
        for prefix, alphabet in (("", asked), ("other_", other)):
            assert truth[f"{prefix}alphabet"] == alphabet
            assert truth[f"{prefix}value"] == runs[alphabet][1][-1]
        assert truth["source_position"] == runs[asked][0][-1]
        assert truth["other_position"] == runs[other][0][-1]
        assert answer == f"{asked}_{(truth['value'] + 1) % alphabets[asked]}"


def test_all_rows_of_a_small_world_are_drawn_once():
    alphabets = (4, 3, 5)
    pairs = 4 * 3 + 4 * 5 + 3 * 5
    wanted = pairs * 6 * 2  # six ways to mix two runs in three tokens, and two to ask
    dataset = made("successor", n_train=wanted, holdout=0.0)
    assert len({tuple(row) for row in dataset.tokens.tolist()}) == len(dataset) == wanted
    mixed = Counter(
        tuple(word.split("_")[0] for word in words[:-1]) for _, words, _, _ in rows_of(dataset)
    )
    assert mixed.keys() == {
        shape for shape in itertools.product("012", repeat=3) if len(set(shape)) == 2
    }
    for shape, count in mixed.items():
        assert count == 2 * np.prod([alphabets[int(a)] for a in set(shape)])
    with pytest.raises(InputError, match=r"n_train = 565 is larger than the number .* 564"):
        made("successor", n_train=wanted + 1, holdout=0.0)


# greater_than ------------------------------------------------------------------------------------


@given(seed=st.integers(0, 99), n_years=st.integers(2, 9), each=st.integers(1, 12))
def test_every_end_is_greater_and_ends_are_spread_evenly(seed, n_years, each):
    dataset = made("greater_than", world_seed=seed, n_years=n_years, rows_per_start=each)
    ends = defaultdict(list)
    for split, words, answer, truth in rows_of(dataset):
        century, start, again = words
        assert century == again == f"century_{truth['century']}"
        assert int(start) == truth["start"] < int(answer) == truth["end"] < n_years
        right = [dataset.vocab[t] for t in range(truth["right_first"], truth["right_last"] + 1)]
        wrong = [dataset.vocab[t] for t in range(truth["wrong_first"], truth["wrong_last"] + 1)]
        years = range(n_years)
        assert right == [f"<{year}>" for year in years if year > truth["start"]]
        assert wrong == [f"<{year}>" for year in years if year <= truth["start"]]
        ends[split, truth["century"], truth["start"]].append(truth["end"])
    # Two of five centuries are held out for each start.
    by_start = Counter((split, start) for split, _, start in ends)
    assert by_start == {
        (split, start): count
        for split, count in (("train_years", 3), ("test_years", 2))
        for start in range(n_years - 1)
    }
    for (split, _, start), found in ends.items():
        assert len(found) == (each if split == "train_years" else 1)
        n_right, counts = n_years - 1 - start, Counter(found)
        assert max(counts.values()) <= -(-len(found) // n_right) + 1
        if len(found) >= 2 * n_right:
            assert len(counts) == n_right


def test_ends_are_uniform():
    dataset = made("greater_than", n_centuries=400, rows_per_start=7, holdout=0.0)
    for start in range(8):
        ends = dataset.truth["end"][dataset.truth["start"] == start]
        counts = np.bincount(ends, minlength=9)[start + 1 :]
        assert np.abs(counts - counts.mean()).max() < 5 * np.sqrt(counts.mean())


# indirect_object ---------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 99),
    names=st.integers(2, 7),
    length=st.integers(5, 8),
    fillers=st.integers(3, 5),
)
def test_the_answer_is_the_name_that_occurs_once(seed, names, length, fillers):
    dataset = made(
        "indirect_object",
        **{"world_seed": seed, "n_names": names, "n_fillers": fillers, "prompt_length": length},
        **{"n_train": 12, "probes": 5, "holdout": 0.0},
    )
    for _, words, answer, truth in rows_of(dataset):
        placed = [(n, word) for n, word in enumerate(words) if word.startswith("name_")]
        (first, one), (second, two), (third, three) = placed
        assert words[-1] == "to" and one != two and three in (one, two)
        order = "BABA" if three == one else "ABBA"
        assert truth["order"] == ("ABBA", "BABA").index(order)
        assert answer == (two if order == "BABA" else one)
        assert truth["source_position"] == (second if order == "BABA" else first)
        assert truth["repeated_position"] == (first if order == "BABA" else second)
        assert truth["duplicate_position"] == third
        assert dataset.vocab[truth["repeated_token"]] == f"<{three}>"


def test_prompts_are_uniform_and_different():
    dataset = made("indirect_object", n_names=4, n_train=4000, n_fillers=60, holdout=0.0)
    rows = list(rows_of(dataset))
    assert len({tuple(words) for _, words, _, _ in rows}) == len(rows) == 4000
    drawn = Counter()
    for _, words, answer, truth in rows:
        drawn["order", truth["order"]] += 1
        drawn["names", answer, truth["repeated_token"]] += 1
        drawn["places", *(n for n, word in enumerate(words) if word.startswith("name_"))] += 1
    for kind, count in (("order", 2), ("names", 12), ("places", 10)):
        found = [n for key, n in drawn.items() if key[0] == kind]
        assert len(found) == count
        assert np.abs(np.array(found) - 4000 / count).max() < 5 * np.sqrt(4000 / count)


# all ---------------------------------------------------------------------------------------------

CONTEXTS = {
    "successor": ends_of,
    "greater_than": lambda words, truth: (words[0], words[1]),
    "indirect_object": lambda words, truth: frozenset(w for w in words if "name" in w),
}
N_CONTEXTS = {"successor": 47, "greater_than": 40, "indirect_object": 21}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("seed", [0, 1])
def test_contexts_of_test_rows_are_never_trained(name, seed):
    dataset = made(name, world_seed=seed)
    trained, tested = contexts(dataset, CONTEXTS[name])
    assert trained and tested and not trained & tested
    held_out = N_CONTEXTS[name] * SETTINGS[name]["holdout"]
    assert len(tested) <= round(held_out) and len(trained) <= N_CONTEXTS[name] - round(held_out)
    assert set(dataset.truth["answer"][dataset.n_train :]) <= set(
        dataset.truth["answer"][: dataset.n_train]
    )
    assert shortcuts(dataset) == {} and dataset.world is None
    again = made(name, world_seed=seed)
    assert again.fingerprint() == dataset.fingerprint() != made(name, world_seed=7).fingerprint()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("successor", {"alphabets": (7,)}, r"alphabets = \(7,\) must be at least two sizes"),
        ("successor", {"prompt_length": 5}, r"= 5 .* from 3 to 4 \(smallest alphabet \+ 1, or"),
        ("successor", {"n_train": 0}, "n_train = 0 .* at least 1"),
        ("successor", {"n_train": 5}, "answers of test rows are never trained on, for example <"),
        ("greater_than", {"n_years": 1}, "n_years = 1 .* at least 2"),
        ("greater_than", {"holdout": 1.5}, "holdout = 1.5 .* from 0 to 1"),
        ("greater_than", {"rows_per_start": 0}, "rows_per_start = 0"),
        ("indirect_object", {"prompt_length": 3}, "prompt_length = 3 .* from 4 to 64"),
        ("indirect_object", {"n_names": 1}, "n_names = 1"),
        ("indirect_object", {"n_train": 60_000}, "training rows were found, fewer than n_train"),
        ("indirect_object", {"n_train": 3}, "answers of test rows are never trained on"),
    ],
)
def test_settings_out_of_bounds_are_named(name, changes, message):
    with pytest.raises(InputError, match=message):
        made(name, **changes)
