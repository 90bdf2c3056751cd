"""Estimated effects equal exact ones where the model is linear, and differ where it is known to be
otherwise.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import spearmanr

from implicit_reasoning.analysis import InMemory, Runner, measure
from implicit_reasoning.analysis.components.agreement import can_be_ranked, rank_correlation
from implicit_reasoning.analysis.components.attribution import Attribution
from implicit_reasoning.analysis.components.estimates import (
    cell_sites,
    estimated_effects,
    pattern_effects,
)
from implicit_reasoning.analysis.components.neuron_attribution import NeuronAttribution
from implicit_reasoning.analysis.components.pair_attribution import ESTIMATORS
from implicit_reasoning.analysis.patching.grids import patch_states
from implicit_reasoning.analysis.patching.pairs import bridge_pairs
from implicit_reasoning.analysis.patching.projections import (
    PROJECTIONS,
    patch_projections,
    projection_sites,
)
from implicit_reasoning.analysis.patching.query_pairs import BRIDGE, SAME
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Edit, Spec, Transformer, mask
from implicit_reasoning.model.cones import cache_sites
from implicit_reasoning.model.planted.draft import POSITIONS
from implicit_reasoning.model.wirings import forward_at
from tests.analysis.by_hand import composer, dataset
from tests.analysis.planted_subject import dataset as planted_dataset
from tests.analysis.planted_subject import known
from tests.model.exchange.models import filled, tokens_for

GRADIENTS = [name for name in ESTIMATORS if name != "AtP*"]  # GradDrop is not exact if linear


@pytest.fixture(scope="module")
def data():
    return dataset(n_entities=20, n_relations=4, out_degree=4, phi=2.0)


def few_pairs(dataset):
    """Return the first pairs of two groups."""
    made = bridge_pairs(dataset)
    kept = [np.flatnonzero(made.group == made.groups.index(name))[:32] for name in (BRIDGE, SAME)]
    keep = np.concatenate(kept)
    columns = ("clean", "corrupt", "answer", "corrupt_answer", "group", "clusters")
    chosen = {name: getattr(made, name)[keep] for name in columns}
    return dataclasses.replace(made, **chosen)


@pytest.fixture(scope="module")
def runner(data):
    """Return one runner, so that all tests share one program."""
    return Runner(Attribution(few_pairs), composer(data)[0])


def linear(model):
    """Return weights of a linear model: patterns are uniform, and every relu is on."""
    params = jax.tree.map(np.array, filled(model))  # numpy compiles no programs
    for block in params["blocks"].values():
        for name in ("W_Q", "W_K", "b_Q", "b_K"):
            block["attn"][name] *= 0
        block["mlp"]["W_in"] *= 0.1
        block["mlp"]["b_in"][:] = 50
        block["mlp"]["W_out"] *= 0.1
        block["mlp"]["b_out"] = -(block["mlp"]["W_out"].sum(0) * 50)
    return jax.device_put(params)


def outcomes(runner, params, data):
    """Return the outcomes by example for one model, whose own answers count as correct."""
    model = runner.model
    say = jax.jit(lambda tokens: model.forward(params, tokens)[0][:, -1].argmax(-1))
    examples = runner.instrument.examples(model, data)
    pairs = {name: examples.inputs[name] for name in ("clean", "corrupt")}
    answers = {"answer": say(pairs["clean"]), "corrupt_answer": say(pairs["corrupt"])}
    examples = dataclasses.replace(examples, inputs=examples.inputs | answers)
    stacked = jax.tree.map(lambda x: np.asarray(x)[None], params)
    found = runner(stacked, runner.place(examples))
    return {name: values[0] for name, values in found.items()}


@pytest.mark.slow
def test_all_estimates_are_exact_in_a_linear_model(runner, data):
    found = outcomes(runner, linear(runner.model), data)
    assert found["correct"].all()
    places = [ESTIMATORS.index(name) for name in GRADIENTS]
    for kind in Attribution.kinds:
        effects = found[f"{kind}_effect"][places]
        assert np.abs(effects[0]).max() > 0.1
        scale = np.abs(effects[0]).max()
        np.testing.assert_allclose(
            effects, np.broadcast_to(effects[:1], effects.shape), atol=2e-3 * scale
        )
    # All effects of a layer together are the whole difference.
    assert found["incompleteness"][places].max() < 0.01
    assert not found["projections_effect"][:, :, :, :2].any()  # queries and keys change nothing


@pytest.fixture(scope="module")
def composed(data, runner):
    model, params = composer(data)
    result = measure(
        runner.instrument, InMemory(model, data, [params]), progress=False, runner=runner
    )
    assert runner.traces <= 2
    return result.isel(step=0)


@pytest.mark.slow
def test_integrated_gradients_rank_the_states_of_a_composer(composed):
    own = composed.sel(donor="pair", group=BRIDGE, ranked="effect")
    of_states = own.agreement.sel(kind="states")
    assert of_states.sel(estimator="integrated gradients") > 0.9
    assert of_states.sel(estimator="AtP") < of_states.sel(estimator="integrated gradients")
    means = own.agreement_of_means.sel(kind="states", of_group=BRIDGE)
    assert means.sel(estimator="integrated gradients") > 0.9


@pytest.mark.slow
def test_attribution_patching_misses_the_neuron_that_the_corrupt_run_turns_on(composed):
    """Exact patching of the bridge removes the right answer and adds the other one."""
    at = composed.states_effect.sel(donor="pair", group=BRIDGE, layer=1, pos="r1")
    exact = at.sel(estimator="patching")
    np.testing.assert_allclose(
        exact, composed.difference.sel(donor="pair", group=BRIDGE), rtol=1e-4
    )
    # The gradient of the neuron that will be on is 0, so half of the effect is missing.
    np.testing.assert_allclose(at.sel(estimator=["AtP", "RelP"]), exact / 2, rtol=1e-3)
    np.testing.assert_allclose(at.sel(estimator="integrated gradients"), exact, rtol=1e-3)


@pytest.mark.slow
def test_integrated_gradients_are_complete_where_attribution_patching_is_not(composed):
    missing = composed.incompleteness.sel(donor="pair", group=BRIDGE, layer=1)
    assert missing.sel(estimator="integrated gradients") < 0.01
    assert missing.sel(estimator="AtP") > 0.4


@pytest.mark.slow
def test_integrated_gradients_are_exact_for_the_only_cell_of_a_site_that_is_read(composed):
    """Their path moves the whole site, and no other cell of these sites changes the answer."""
    at = composed.parts_effect.sel(donor="pair", group=BRIDGE)
    for block, part, pos in ((0, "MLP", "r1"), (0, "attention", "r1"), (1, "head 0", "r2")):
        cell = at.sel(block=block, part=part, pos=pos)
        exact = cell.sel(estimator="patching")
        assert abs(exact) > 5
        np.testing.assert_allclose(cell.sel(estimator="integrated gradients"), exact, rtol=0.05)


@pytest.mark.slow
def test_pairs_without_a_difference_are_not_compared(composed):
    same = composed.sel(group=SAME, donor="pair")
    assert (same.agreement_n == 0).all() and (same.incompleteness_n == 0).all()


@pytest.mark.slow
def test_the_null_is_another_pairs_run(composed):
    null = composed.states_effect.sel(donor="another pair", group=BRIDGE, estimator="patching")
    assert abs(null.sel(layer=1, pos="r1")) < 0.75 * abs(
        composed.difference.sel(donor="pair", group=BRIDGE)
    )


@pytest.mark.slow
def test_figures_say_how_to_read_them(composed):
    for figure in Attribution().figures(composed.expand_dims("step")):
        assert "null" in figure.caption
        figure.drawing.draw_without_rendering()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ("probability", "divergence")}, "needs exactly one metric, got probability"),
        ({"nodes": 0}, "nodes is 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Attribution(**options)


SMALL = Transformer(Spec(d_vocab=7, n_ctx=3, n_layers=2, d_model=8, n_heads=2, d_mlp=5))


def test_patches_of_queries_keys_and_values_equal_forward_with_edits():
    params, tokens = filled(SMALL), tokens_for(SMALL.spec, rows=2)
    sites = (*projection_sites(SMALL), *(f"blocks.{n}.hook_resid_pre" for n in (0, 1)))

    @jax.jit
    def both(params):
        base, donor = (
            forward_at(SMALL, params, rows, sites=sites)[1] for rows in (tokens, tokens[:, ::-1])
        )
        whole = SMALL.forward(params, tokens[:, ::-1], sites=sites)[1]

        def one(place):
            block, projection, head, pos = place
            edits = {}
            for number, site in enumerate(projection_sites(SMALL)):
                here = (jnp.arange(3) == pos)[:, None] & (jnp.arange(2) == head)[None]
                asked = (block == number // 3) & (projection == number % 3)
                edits[site] = Edit(mask, ((here & asked)[None, :, :, None], whole[site]))
            return SMALL.forward(params, tokens, edits=edits)[0][:, -1]

        places = jnp.stack(jnp.meshgrid(*map(jnp.arange, (2, 3, 2, 3)), indexing="ij"), -1)
        wanted = jax.vmap(one)(places.reshape(-1, 4))
        return patch_projections(SMALL, params, base, donor), wanted

    found, wanted = jax.device_get(both(params))
    assert found.shape == (2, len(PROJECTIONS), 2, 3, 2, 7)
    np.testing.assert_allclose(found.reshape(wanted.shape), wanted, atol=2e-5)
    assert (np.abs(wanted - wanted[0]).max((1, 2)) > 1e-3).sum() > 10


def test_effects_through_patterns_equal_a_loop_over_queries_and_keys():
    rng = np.random.default_rng(0)
    (q, k), (new_q, new_k) = rng.normal(size=(2, 2, 2, 3, 2, 4)).astype("f4")
    gradient = rng.normal(size=(2, 2, 3, 3)).astype("f4")

    def softmax(q, k):
        scores = np.einsum("eqhd,ekhd->ehqk", q, k) / 2
        scores = np.where(np.tril(np.ones((3, 3), bool)), scores, -np.inf)
        weights = np.exp(scores)
        return scores, weights / weights.sum(-1, keepdims=True)

    scores, pattern = softmax(q, k)
    base, donor = {"q": q, "k": k}, {"q": new_q, "k": new_k}
    found = jax.jit(pattern_effects)(base, donor, scores, gradient)
    for pos in range(3):
        for head in range(2):
            here = np.zeros((1, 3, 2, 1), bool)
            here[:, pos, head] = True
            of_query = softmax(np.where(here, new_q, q), k)[1]
            of_key = softmax(q, np.where(here, new_k, k))[1]
            for effects, changed in zip(found, (of_query, of_key), strict=True):
                wanted = ((changed - pattern) * gradient).sum((1, 2, 3))
                np.testing.assert_allclose(effects[head, pos], wanted, atol=1e-5)


def test_rank_correlation_equals_scipys_over_the_cells_that_count():
    rng = np.random.default_rng(1)
    exact = rng.integers(-3, 4, (6, 12)).astype("f4")  # with ties
    estimate = exact + rng.normal(size=exact.shape).round().astype("f4")
    counted = rng.random(exact.shape) < 0.8
    exact[4], estimate[5] = 2, 1  # nothing to rank
    exact[0] += 1e-6 * (exact[0] == 0) * rng.normal(size=12)  # rounding errors count as zero
    found, possible = jax.jit(
        lambda *values: (rank_correlation(*values), can_be_ranked(*values[1:]))
    )(estimate, exact, counted)
    for row in range(4):
        kept = counted[row]
        wanted = spearmanr(estimate[row, kept], exact[row, kept].round(3)).statistic
        np.testing.assert_allclose(found[row], wanted, atol=1e-5)
    assert found[4] == 0 and found[5] == 0
    assert list(possible) == [True, True, True, True, False, True]


@pytest.mark.slow
def test_attribution_patching_misses_neurons_that_would_turn_a_neuron_on(data):
    model, params = composer(data)
    result = measure(NeuronAttribution(), InMemory(model, data, [params]), progress=False)
    own = result.isel(step=0).sel(group=BRIDGE, donor="pair")
    # Exact effects of equal size are at four neurons: the neuron that is on in the clean run and
    # the neuron that is on in the corrupt run, at both hops. The second of the first hop would turn
    # on a neuron that is off.
    for estimator, missed in {"AtP": 0.25, "RelP": 0.25, "integrated gradients": 0.0}.items():
        np.testing.assert_allclose(own.missed.sel(estimator=estimator), missed, atol=1e-3)
    at = own.sel(block=0, pos="r1")
    np.testing.assert_allclose(
        at.summed_effect.sel(estimator="patching"), at.joint_effect, rtol=1e-4
    )
    np.testing.assert_allclose(
        at.summed_effect.sel(estimator="AtP"), at.joint_effect / 2, rtol=1e-4
    )
    for figure in NeuronAttribution().figures(result):
        figure.drawing.draw_without_rendering()


@pytest.mark.slow
def test_a_patch_of_the_bridge_misses_the_route_that_does_not_read_it():
    """The planted model `parallel` also looks up the chain, from copies of e1 and r1 at r2.

    Composition writes twice as much as the look-up: the difference is 20 + 10 in the clean run, and
    -20 in the corrupt run, whose chain is not stored.
    """
    subject, data = known("parallel").subject, planted_dataset()
    model, made = subject.model, bridge_pairs(data)
    keep = np.flatnonzero(made.group == made.groups.index(BRIDGE))[:24]
    columns = ("clean", "corrupt", "answer", "corrupt_answer")
    clean, corrupt, answer, other = (jnp.asarray(getattr(made, name)[keep]) for name in columns)
    rows = jnp.arange(len(keep))
    sites = tuple(dict.fromkeys((*cache_sites(model), *cell_sites(model, ("states",)))))

    def difference(logits):
        return logits[..., rows, answer] - logits[..., rows, other]

    @jax.jit
    def shares(params):
        """Return the share of the difference of each state, [estimator, layer, pos, pair]."""
        (start, base), (end, donor) = (
            forward_at(model, params, tokens, sites=sites) for tokens in (clean, corrupt)
        )
        start, end = difference(start[:, 0]), difference(end[:, 0])
        exact = difference(patch_states(model, params, base, donor)) - start[None, None]
        estimates = estimated_effects(
            model,
            params,
            clean,
            lambda logits: difference(logits[:, 0]),
            jax.tree.map(lambda values: values[None], donor),
            ("states",),
            8,
        )["states"][:, 0]
        return jnp.concatenate([exact[None], estimates]) / (end - start)[None, None, None]

    found = dict(zip(ESTIMATORS, np.asarray(shares(subject.checkpoints[0])), strict=True))
    r1, r2 = (POSITIONS.index(name) for name in ("r1", "r2"))
    np.testing.assert_allclose(found["patching"][1, r1], 0.8, atol=1e-3)
    np.testing.assert_allclose(found["patching"][1, r2], 0.2, atol=1e-3)
    np.testing.assert_allclose(found["patching"][:3].sum(1)[1:], 1, atol=1e-3)
    # A neuron of the look-up is off after a part of the change, but its gradient stays the same.
    np.testing.assert_allclose(found["AtP"][1, r2], 0.8, atol=1e-2)
    np.testing.assert_allclose(found["integrated gradients"][1, r2], 0.25, atol=0.02)
