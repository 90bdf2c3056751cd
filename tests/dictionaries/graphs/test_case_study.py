"""The rule of the blind case study finds what hand-made features stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.dictionaries.graphs.case_study import (
    guess_features,
    judge_guesses,
    measure_guesses,
)
from implicit_reasoning.dictionaries.graphs.labels import TrueValues
from implicit_reasoning.dictionaries.replacement import Weights
from implicit_reasoning.model import Spec, Transformer
from tests.dictionaries.graphs.planted import Relay, neuron_set

N_ENTITIES, N_RELATIONS = 12, 4
POSITIONS = ("e1", "r1", "r2")
SPEC = Spec(
    d_vocab=N_ENTITIES + N_RELATIONS,
    n_ctx=3,
    n_layers=2,
    d_model=48,
    n_heads=2,
    d_mlp=8,
    act_fn="relu",
    normalization="none",
    init_std=0.01,
)
E1, R1, E2, R2, ANSWER = range(5)


@pytest.fixture(scope="module")
def case():
    """Return a model whose embeddings are one-hot, features of all kinds, and true values."""
    random = np.random.default_rng(0)
    model = Transformer(SPEC)
    params = jax.jit(model.init)(jax.random.key(0))
    width, vocab = SPEC.d_model, SPEC.d_vocab
    params["embed"]["W_E"] = jnp.eye(vocab, width)
    params["unembed"]["W_U"] = jnp.eye(vocab, width, 2 * vocab).T
    head = params["blocks"]["0"]["attn"]  # Head 0 moves the embedding to dimensions of its own.
    head["W_V"] = head["W_V"].at[0].set(jnp.eye(width, head["W_V"].shape[2]))
    head["W_O"] = head["W_O"].at[0].set(jnp.eye(head["W_V"].shape[2], width, vocab))

    # The bridge of (e1, r1) depends on both: e1 // 4 + 3 * (r1 // 2), so it is additive.
    def bridge(e1, r1):
        return e1 // 4 + 3 * (r1 // 2)

    encoder = np.zeros((2, width, 6))
    decoder = np.zeros((2, 6, 2, width))
    encoder[0, 5, 0] = 1  # entity 5, at the own position
    encoder[0, N_ENTITIES + 2, 1] = 1  # relation 2, at the own position
    encoder[0, vocab + 3, 2] = 1  # entity 3, through head 0
    for e1 in range(N_ENTITIES):  # the bridge 4 = 1 + 3 * 1, from the facts that lead to it
        encoder[0, vocab + e1, 3] = 1.0 if e1 // 4 == 1 else -1.0
    for r1 in range(N_RELATIONS):
        encoder[0, N_ENTITIES + r1, 3] = 1.0 if r1 // 2 == 1 else -1.0
    decoder[0, 3, 0, -1] = 1
    encoder[1, -1, 0] = 1  # reads what feature 3 writes
    decoder[1, 1, 1, 2 * vocab + 7] = 1  # writes the answer 7
    weights = Weights(
        jnp.asarray(encoder, jnp.float32),
        jnp.zeros((2, 6)),
        jnp.asarray(decoder, jnp.float32),
        jnp.zeros((2, width)),
        jnp.zeros((2, width, width)),
    )
    e1, r1, r2 = (values.ravel() for values in np.indices((N_ENTITIES, N_RELATIONS, N_RELATIONS)))
    values = np.stack([e1, r1, bridge(e1, r1), r2, random.integers(0, N_ENTITIES, len(e1))])
    known = np.array([[1, 1, 1], [0, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 1]], bool)
    true = TrueValues(
        ("e1", "r1", "e2", "r2", "answer"), values, known, (0, 12, 0, 12, 0), N_ENTITIES
    )
    read = (e1 + r1) % 2 == 0  # half of the facts

    @jax.jit
    def guess(params, weights):
        return guess_features(model, params, weights, true, POSITIONS, read)

    return guess(params, weights), true, read


@pytest.mark.parametrize(
    ("pos", "layer", "feature", "variable", "value"),
    [
        (0, 0, 0, E1, 5),
        (1, 0, 1, R1, 2),
        (2, 0, 1, R2, 2),
        (1, 0, 2, E1, 3),
        (1, 0, 3, E2, 4),
        (1, 1, 0, E2, 4),
        (2, 1, 1, ANSWER, 7),
    ],
)
def test_the_value_is_guessed_from_weights(case, pos, layer, feature, variable, value):
    guesses, *_ = case
    place = pos, layer, feature
    assert (int(guesses.variable[place]), int(guesses.value[place])) == (variable, value)
    assert guesses.score[place] > 1


def test_no_value_is_guessed_before_it_is_known(case):
    guesses, *_ = case
    assert (guesses.variable[0] == E1).all()
    assert np.isin(guesses.variable[1], (E1, R1, E2)).all()


def test_a_guess_is_scored_on_facts_that_it_has_not_read(case):
    guesses, true, read = case
    acts = np.zeros((true.values.shape[1], 3, 2, 6))
    acts[:, 1, 0, 3] = true.values[E2] == 4  # as guessed
    acts[:, 1, 0, 2] = (true.values[E1] == 3) & read  # only where the rule has read
    acts[:, 1, 1, 0] = true.values[E2] != 4
    distinct = np.arange(len(acts)) % N_RELATIONS == 0  # one chain of each prefix
    counted = np.broadcast_to((~read & distinct)[:, None], (len(acts), 3))

    @jax.jit
    def judge(guesses, acts):
        return judge_guesses(guesses, acts, true, counted, np.random.default_rng(0))

    judged = judge(guesses, jnp.asarray(acts))
    assert judged.f1[1, 0, 3] == 1 and 0 < judged.null[1, 0, 3] < 0.7
    assert judged.f1[1, 0, 2] == 0 and judged.fires[1, 0, 2] == 0
    assert judged.f1[1, 1, 0] == 0 and judged.fires[1, 1, 0] > 0


@pytest.mark.slow
def test_shares_are_of_the_features_that_are_active():
    """The bridge is looked up by the neurons of block 1, of which each stands for one bridge."""
    relay = Relay()
    found = measure_guesses(relay.subject, neuron_set(relay.subject)).sel(pos="e1").squeeze("group")
    assert found.n_features[1] == 6 and found.labeled[1] == 1
    assert found.n_features[3] == 0 and found.named[3] == 0  # The last block is empty.
    # A neuron of block 0 stands for one fact, so e1 and r1 can be read from its weights.
    assert found.n_features[0] > 20 and found.named[0] > 0.3 and found.null[0] == 0
