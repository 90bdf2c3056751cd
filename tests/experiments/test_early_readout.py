"""Trained maps of early supervision change the loss of early states, and nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.model import Spec, Transformer
from implicit_reasoning.training.early import EarlySupervision, EarlyTargets
from tests.experiments.scripts import load

readout = load("early_readout")
SPEC = Spec(n_layers=2, d_model=8, n_heads=2, d_mlp=16, d_vocab=11, n_ctx=3, normalization="none")


@pytest.fixture(scope="module")
def models():
    plain, extended = Transformer(SPEC), readout.WithReadout(SPEC, 1)
    return plain, extended, jax.jit(extended.init)(jax.random.key(0))


def test_the_transformer_starts_and_computes_as_without_maps(models):
    plain, extended, params = models
    own = jax.jit(plain.init)(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, readout.without_maps(params), own)
    tokens = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(
        extended.forward(params, tokens)[0], plain.forward(own, tokens)[0]
    )


def test_a_map_equal_to_the_unembedding_gives_the_usual_early_loss(models):
    plain, extended, params = models
    rng = np.random.default_rng(0)
    usual = EarlySupervision(6.0, (0,))
    states = {usual.sites[0]: jnp.asarray(rng.normal(size=(2, 3, SPEC.d_model)), jnp.float32)}
    targets = EarlyTargets(np.array([[1], [2]], np.int32), np.array([[4], [-1]], np.int32))
    answers = jnp.array([[3], [5]])
    unembedding = {"W": params["unembed"]["W_U"][None], "b": np.zeros((1, SPEC.d_vocab))}
    params = params | {readout.GROUP: unembedding}
    trained = readout.TrainedReadout(**dataclasses.asdict(usual))
    expected = usual.loss(plain, readout.without_maps(params), states, targets, answers)
    found = trained.loss(extended, params, states, targets, answers)
    assert found == pytest.approx(float(expected), rel=1e-5) and found > 1
