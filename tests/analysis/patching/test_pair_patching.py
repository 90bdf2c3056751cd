"""Patching of pairs flips a composer's answer at the state of the bridge, and nowhere else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis import InMemory, Runner, measure
from implicit_reasoning.analysis.claims import Claim
from implicit_reasoning.analysis.patching.grids import patch_neurons
from implicit_reasoning.analysis.patching.neurons import NeuronPatching
from implicit_reasoning.analysis.patching.pair_patching import PairPatching
from implicit_reasoning.analysis.patching.pairs import bridge_pairs
from implicit_reasoning.analysis.patching.query_pairs import BRIDGE, SAME
from implicit_reasoning.analysis.states import neuron_sites
from implicit_reasoning.model import Edit, Spec, Transformer
from implicit_reasoning.model.cones import cache_sites
from tests.analysis.by_hand import composer, dataset
from tests.model.exchange.models import filled

METRICS = ("logit_difference", "probability", "accuracy", "divergence")


@pytest.fixture(scope="module")
def data():
    return dataset()


@pytest.fixture(scope="module")
def runner(data):
    """Return one runner, so that all tests share one program."""
    return Runner(PairPatching(metrics=METRICS), composer(data)[0])


def outcomes(runner, params, **inputs):
    """Return the outcomes by example for one model, with some inputs of the pairs replaced."""
    examples = runner.instrument.examples(runner.model, dataset())
    examples = dataclasses.replace(examples, inputs=examples.inputs | inputs)
    count = runner.at_once(2)  # as many checkpoints as were compiled
    stacked = jax.tree.map(lambda leaf: np.stack([leaf] * count), params)
    found = runner(stacked, runner.place(examples))
    return {name: values[0] for name, values in found.items()}


@pytest.fixture(scope="module")
def both(data, runner):
    """Return results of the composer and of random weights of its shape."""
    model, params = composer(data)
    subject = InMemory(model, data, [params, filled(model, seed=1)])
    found = measure(runner.instrument, subject, progress=False, runner=runner)
    assert runner.traces <= 2  # for all cells and checkpoints
    return found


@pytest.fixture(scope="module")
def composed(both):
    return both.isel(step=0).sel(group=BRIDGE)


@pytest.mark.slow
def test_the_bridge_is_carried_where_the_composer_has_it(both):
    assert PairPatching().claims(both.isel(step=0)) == {Claim("carried", "e2", 1, "r1")}
    assert PairPatching().claims(both.isel(step=1)) == set()  # random weights


@pytest.mark.slow
def test_only_the_bridges_state_flips_the_answer(composed):
    followed = composed.followed.sel(donor="pair")
    assert (followed.sel(layer=1, pos="r1") == 1).all()
    assert (followed.sel(layer=2, pos="r2") == 1).all()  # the answer itself, at the end
    others = followed.stack(cell=("layer", "pos"))
    others = others.drop_sel(cell=[(1, "r1"), (2, "r2")])
    assert others.max() < 0.3  # exchanging one token sometimes leads to the other answer


@pytest.mark.slow
def test_recovery_is_one_where_the_answer_flips_and_zero_where_nothing_is_read(composed):
    own = composed.recovery.sel(donor="pair")
    np.testing.assert_allclose(own.sel(layer=1, pos="r1"), 1, atol=1e-3)
    # Block 0 has read the embedding at e1. The last layer is read only at the end.
    for layer, pos in ((1, "e1"), (2, "e1"), (2, "r1"), (0, "r2"), (1, "r2")):
        np.testing.assert_allclose(own.sel(layer=layer, pos=pos), 0, atol=1e-5)
    parts = composed.part_recovery.sel(donor="pair")
    np.testing.assert_allclose(parts.sel(block=0, part="MLP", pos="r1"), 1, atol=1e-3)
    np.testing.assert_allclose(parts.sel(block=1, part="attention", pos="r2"), 1, atol=1e-3)
    np.testing.assert_allclose(parts.sel(block=1, pos=["e1", "r1"]), 0, atol=1e-5)


@pytest.mark.slow
def test_the_null_is_another_pairs_run(composed):
    null = composed.followed.sel(donor="another pair", direction="noising")
    assert null.max() < 0.3
    # In denoising, another pair's clean state at the position of the bridge also restores nothing.
    restored = composed.recovery.sel(donor="another pair", direction="denoising", layer=1, pos="r1")
    assert restored.sel(metric="accuracy") < 0.3


@pytest.mark.slow
def test_the_same_bridge_leaves_no_difference_to_recover(both):
    same = both.isel(step=0).sel(group=SAME)
    assert (same.compared == 0).all() and same.recovery.isnull().all()
    assert (same.followed.sel(donor="pair", layer=1, pos="r1") == 1).all()


def one_cell(model, params, base, donor, layer, pos):
    """Return logits with one state exchanged, by `forward` with an edit."""
    site = model.resid_sites[layer]
    _, found = model.forward(params, donor, sites=(site,))
    here = (np.arange(base.shape[1]) == pos)[None, :, None]

    def exchange(value, hooks, new):
        return jnp.where(here, new, value)

    edits = {site: Edit(exchange, found[site])}
    return model.forward(params, base, edits=edits)[0][:, -1]


@pytest.mark.slow
def test_recovery_is_the_ratio_of_means_of_forward_with_edits(data, runner):
    model, params, pairs = runner.model, filled(runner.model, seed=1), bridge_pairs(data)
    # Random weights answer nothing correctly, so the test uses the answers that they give.
    say = jax.jit(lambda tokens: model.forward(params, tokens)[0][:, -1])
    clean, corrupt = say(pairs.clean), say(pairs.corrupt)
    answer, other = (np.asarray(said.argmax(-1), np.int32) for said in (clean, corrupt))
    found = outcomes(runner, params, answer=answer, corrupt_answer=other)
    assert found["correct"].all() and found["both"].all()

    def difference(logits):
        row = np.arange(len(answer))
        return np.asarray(logits)[row, answer] - np.asarray(logits)[row, other]

    start, end = difference(clean), difference(corrupt)
    cell = jax.jit(lambda base, donor: one_cell(model, params, base, donor, 1, 1))
    patched = difference(cell(pairs.clean, pairs.corrupt))
    back = difference(cell(pairs.corrupt, pairs.clean))
    for number in np.unique(pairs.group):
        of = pairs.group == number
        gap = (end - start)[of].mean()
        noising, denoising = found["recovery"][0, :, 0, 1, 1][:, of]
        np.testing.assert_allclose(noising, (patched - start)[of] / gap, rtol=2e-3, atol=1e-3)
        np.testing.assert_allclose(denoising, (back - end)[of] / -gap, rtol=2e-3, atol=1e-3)
        ratio = (patched[of].mean() - start[of].mean()) / gap
        np.testing.assert_allclose(noising.mean(), ratio, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_patch_of_a_run_into_itself_changes_nothing(data, runner):
    pairs, (_, params) = bridge_pairs(data), composer(data)
    clean, answer = pairs.clean, pairs.answer
    found = outcomes(runner, params, corrupt=clean, corrupt_answer=answer)
    assert found["both"].all() and not found["compared"].any()
    for name in ("recovery", "part_recovery"):
        assert np.abs(found[name][:, :, 0]).max() < 1e-5
    assert found["followed"][:, 0].all() and found["part_followed"][:, 0].all()


@pytest.mark.slow
def test_figures_say_how_to_read_them(both):
    states, parts = PairPatching().figures(both)
    for figure in (states, parts):
        assert "0 if the patch changes nothing" in figure.caption and "null" in figure.caption
        figure.drawing.draw_without_rendering()


TINY = Transformer(Spec(d_vocab=7, n_ctx=3, n_layers=2, d_model=8, n_heads=2, d_mlp=5))


def test_the_grid_of_neurons_equals_forward_with_edits():
    params, sites = filled(TINY), (*cache_sites(TINY, inside=True), *neuron_sites(TINY))
    tokens = np.array([[1, 2, 3], [4, 5, 6]])
    posts = neuron_sites(TINY)

    def exchange(value, hooks, args):
        here, new = args
        return jnp.where(here, new, value)

    @jax.jit
    def both(params):
        base, donor = (TINY.forward(params, t, sites=sites)[1] for t in (tokens, tokens[:, ::-1]))

        def one(place):
            block, neuron, pos = place
            here = (jnp.arange(3) == pos)[None, :, None] & (jnp.arange(5) == neuron)[None, None]
            edits = {
                site: Edit(exchange, (here & (block == number), donor[site]))
                for number, site in enumerate(posts)
            }
            return TINY.forward(params, tokens, edits=edits)[0][:, -1]

        places = jnp.stack(jnp.meshgrid(*map(jnp.arange, (2, 5, 3)), indexing="ij"), -1)
        wanted = jax.vmap(one)(places.reshape(-1, 3))
        return patch_neurons(TINY, params, base, donor), wanted

    found, wanted = jax.device_get(both(params))
    np.testing.assert_allclose(found.reshape(wanted.shape), wanted, atol=2e-5)
    clean = wanted.reshape(2, 5, 3, 2, 7)[1, 0, 0]  # block 1, first position; nothing reads it
    assert np.abs(wanted - clean).max() > 1e-2


@pytest.mark.slow
def test_neurons_of_a_composer_count_where_its_mlps_are_read(data):
    model, params = composer(data)
    instrument = NeuronPatching(metrics=["logit_difference"])
    result = measure(instrument, InMemory(model, data, [params]), progress=False)
    moved = result.neuron_recovery.sel(group=BRIDGE, donor="pair", metric="logit_difference")
    most = np.abs(moved).max(("neuron", "direction", "step"))
    assert most.sel(block=0, pos="r1") > 0.01 and most.sel(block=1, pos="r2") > 0.01
    np.testing.assert_allclose(most.sel(block=0, pos="e1"), 0, atol=1e-5)
    np.testing.assert_allclose(most.sel(block=1, pos=["e1", "r1"]), 0, atol=1e-5)
    (figure,) = instrument.figures(result)
    figure.drawing.draw_without_rendering()
    assert instrument.claims(result.isel(step=0)) == set()
