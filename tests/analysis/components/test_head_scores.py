"""Scores of heads are what their weights and patterns say, on tasks of several kinds."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from implicit_reasoning.analysis import InMemory
from implicit_reasoning.analysis.components import head_scores
from implicit_reasoning.analysis.components.head_scores import HeadScores
from implicit_reasoning.analysis.components.rows import answer_rows
from implicit_reasoning.analysis.components.token_maps import derangement, successors
from implicit_reasoning.analysis.runner import Runner, measure
from implicit_reasoning.model import Spec, Transformer
from implicit_reasoning.worlds import build
from tests.analysis.planted_subject import dataset
from tests.model.exchange.models import initial

REPEATED = build(
    SimpleNamespace(
        **{"name": "in_context", "n_tokens": 12, "min_length": 3, "max_length": 5},
        **{"n_train": 60, "probes": 40, "world_seed": 0},
    )
)
N_TOKENS, N_POS = REPEATED.n_vocab, REPEATED.n_ctx
SIZES = {"d_vocab": N_TOKENS, "n_ctx": N_POS, "n_layers": 2, "n_heads": 2, "d_mlp": 12}
MODEL = Transformer(
    Spec(**SIZES, d_model=3 * N_TOKENS + N_POS, head_width=N_POS + N_TOKENS, normalization="none")
)


def zeros():
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)


def induction():
    """Return weights of the two heads of Elhage et al. 2021, and two heads that attend uniformly.

    The slots of the residual stream are the token, its position, the previous token, and the
    output. a0.h0 attends to the previous position and copies its token. a1.h1 attends to positions
    whose previous token is the current token, and copies their token to the output.
    """
    params, tokens, positions = zeros(), np.arange(N_TOKENS), np.arange(N_POS)
    place, before, said = N_TOKENS, N_TOKENS + N_POS, 2 * N_TOKENS + N_POS
    params["embed"]["W_E"][tokens, tokens] = 1
    params["pos_embed"]["W_pos"][positions, place + positions] = 1
    params["unembed"]["W_U"][said + tokens, tokens] = 20
    sharp = 30 * MODEL.spec.d_head**0.5
    first, second = (params["blocks"][block]["attn"] for block in "01")
    first["W_Q"][0, place + positions[1:], positions[:-1]] = sharp
    first["W_K"][0, place + positions, positions] = 1
    first["W_V"][0, tokens, tokens] = 1
    first["W_O"][0, tokens, before + tokens] = 1
    second["W_Q"][1, tokens, tokens] = sharp
    second["W_K"][1, before + tokens, tokens] = 1
    # The first position attends to itself, so its previous token is wrong. No key is there.
    second["W_Q"][1, place + positions, N_TOKENS] = sharp
    second["W_K"][1, place, N_TOKENS] = -1
    second["W_V"][1, tokens, tokens] = 1
    second["W_O"][1, tokens, said + tokens] = 1
    second["W_V"][0, tokens, tokens] = 1  # a1.h0 copies tokens to their own embeddings
    second["W_O"][0, tokens, tokens] = 1
    return params


@pytest.fixture(scope="module")
def result():
    runner = Runner(HeadScores(), MODEL)
    subject = InMemory(MODEL, REPEATED, [zeros(), induction()])
    found = measure(HeadScores(), subject, progress=False, runner=runner)
    assert runner.traces == 1
    return found


def test_the_heads_of_induction_are_found(result):
    one = result.isel(step=1).sel(group="test_repeated")
    assert one.correct == 1 and one.loss < 1e-3
    scores = one.attention.transpose("target", "block", "head")
    before, _, after = scores.values
    np.testing.assert_allclose(before[0, 0], 1, atol=1e-6)
    assert before.ravel()[1:].max() < 0.5
    np.testing.assert_allclose(after[1, 1], 1, atol=1e-6)
    assert np.delete(after.ravel(), 3).max() < 0.5
    others = one.other_keys.transpose("target", "block", "head").values
    np.testing.assert_allclose([others[0, 0, 0], others[2, 1, 1]], 0, atol=1e-6)


def test_uniform_attention_equals_its_null(result):
    zero = result.isel(step=0)
    np.testing.assert_allclose(zero.attention, zero.other_keys, atol=1e-6)
    np.testing.assert_allclose(zero.loss, np.log(N_TOKENS), atol=1e-5)
    assert (zero.copying.sel(truth="true") == 0).all()


def test_attention_by_offset(result):
    one = result.isel(step=1).sel(group="test_repeated")
    by_offset = one.offset_attention.sel(block=0, head=0)
    # The first position attends to itself, all others to the previous position.
    n_pos = one.sizes["offset"]
    np.testing.assert_allclose(by_offset.sel(offset=0), 1 / n_pos, atol=1e-6)
    np.testing.assert_allclose(by_offset.sel(offset=1), 1, atol=1e-6)
    uniform = result.isel(step=0).sel(group="test_repeated", block=0, head=0).offset_attention
    wanted = [np.mean([1 / (q + 1) for q in range(o, n_pos)]) for o in range(n_pos)]
    np.testing.assert_allclose(uniform, wanted, atol=1e-6)


def test_copying_in_the_embedding_and_in_the_unembedding(result):
    copying = result.copying.isel(step=1).sel(truth="true")
    one = {"embedding": copying.sel(space="embedding"), "said": copying.sel(space="unembedding")}
    np.testing.assert_array_equal(one["embedding"].values, [[0, 0], [1, 0]])
    np.testing.assert_array_equal(one["said"].values, [[0, 0], [0, 1]])
    assert (result.copying.isel(step=1).sel(truth="shuffled") == 0).all()  # every token is moved
    means = result.mean_copying.isel(step=1).sel(truth="true", variable="last token")
    np.testing.assert_array_equal(means.sel(space="unembedding").values, [[0, 0], [0, 1]])
    rows = answer_rows(REPEATED, 200).rows
    last = REPEATED.tokens[rows, REPEATED.truth["position"][rows]]
    assert (result.n_values == len(set(last))).all()
    assert result.successor.isnull().all() and (result.n_ordered == 0).all()


def test_rows_have_one_length():
    chosen = answer_rows(REPEATED, 7)
    ends = REPEATED.truth["position"][chosen.rows]
    assert len(set(ends)) == 1 and len(chosen.positions) == ends[0] + 1
    assert np.bincount(chosen.group).max() <= 7
    assert chosen.splits == ("train_repeated", "test_repeated")
    of_chains = answer_rows(dataset(), 5)
    assert of_chains.positions == ("e1", "r1", "r2")
    assert (dataset().truth["fact2"][of_chains.rows] >= 0).all()


SUMS = build(
    SimpleNamespace(name="modular_addition", modulus=9, train_fraction=0.6, probes=50, world_seed=0)
)


@pytest.mark.slow
def test_a_successor_head_is_found():
    """W_E, MLP0 and W_V are the identity, and W_O of a1.h0 leads to the next token."""
    n = SUMS.n_vocab
    spec = Spec(
        **{**SIZES, "d_vocab": n, "n_ctx": 3, "d_mlp": n, "n_heads": 1},
        **{"d_model": n, "act_fn": "relu", "normalization": "none"},
    )
    model = Transformer(spec)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    for matrix in (params["embed"]["W_E"], params["unembed"]["W_U"]):
        matrix[:] = np.eye(n)
    for name in ("W_in", "W_out"):
        params["blocks"]["0"]["mlp"][name][:] = np.eye(n)
    for block in "01":
        params["blocks"][block]["attn"]["W_V"][0] = np.eye(n)
    params["blocks"]["0"]["attn"]["W_O"][0] = np.eye(n)
    params["blocks"]["1"]["attn"]["W_O"][0] = np.eye(n, k=1)
    params["blocks"]["1"]["attn"]["W_O"][0, 8, 0] = 1  # 0 follows 8
    found = measure(HeadScores(), InMemory(model, SUMS, [params]), progress=False).isel(step=0)
    np.testing.assert_array_equal(found.successor.sel(truth="true", head=0), [0, 1])
    assert found.successor.sel(truth="shuffled").max() < 0.5
    assert found.n_ordered == 9
    np.testing.assert_array_equal(found.copying.sel(truth="true", block=0, head=0), [1, 1])


def test_successors_follow_the_numbers_in_names():
    following = successors(SUMS)
    np.testing.assert_array_equal(following[:9], [1, 2, 3, 4, 5, 6, 7, 8, 0])
    assert following[9] == -1  # the token of the equals sign
    alphabets = build(
        SimpleNamespace(
            **{"name": "successor", "alphabets": (5, 6), "prompt_length": 4, "n_train": 200},
            **{"holdout": 0.1, "probes": 20, "world_seed": 0},
        )
    )
    wanted = [*(1, 2, 3, 4, 0), *(6, 7, 8, 9, 10, 5), -1, -1]  # each alphabet is cyclic
    np.testing.assert_array_equal(successors(alphabets), wanted)
    years = build(
        SimpleNamespace(
            **{"name": "greater_than", "n_years": 5, "n_centuries": 4, "rows_per_start": 4},
            **{"holdout": 0.25, "probes": 20, "world_seed": 0},
        )
    )
    # The year 0 is no answer, because it is greater than no year. No year follows the last one.
    np.testing.assert_array_equal(successors(years)[:5], [-1, 2, 3, 4, -1])
    assert (successors(dataset()) == -1).all() and (successors(REPEATED) == -1).all()


def test_a_derangement_moves_every_chosen_token():
    chosen = np.array([True, False, True, True, False, True])
    found = derangement(chosen, 0)
    assert (found[chosen] != np.flatnonzero(chosen)).all()
    np.testing.assert_array_equal(found[~chosen], np.flatnonzero(~chosen))
    assert sorted(found) == list(range(6))


@pytest.mark.slow
def test_induction_that_looks_at_the_duplicate_is_noticed(monkeypatch):
    detections = dict(head_scores.DETECTIONS)
    detections["induction"] = detections["duplicate token"]
    monkeypatch.setattr(head_scores, "DETECTIONS", detections)
    found = measure(HeadScores(), InMemory(MODEL, REPEATED, [induction()]), progress=False)
    score = found.attention.sel(target="induction", block=1, head=1, group="test_repeated")
    assert score.item() < 0.1


def test_chains_have_means_of_their_variables():
    data = dataset()
    sizes = {"n_ctx": 3, "n_layers": 1, "d_model": 8, "n_heads": 2, "d_mlp": 8}
    model = Transformer(Spec(d_vocab=data.n_vocab, **sizes))
    found = measure(HeadScores(), InMemory(model, data, [initial(model)]), progress=False)
    assert list(found.variable.values) == ["e1", "r1", "e2"]
    assert found.n_values.sel(variable="r1") == data.world.n_relations
    # Only r2 can repeat an earlier token, r1; r2 itself comes after it.
    for target in ("duplicate token", "induction"):
        at = found.isel(step=0).sel(target=target)
        assert (at.attention.notnull().all(("block", "head")) == (at.exists > 0)).all()


@pytest.mark.slow
def test_figures_say_how_to_read_them(result):
    for figure in HeadScores().figures(result):
        assert "null" in figure.caption
        figure.drawing.draw_without_rendering()
