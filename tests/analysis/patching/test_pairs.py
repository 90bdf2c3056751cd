"""Built-in pairs and metrics match their definitions, and a user's own functions are checked."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.__main__ import main
from implicit_reasoning.analysis import (
    NotApplicable,
    PairBatch,
    PromptPairs,
    find_instrument,
    with_pairs,
)
from implicit_reasoning.analysis.instrument import Examples
from implicit_reasoning.analysis.patching import metrics
from implicit_reasoning.analysis.patching.pair_instrument import (
    alternate_clusters,
    limit_pairs,
    mean_by_group,
)
from implicit_reasoning.analysis.patching.pair_patching import PairPatching
from implicit_reasoning.analysis.patching.pairs import PAIRS, find_pairs, make_pairs
from implicit_reasoning.analysis.patching.query_pairs import GROUPS, SAME
from implicit_reasoning.analysis.states import another_of_group
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Spec, Transformer
from implicit_reasoning.runs import Run
from tests import shared
from tests.analysis.by_hand import dataset

DATA = dataset()
MODEL = Transformer(
    Spec(d_vocab=DATA.n_vocab, n_ctx=DATA.n_ctx, n_layers=1, d_model=4, n_heads=1, d_mlp=4)
)
ANSWER = {
    tuple(map(int, tokens[:3])): int(answer)
    for tokens, answer in zip(DATA.tokens, DATA.truth["answer"], strict=True)
}
SOME = PromptPairs(
    clean=[[0, 1], [2, 3]], corrupt=[[0, 2], [2, 4]], answer=[5, 6], corrupt_answer=[7, 8]
)


def made(name):
    return make_pairs(find_pairs(name), DATA, MODEL)


def follows(tokens):
    """Return the answers that the world implies."""
    tail, n = DATA.world.tail, DATA.world.n_entities
    return tail[tail[tokens[:, 0], tokens[:, 1] - n], tokens[:, 2] - n]


def test_bridge_pairs_differ_in_the_bridge_and_end_alike():
    pairs = made("bridge")
    np.testing.assert_array_equal(follows(pairs.clean), pairs.answer)
    np.testing.assert_array_equal(follows(pairs.corrupt), pairs.corrupt_answer)
    np.testing.assert_array_equal(pairs.clean[:, 2], pairs.corrupt[:, 2])
    assert (pairs.clean[:, :2] != pairs.corrupt[:, :2]).all()
    same = pairs.group == GROUPS.index(SAME)
    assert ((pairs.answer == pairs.corrupt_answer) == same).all()
    first = pairs.corrupt[:, :2] - np.array([0, DATA.world.n_entities])
    np.testing.assert_array_equal(pairs.clusters, DATA.world.tail[first[:, 0], first[:, 1]])


@pytest.mark.parametrize("place", range(3))
def test_exchange_pairs_differ_in_one_token_and_in_the_answer(place):
    pairs = made(f"exchange_{DATA.positions[place]}")
    differs = pairs.clean != pairs.corrupt
    assert differs[:, place].all() and differs.sum() == len(pairs) > 100
    np.testing.assert_array_equal(follows(pairs.clean), pairs.answer)
    np.testing.assert_array_equal(follows(pairs.corrupt), pairs.corrupt_answer)
    assert (pairs.answer != pairs.corrupt_answer).all()
    with pytest.raises(NotApplicable, match="have only the positions e1, r1, r2"):
        made("exchange_r3")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"clean": [1, 2]}, r"clean has shape \(2,\), expected \[pair, pos\]"),
        ({"corrupt": [[0, 1, 2], [0, 1, 2]]}, "clean prompts have 2 tokens, but corrupt prompts"),
        ({"corrupt": [[0, 1]]}, r"corrupt has shape \(1, 2\), expected \(2, 2\)"),
        ({"corrupt": [[0, 1], [0]]}, "the rows of corrupt have different lengths"),
        (
            {"clean": [[0, 1], [2, 900]]},
            "clean contains the token 900 in pair 1; use only tokens from 0",
        ),
        ({"corrupt_answer": [-1, 3]}, "corrupt_answer contains the token -1 in pair 0"),
        ({"answer": [1, 2, 3]}, r"answer has shape \(3,\), expected \(2,\)"),
        ({"clean": [[0.5, 1], [0, 1]]}, "clean has type float64, expected an integer type"),
        (
            {"positions": ["a"]},
            r"positions are \('a',\), but prompts of 2 tokens need 2 different",
        ),
        ({"group": [0, 1]}, "group contains the index 1, but groups contains only 1 names"),
        ({"group": [0]}, r"group has shape \(1,\), expected \(2,\) for 2 pairs"),
        (
            {"clusters": [-1, 0]},
            "clusters contains the number -1; numbers must be at least 0",
        ),
        (
            {"clean": np.zeros((2, 50), int), "corrupt": np.zeros((2, 50), int)},
            "prompts have 50 tokens, but the model accepts at most 3",
        ),
    ],
)
def test_wrong_pairs_are_refused_in_a_sentence(change, said):
    def my_pairs(dataset):
        return dataclasses.replace(SOME, **change)

    instrument = PairPatching(pairs=my_pairs)
    with pytest.raises(InputError, match="my_pairs returned invalid pairs: " + said):
        instrument.examples(MODEL, DATA)


def test_defaults_of_pairs_are_filled_in():
    pairs = make_pairs(find_pairs(lambda dataset: SOME), DATA, MODEL)
    assert pairs.positions == ("0", "1") and pairs.group.tolist() == [0, 0]
    assert pairs.clusters.tolist() == [0, 1]
    with pytest.raises(
        InputError, match="returned an object of type list; return an implicit_reasoning"
    ):
        # The wrong type is what the test is about.
        make_pairs(find_pairs(lambda dataset: list(dataset.splits)), DATA, MODEL)  # type: ignore


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (lambda logits, pair: logits, r"returned an array of shape \[\d+, \d+\] for logits"),
        (lambda logits, pair: logits.sum(), r"returned an array of shape \[\] for logits"),
        (lambda logits, pair: [logits[:, 0]], "returned list for logits of shape"),
        (lambda logits, pair: logits.argmax(-1), "returned numbers of type int32; a metric must"),
    ],
)
def test_wrong_metrics_are_refused_before_anything_compiles(metric, said):
    instrument = PairPatching(metrics=["probability", metric])
    with jax.log_compiles(False), pytest.raises(InputError, match=said):
        instrument.examples(MODEL, DATA)


@pytest.mark.parametrize(
    ("pairs", "chosen", "said"),
    [
        ("brigde", ["probability"], "unknown pairs 'brigde'; did you mean 'bridge'?"),
        ("bridge", ["probabilty"], "unknown metric 'probabilty'; did you mean 'probability'?"),
        ("nowhere.py:f", ["probability"], "pairs file nowhere.py does not exist"),
        ("bridge", ["nowhere:f"], "there is no metric 'nowhere'"),
        ("bridge", [], "at least one metric"),
        ("bridge", ["accuracy", "accuracy"], "without duplicates"),
    ],
)
def test_functions_that_are_not_there_are_refused(pairs, chosen, said):
    with pytest.raises(InputError, match=said.replace("?", r"\?")):
        PairPatching(pairs, chosen)


def test_a_function_that_is_not_in_the_file_is_named_with_the_nearest(tmp_path):
    (tmp_path / "mine.py").write_text("def my_pairs(dataset): ...\n")
    with pytest.raises(InputError, match=r"named 'my_pears'; did you mean 'my_pairs'\?"):
        find_pairs(f"{tmp_path / 'mine.py'}:my_pears")


def test_options_name_the_functions_and_change_with_their_source(tmp_path):
    path = tmp_path / "mine.py"

    def options(text):
        path.write_text(text)
        return PairPatching(f"{path}:f", ["accuracy", f"{path}:g"]).options()

    text = "def f(dataset): ...\ndef g(logits, pair): return logits[:, 0]\n"
    one, same, other = options(text), options(text), options(text.replace("0", "1"))
    assert one == same != other
    assert one["pairs"]["name"] == "mine.py:f"
    assert [metric["name"] for metric in one["metrics"]] == ["accuracy", "mine.py:g"]
    assert PairPatching().options()["pairs"] == {"name": "bridge", "source": ""}


def test_metrics_are_those_of_numpy():
    random = np.random.default_rng(0)
    logits, clean = random.normal(size=(2, 4, 7)).astype(np.float32)
    answer, other = np.array([0, 1, 2, 3]), np.array([4, 5, 6, 0])
    logits[0, 0] = 9
    tokens = jnp.zeros((4, 2), jnp.int32)
    pair = PairBatch(tokens, tokens, *map(jnp.asarray, (answer, other, clean, clean)))
    row = np.arange(4)
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (logits, clean))
    expected = {
        "logit_difference": logits[row, answer] - logits[row, other],
        "probability": p[row, answer],
        "log_probability": np.log(p[row, answer]),
        "accuracy": logits.argmax(1) == answer,
        "divergence": (q * np.log(q / p)).sum(1),
    }
    assert expected.keys() == metrics.METRICS.keys()
    found = metrics.over_cells(
        metrics.find_metrics(list(expected)), jnp.stack([logits, clean]), pair
    )
    for of_metric, wanted in zip(found, expected.values(), strict=True):
        np.testing.assert_allclose(of_metric[0], wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[-1][1], 0, atol=1e-6)


def test_the_other_pair_is_of_the_group_and_another():
    group = np.array([0, 1, 0, 1, 0, 2])
    other = another_of_group(group, np.random.default_rng(0))
    np.testing.assert_array_equal(group[other], group)
    assert (other[:5] != np.arange(5)).all() and other[5] == 5
    assert sorted(other) == list(range(6))


def test_few_pairs_are_from_as_many_clusters_as_possible():
    group = np.repeat([0, 1], [8, 4])
    clusters = np.array([5, 5, 5, 5, 7, 7, 9, 9, 5, 5, 6, 6])
    inputs = {"place": np.arange(12), "member": group[:, None] == np.arange(2)}
    made = limit_pairs(alternate_clusters(Examples(inputs, ("a", "b"), group, clusters)), 4)
    np.testing.assert_array_equal(made.inputs["place"], [0, 4, 6, 1, 8, 10, 9, 11])
    np.testing.assert_array_equal(made.clusters, [5, 7, 9, 5, 5, 6, 5, 6])
    np.testing.assert_array_equal(made.group, [0] * 4 + [1] * 4)


def test_means_by_group_leave_out_what_does_not_count():
    member = np.eye(2, dtype=bool)[[0, 0, 1, 1, 0]]
    values = jnp.array([[1.0, 3.0, 5.0, np.nan, 100.0]])
    counted = jnp.array([[True, True, True, False, False]])
    np.testing.assert_allclose(mean_by_group(values, counted, member), [[2, 2, 5, 5, 2]])


def test_pairs_are_for_instruments_that_take_them():
    (patching,) = with_pairs([], "exchange_r1")
    assert patching.name == "pair_patching"
    assert patching.options()["pairs"]["name"] == "exchange_r1"
    assert patching.found_at == find_instrument("pair_patching").found_at
    with pytest.raises(InputError, match="instrument 'lens' does not accept pairs or metrics"):
        with_pairs(["lens"], None, ["accuracy"])
    assert set(PAIRS) >= {"bridge", "exchange_e1", "exchange_r1", "exchange_r2"}


MINE = """
import numpy as np
from implicit_reasoning.analysis import PromptPairs

