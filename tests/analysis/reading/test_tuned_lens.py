"""The tuned lens finds a rotated code on states that it was not fitted to, but not in noise."""

import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis.claims import Claim
from implicit_reasoning.analysis.patching.outcomes import divergence
from implicit_reasoning.analysis.reading import tuned_lens
from implicit_reasoning.analysis.reading.tuned_lens import TunedLens
from tests.analysis.tiny_states import (
    make_dataset,
    make_model,
    plant,
    random_states,
    random_subject,
    run,
    truth_of,
)


@pytest.fixture(scope="module")
def dataset():
    return make_dataset()


@pytest.fixture(scope="module")
def model(dataset):
    return make_model(dataset)


@pytest.fixture(scope="module")
def states(model, dataset):
    """Return states that have the unembedding's columns of e2 at r1 in the last layer, and a
    rotation of them in layer 1.
    """
    tokens = TunedLens().examples(model, dataset).inputs["tokens"]
    states = random_states(tokens, 3)
    columns = np.array(random_subject(model, dataset).params()["unembed"]["W_U"][0]).T
    columns /= np.linalg.norm(columns, axis=1, keepdims=True)
    states[2, :, 1] = 6 * columns[truth_of(dataset, tokens, "e2")] + 0.1 * states[2, :, 1]
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(48, 48)))[0]
    states[1, :, 1] = states[2, :, 1] @ rotation
    return states


def test_a_rotated_code_is_found_by_the_tuned_lens_only(monkeypatch, model, dataset, states):
    plant(monkeypatch, tuned_lens, states)
    result, traces = run(TunedLens(), dataset, model)
    assert traces == 1
    there = result.isel(step=0).sel(group="id", pos="r1", variable="e2")
    top1 = there["top1"].sel(layer=1)
    assert top1.sel(lens="tuned lens", truth="true") > 0.9
    assert top1.sel(lens="tuned lens", truth="shuffled") < 0.3
    assert top1.sel(lens="logit lens", truth="true") < 0.3
    kl = result["kl"].isel(step=0).sel(group="id", pos="r1")
    assert kl.sel(layer=1, lens="tuned lens") < 0.5 * kl.sel(layer=1, lens="logit lens")
    assert abs(kl.sel(layer=2)).max() < 1e-4  # the last layer is the reference
    # At layer 0 a state depends only on its relation, which does not determine the bridge.
    assert there["top1"].sel(layer=0, truth="true").max() < 0.4
    claims = TunedLens().claims(result.isel(step=0))
    assert claims == {Claim("decodable", "e2", layer, "r1") for layer in (1, 2)}
    assert [f.name for f in TunedLens().figures(result)] == ["tuned_lens", "tuned_lens_kl"]


def test_without_its_map_the_planted_test_fails(monkeypatch, model, dataset, states):
    plant(monkeypatch, tuned_lens, states)
    monkeypatch.setattr(tuned_lens, "_tuned", lambda network, state, *_: state)
    result, _ = run(TunedLens(), dataset, model)
    top1 = result["top1"].sel(layer=1, pos="r1", variable="e2", truth="true", lens="tuned lens")
    assert top1.max() < 0.3


def test_fitted_and_scored_states_are_distinct_at_every_place(model, dataset):
    examples = TunedLens().examples(model, dataset)
    fitted, scored = examples.inputs["fitted"], examples.inputs["scored"]
    tokens = examples.inputs["tokens"]
    for layer, pos in np.ndindex(3, 3):
        # At layer 0 a state depends on its token; later it depends on its prefix.
        state = tokens[:, pos : pos + 1] if layer == 0 else tokens[:, : pos + 1]
        state = np.unique(state, axis=0, return_inverse=True)[1].ravel()
        for_lens, for_score = state[fitted[layer, pos]], state[scored[layer, pos]]
        assert len(for_lens) and len(for_score)
        assert not set(for_lens) & set(for_score)
        assert (examples.clusters[pos][scored[layer, pos]] >= 0).all()


def test_what_counts_at_a_place_is_what_is_scored_there(model, dataset):
    result, _ = run(TunedLens(), dataset, model)
    scored = TunedLens().examples(model, dataset).inputs["scored"]
    for name in ("top1", "reciprocal_rank", "kl"):
        n = result[f"{name}_n"].isel(step=0).sum("group")
        for layer, pos in np.ndindex(3, 3):
            assert (n.isel(layer=layer, pos=pos) == scored[layer, pos].sum()).all()


def test_only_training_prefixes_are_fitted_and_others_are_scored_too(model, dataset):
    inputs = TunedLens().examples(model, dataset).inputs
    tokens, trained = inputs["tokens"], dataset.tokens[: dataset.n_train]
    for pos in range(3):
        known = {tuple(prefix) for prefix in trained[:, : pos + 1]}
        there = np.array([tuple(prefix) in known for prefix in tokens[:, : pos + 1]])
        assert there[inputs["fitted"][:, pos].any(0)].all()
        if pos == 2:  # some chains are held out of training, but no facts
            assert (~there & inputs["scored"][1, pos]).any()
            assert (there & inputs["scored"][1, pos]).any()


def test_kl_is_that_of_numpy():
    random = np.random.default_rng(0)
    p, q = random.normal(size=(2, 3, 5)).astype(np.float32)
    a, b = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (p, q))
    expected = (a * np.log(a / b)).sum(-1)
    np.testing.assert_allclose(divergence(jnp.asarray(q), jnp.asarray(p)), expected, atol=1e-5)
