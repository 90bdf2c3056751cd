"""The code of a planted bridge steers answers without side effects; an idle code does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from implicit_reasoning.analysis.runner import Runner, measure
from implicit_reasoning.analysis.states import prompts, residuals
from implicit_reasoning.analysis.steering import steering_cases
from implicit_reasoning.analysis.steering.directions import DIRECTIONS, given
from implicit_reasoning.analysis.steering.steering import NULLS, Steering
from implicit_reasoning.analysis.steering.steering_cases import GROUPS, choose_steering_cases
from implicit_reasoning.analysis.steering.steering_figures import alpha50, followed_at
from implicit_reasoning.analysis.variables.counterfactuals import rows_to_fit
from implicit_reasoning.dictionaries.architectures import Autoencoder
from implicit_reasoning.dictionaries.dictionary import InferenceDictionary
from implicit_reasoning.errors import InputError
from tests.analysis.planted_subject import dataset, known

CLASS_MEAN = DIRECTIONS[0]


WITHOUT_FEATURE = 3  # this entity has no feature in the dictionary


def decoder_rows(subject, columns):
    """Return the decoder row of the feature that stands for each entity; 0 if there is none.

    The dictionary reads S[1, r1]. Its features are the codes of bridges, except one, and random
    directions, in random order. The feature of an entity is found from activations.
    """
    random, model = np.random.default_rng(0), subject.model
    codes = np.delete(columns, WITHOUT_FEATURE, axis=0)
    others = random.normal(size=(40, columns.shape[1]))
    rows = np.concatenate([codes, others])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows = random.permutation(rows).astype(np.float32)
    data = dataset()
    fitted = rows_to_fit(data)
    tokens, values = jnp.asarray(prompts(data, fitted)), data.truth["e2"][fitted]
    params = {"W_enc": rows.T, "W_dec": rows, "b_dec": np.zeros(rows.shape[1], np.float32)}
    params["b_enc"] = np.full(len(rows), -0.5, np.float32)
    width = rows.shape[1]
    autoencoder = InferenceDictionary(Autoencoder(width, width, len(rows)), "standard")

    @jax.jit
    def activations(of_model, of_dictionary):
        states = residuals(model, of_model, tokens)[1, :, 1]
        return autoencoder.encode(of_dictionary, states)

    acts = np.asarray(activations(subject.checkpoints[0], params)) > 0
    of_value = values == np.arange(24)[:, None]
    both = of_value.astype(float) @ acts
    f1 = 2 * both / np.maximum(of_value.sum(1)[:, None] + acts.sum(0), 1)
    feature = np.where(f1.max(1) > 0.9, f1.argmax(1), -1)
    assert np.flatnonzero((feature < 0) & of_value.any(1)).tolist() == [WITHOUT_FEATURE]
    return np.where(feature[:, None] >= 0, rows[feature], 0)


@pytest.fixture(scope="module")
def steered():
    """Return results for `idle_copy`, at the state with the code that is read and at the other."""
    subject, found = known("idle_copy").subject, {}
    columns = np.asarray(subject.checkpoints[0]["unembed"]["W_U"]).T[:24]
    code = given("code", columns)
    of_dictionary = given("dictionary", decoder_rows(subject, columns))
    for pos, layer, chosen in (
        ("r1", 1, (CLASS_MEAN, code, of_dictionary)),
        ("r2", 2, (CLASS_MEAN, code)),
    ):
        one = Steering(chosen, layers=(layer,), pos=pos, alphas=(0.0, 0.5, 1.0, 2.0))
        runner = Runner(one, subject.model)
        found[pos] = measure(one, subject, progress=False, runner=runner)
        assert runner.traces <= 2
    return found


@pytest.mark.slow
def test_the_code_is_followed_without_side_effects_and_controls_are_not(steered):
    found = steered["r1"].isel(step=0, layer=0).sel(group=GROUPS[0])
    follows = found["fraction"].sel(outcome="followed")
    assert found["fraction_n"].min() >= 20 and found["side_divergence_n"].min() >= 15
    for name in ("class mean", "code"):
        at = {"direction": name, "edit": "replace"}
        np.testing.assert_array_equal(follows.sel(at | {"alpha": 0}), 0)
        np.testing.assert_array_equal(follows.sel(at | {"alpha": 1}), 1)
        np.testing.assert_array_equal(found["side_unchanged"].sel(at | {"alpha": 1}), 1)
        assert found["side_divergence"].sel(at | {"alpha": 1}) < 1e-3
    assert follows.sel(direction="class mean", edit="add", alpha=1) > 0.95
    # Twice the code has side effects: it activates neurons without their second key.
    assert found["side_divergence"].sel(direction="code", edit="replace", alpha=2) > 1
    assert follows.sel(direction=list(NULLS)).max() < 0.1
    np.testing.assert_allclose(found["fraction"].sum("outcome"), 1, atol=1e-6)
    half = alpha50(found)
    assert (half.sel(direction="code") <= 1).all() and np.isinf(half.sel(direction=NULLS[0])).all()


@pytest.mark.slow
def test_features_of_a_dictionary_steer_like_the_code_that_they_stand_for(steered):
    found = steered["r1"].isel(step=0, layer=0).sel(edit="replace", alpha=1)
    of = found.sel(direction="dictionary")
    assert (of.fraction.sel(outcome="followed", group=GROUPS[0]) == 1).all()
    assert of.side_divergence.sel(group=GROUPS[0]) < 1e-3
    # Cases with the same new bridge are a cluster. The entity without a feature is left out.
    clusters = found.fraction_n.sel(group=GROUPS[0])
    assert (clusters.sel(direction="dictionary") == clusters.sel(direction="code") - 1).all()


@pytest.mark.slow
def test_an_idle_code_is_not_followed(steered):
    found = steered["r2"].isel(step=0, layer=0).sel(group=GROUPS[0])
    follows = found["fraction"].sel(outcome="followed", alpha=[0, 0.5, 1])
    assert follows.max() < 0.1
    for figure in Steering().figures(steered["r2"]):
        figure.drawing.draw_without_rendering()


def test_cases_have_the_answers_of_the_new_bridge_and_unrelated_chains_have_none():
    data = dataset()
    fitted = rows_to_fit(data)
    cases, truth, tail = choose_steering_cases(data, fitted), data.truth, data.world.tail
    r2, old = truth["r2"][cases.row], truth["e2"][cases.row]
    np.testing.assert_array_equal(tail[cases.new, r2], cases.expected)
    assert (cases.expected != truth["answer"][cases.row]).all() and (cases.new != old).all()
    first = truth["fact1"]
    for rows in (cases.row, cases.unrelated[cases.unrelated >= 0]):
        assert not np.isin(first[rows], first[fitted]).any() and (rows < data.n_train).all()
    there = cases.unrelated >= 0
    side, third = cases.unrelated[there], cases.wrong[there]
    assert there.mean() > 0.9
    assert (tail[cases.new[there], truth["r2"][side]] < 0).all()
    bridge = truth["e2"][side]
    assert ((bridge != cases.new[there]) & (bridge != old[there])).all()
    some = third >= 0
    assert some.mean() > 0.5 and (tail[third[some], truth["r2"][side][some]] < 0).all()
    assert (tail[third[some], r2[there][some]] != cases.expected[there][some]).all()
    # A held-out fact is the second fact of no training chain.
    in_chains = set(zip(truth["e2"][: data.n_train], truth["r2"][: data.n_train], strict=True))
    is_trained = [pair in in_chains for pair in zip(cases.new, r2, strict=True)]
    np.testing.assert_array_equal(is_trained, cases.group == 0)
    assert set(cases.group) == {0, 1}
    pairs = set(zip(cases.new, r2, strict=True))
    assert len(pairs) == len(cases.new)  # at most one case for each fact


def test_curves_are_compared_at_equal_side_effects():
    dims = {"outcome": ["followed"], "direction": ["steep", "flat"], "alpha": [0.0, 1, 2, 4]}
    follows = np.array([[0, 0.2, 0.8, 0.6], [0, 0.1, 0.3, 0.4]])
    result = xr.Dataset(
        {
            "fraction": (("outcome", "direction", "alpha"), follows[None]),
            "fraction_low": (("outcome", "direction", "alpha"), follows[None] - 0.1),
            "fraction_high": (("outcome", "direction", "alpha"), follows[None] + 0.1),
            "fraction_n": (("outcome", "direction", "alpha"), np.full((1, 2, 4), 30)),
            "side_divergence": (("direction", "alpha"), [[0, 0.1, 0.5, 3], [0, 0, 0, 0]]),
            "side_divergence_n": (("direction", "alpha"), np.full((2, 4), 30)),
        },
        dims,
    )
    np.testing.assert_allclose(alpha50(result), [1.5, np.inf])
    found = followed_at(result, 0.3)
    np.testing.assert_allclose(found, [[0.5, 0.4, 0.6], [0.4, 0.3, 0.5]])
    np.testing.assert_allclose(followed_at(result, 9.0).sel(end="mean"), [0.8, 0.4])
    few = result.assign(fraction_n=result["fraction_n"] - 15)
    assert np.isnan(alpha50(few)).all() and np.isnan(followed_at(few, 1.0)).all()


def test_options_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="choose different names"):
        Steering((CLASS_MEAN, CLASS_MEAN))
    with pytest.raises(InputError, match="ascending"):
        Steering(alphas=(1.0, 0.0))
    model = known("composer").subject.model
    with pytest.raises(InputError, match="there is no layer 9; choose layers from 0 to 3"):
        Steering(layers=(9,)).examples(model, dataset())
    with pytest.raises(InputError, match="no position 'r9'"):
        Steering(pos="r9").examples(model, dataset())
    assert Steering().options()["alphas"][0] == 0 and steering_cases.GROUPS == GROUPS