def first_rows(dataset):
    rows = dataset.probes("train_ii")[:8]
    clean = dataset.tokens[rows, :3]
    answer = dataset.truth["answer"][rows]
    return PromptPairs(clean, clean[::-1], answer, answer[::-1], positions=dataset.positions)

def margin(logits, pair):
    return logits.max(-1) - logits.mean(-1)
"""


@pytest.mark.slow
def test_the_command_takes_functions_of_ones_own(tmp_path, capsys):
    run = Run(shared.finished_copy(tmp_path / "run"))
    mine = tmp_path / "mine.py"
    mine.write_text(MINE)
    command = ["analyze", f"--workdir={run.files.workdir}", "--steps=last"]
    command += [f"--pairs={mine}:first_rows", f"--metrics=accuracy,{mine}:margin"]
    assert main(command) == 0
    result = run.result("pair_patching")
    assert result["metric"].values.tolist() == ["accuracy", "mine.py:margin"]
    assert result["group"].values.tolist() == ["pairs"]
    assert result["correct"].notnull().all() and int(result["n_examples"][0]) == 8
    assert result.attrs["options"]["pairs"]["name"] == "mine.py:first_rows"
    # Another function with the same name gives another result.
    mine.write_text(MINE.replace("[:8]", "[:7]"))
    assert main(command) == 2
    assert "has options" in capsys.readouterr().err
