"""Linear probes agree with plain regressions, on noise, on a bridge code and on a prefix code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis.claims import Claim
from implicit_reasoning.analysis.reading import probes, ridge
from implicit_reasoning.analysis.reading.probes import Probes
from tests.analysis.tiny_states import (
    make_dataset,
    make_model,
    plant_in_parameters,
    random_states,
    run,
    truth_of,
)


@pytest.fixture(scope="module")
def dataset():
    return make_dataset()


@pytest.fixture(scope="module")
def inputs(dataset):
    return Probes().examples(make_model(dataset), dataset).inputs


def bridge_states(dataset, tokens, noise=0.3):
    """Return random states that, in layer 1 at r1, have the bridge's code and noise."""
    states = random_states(tokens, 3)
    code = np.random.default_rng(9).normal(size=(dataset.world.n_entities, states.shape[-1]))
    states[1, :, 1] = code[truth_of(dataset, tokens, "e2")] + noise * states[1, :, 1]
    return states


def reads(result, **where):
    return float(result["accuracy"].isel(step=0, group=0).sel(where))


E2 = {"variable": "e2", "layer": 1, "pos": "r1"}


def test_random_states_say_nothing_and_a_planted_bridge_is_found(monkeypatch, dataset, inputs):
    plant_in_parameters(monkeypatch, probes, Probes)
    result, traces = run(Probes(), dataset, states=bridge_states(dataset, inputs["tokens"]))
    assert traces == 1
    for held_out in probes.HELD_OUT:
        assert reads(result, held_out=held_out, truth="true", **E2) > 0.95
        assert reads(result, held_out=held_out, truth="shuffled", **E2) < 0.2
        elsewhere = {**E2, "layer": 2}
        assert reads(result, held_out=held_out, truth="true", **elsewhere) < 0.2
        unseen = {**E2, "variable": "r2"}
        assert reads(result, held_out=held_out, truth="true", **unseen) < 0.3  # among 8 relations
    assert Probes().claims(result.isel(step=0)) == {Claim("decodable", "e2", 1, "r1")}
    only_by_heart = result.isel(step=0).copy(deep=True)  # not readable with its e1 held out
    only_by_heart["accuracy_low"].loc[{"held_out": "e1"}] = 0.5
    assert Probes().claims(only_by_heart) == set()
    assert result["n_states"].sel(group="id", pos="r1") + result["n_states"].sel(
        group="ood", pos="r1"
    ) == len(inputs["tokens"])
    assert result["n_states"].sel(pos="e1").sum() == dataset.world.n_entities
    assert float(result["chance"].isel(step=0).sel(variable="e2", pos="r1")) < 0.2
    # One dimension does not contain a code of 48 dimensions; almost all dimensions do.
    few = result["sparse"].isel(step=0, group=0).sel(basis="residual", truth="true")
    few = few.sel(layer=1, pos="r1").values
    assert few[0] < few[1] < few[2] and few[2] > 0.6
    names = [figure.name for figure in Probes().figures(result)]
    assert names == ["probes", "probes_map", "probes_sparse"]


def test_a_prefix_code_is_no_bridge(monkeypatch, dataset, inputs):
    """One-hot codes of e1 and r1 determine the prefix, but they are no code of the bridge."""
    tokens, states = inputs["tokens"], random_states(inputs["tokens"], 3)
    code = np.eye(dataset.n_vocab, 48)
    states[1, :, 1] = code[tokens[:, 0]] + code[tokens[:, 1]]
    plant_in_parameters(monkeypatch, probes, Probes)
    result, _ = run(Probes(), dataset, states=states)
    assert reads(result, held_out="prefix", truth="true", **E2) < 0.3
    assert reads(result, held_out="prefix", truth="control", **E2) > 0.9  # e1, by memorizing
    assert reads(result, held_out="e1", truth="control", **E2) < 0.3
    there = {Claim("decodable", variable, 1, "r1") for variable in ("e1", "r1")}
    assert Probes().claims(result.isel(step=0)) == there


@pytest.mark.parametrize("broken", [pytest.param("ridge", marks=pytest.mark.slow), "folds"])
def test_a_broken_instrument_fails_the_planted_test(monkeypatch, dataset, inputs, broken):
    plant_in_parameters(monkeypatch, probes, Probes)
    if broken == "ridge":
        monkeypatch.setattr(probes, "ridge", lambda sums: jnp.zeros_like(sums.cross))
    else:  # if the evaluated rows are also fitted, random labels are read as well
        monkeypatch.setattr(probes, "leave_fold_out_sums", _all_rows)
    result, _ = run(Probes(), dataset, states=bridge_states(dataset, inputs["tokens"]))
    found = reads(result, held_out="prefix", truth="true", **E2) > 0.95
    clean = reads(result, held_out="prefix", truth="shuffled", **E2) < 0.2
    assert not (found and clean)


def _all_rows(x, y, weight):
    sums = ridge.leave_fold_out_sums(
        jnp.concatenate([x.reshape(1, -1, x.shape[-1]), x.reshape(1, -1, x.shape[-1])]),
        jnp.concatenate([y.reshape(1, -1, y.shape[-1]), y.reshape(1, -1, y.shape[-1])]),
        jnp.concatenate([weight.reshape(1, -1), jnp.zeros_like(weight.reshape(1, -1))]),
    )
    return ridge.Sums(*(jnp.stack([part[1]] * len(x)) for part in sums))


def test_no_state_is_on_both_sides(dataset, inputs):
    layout, tokens = inputs["layout"], inputs["tokens"]
    size = layout["members"].shape[-1]
    fold = layout["place"] // size  # [held_out, layer, pos, row]
    for pos in range(3):
        prefix = np.unique(tokens[:, : pos + 1], axis=0, return_inverse=True)[1].ravel()
        for scheme in range(2):
            for layer in range(3):
                state = tokens[:, pos] if layer == 0 else prefix
                pairs = np.unique(np.stack([state, fold[scheme, layer, pos]]), axis=1)
                assert len(np.unique(state)) == pairs.shape[1]
    e1_folds = np.unique(np.stack([tokens[:, 0], fold[1, 1, 1]]), axis=1)
    assert e1_folds.shape[1] == dataset.world.n_entities
    # Every row has a place, and equal prefixes share one weight.
    weight = layout["weight"][0, 1]
    assert (weight.sum((1, 2)) == [dataset.world.n_entities, len(tokens), len(tokens)]).all()


def test_ridge_against_numpy():
    random = np.random.default_rng(0)
    x = random.normal(3, 1, size=(4, 10, 6)).astype(np.float32)
    y = random.normal(size=(4, 10, 2)).astype(np.float32)
    weight = (random.random((4, 10)) < 0.8).astype(np.float32)

    @jax.jit
    def fitted(x, y, weight):
        sums = ridge.leave_fold_out_sums(x, y, weight)
        return ridge.predict(sums, ridge.ridge(sums), x), ridge.sparse_ridge(sums, 3, (1, 3))

    said, few = jax.device_get(fitted(x, y, weight))
    for fold in range(4):
        others = [other for other in range(4) if other != fold]
        there = weight[others].astype(bool)
        x_fit, y_fit = x[others][there], y[others][there]
        mean_x, mean_y = x_fit.mean(0), y_fit.mean(0)
        centred, wanted = x_fit - mean_x, y_fit - mean_y
        strength = ridge.STRENGTH * (centred**2).sum() / 6
        # Ridge regression is least squares with extra rows sqrt(strength), whose targets are 0.
        padded = np.concatenate([centred, np.sqrt(strength) * np.eye(6)])
        target = np.concatenate([wanted, np.zeros((6, 2))])
        weights = np.linalg.lstsq(padded, target, rcond=None)[0]
        np.testing.assert_allclose(said[fold], (x[fold] - mean_x) @ weights + mean_y, atol=2e-4)

        difference = np.abs(centred.T @ wanted) / np.sqrt((centred**2).sum(0))[:, None]
        for out in range(2):
            for which, size in enumerate((1, 3)):
                used = np.argsort(-difference[:, out])[:size]
                gram = centred[:, used].T @ centred[:, used] + strength * np.eye(size)
                expected = np.zeros(6)
                expected[used] = np.linalg.solve(gram, centred[:, used].T @ wanted[:, out])
                np.testing.assert_allclose(few[which, fold, :, out], expected, atol=2e-4)


def test_one_affine_map_against_lstsq():
    random = np.random.default_rng(1)
    x = random.normal(size=(60, 3)).astype(np.float32)
    y = x @ random.normal(size=(3, 2)).astype(np.float32) + np.array([1, -2], np.float32)
    weight = np.ones(60, np.float32)
    weight[:10], y[:10] = 0, 100  # rows with weight 0
    a, b = jax.jit(ridge.affine)(x, y, weight)
    exact = np.linalg.lstsq(np.c_[x, np.ones(60)][10:], y[10:], rcond=None)[0]
    np.testing.assert_allclose(a, exact[:3], atol=0.05)  # the ridge shrinks weights by about 1%
    np.testing.assert_allclose(b, exact[3], atol=0.05)


def test_a_model_that_diverged_reads_nothing(monkeypatch, dataset, inputs):
    plant_in_parameters(monkeypatch, probes, Probes)
    nothing = np.full((3, *inputs["tokens"].shape, 48), np.nan, np.float32)
    result, _ = run(Probes(), dataset, states=nothing)
    assert float(result["accuracy"].max()) == 0
    assert Probes().claims(result.isel(step=0)) == set()
