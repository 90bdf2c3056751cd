"""The bridge share and swaps tell planted models and dictionaries that skip the bridge apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.analysis.truth.known import knowledge, scored_world, small_world
from implicit_reasoning.analysis.variables.counterfactuals import rows_to_fit
from implicit_reasoning.dictionaries.graphs.ablations import measure_ablations
from implicit_reasoning.dictionaries.graphs.attribution import attribute, node_kinds
from implicit_reasoning.dictionaries.graphs.bridge import BridgeFeatures, bridge_share, standing_for
from implicit_reasoning.dictionaries.graphs.influence import graph_scores, influence, shares
from implicit_reasoning.dictionaries.graphs.interventions import OBSERVED, PREDICTED
from implicit_reasoning.dictionaries.graphs.measure import measure_graphs
from implicit_reasoning.dictionaries.graphs.swaps import choose_cases, measure_swaps
from implicit_reasoning.dictionaries.replacement import Replacement, local_run, mlp_sites
from implicit_reasoning.model.planted import MECHANISMS
from implicit_reasoning.model.units import Fact
from tests.dictionaries.graphs.planted import Relay, neuron_set, neurons


@pytest.mark.parametrize(
    ("mechanism", "expected"),
    [("composer", 1), pytest.param("memoriser", 0, marks=pytest.mark.slow)],
)
def test_the_bridge_share_of_one_hot_transcoders_is_that_of_the_mechanism(mechanism, expected):
    """The features are the keys of the tables. A feature of a fact stands for its tail at r1."""
    dataset = scored_world(0)
    planted = MECHANISMS[mechanism](knowledge(dataset, dataset.splits), None)
    model, params = planted.model, planted.params
    made, own = neurons(model, params)
    depth = model.spec.depth
    replacement = Replacement((made,) * depth, mlp_sites(model))
    tails = np.full((depth, model.spec.d_mlp), -1)
    for neuron, what in planted.stores.items():
        if isinstance(what, Fact):
            tails[neuron.layer, neuron.index] = dataset.world.tail[what.e1, what.r1]
    value = jnp.full((3, *tails.shape), -1).at[1].set(tails)
    features = BridgeFeatures(value, jnp.ones(value.shape))
    rows = dataset.rows("test_ii")[:6]
    tokens = jnp.asarray(dataset.tokens[rows][:, :3])

    @jax.jit
    def program(params, own):
        arguments = model, params, replacement, own, tokens
        graphs = attribute(*arguments, max_features=8)

        def judge(graph, bridge):
            kinds = node_kinds(graph, 3, depth)
            normalized = shares(graph.adjacency)
            flow = influence(normalized, kinds.weights)
            scores = graph_scores(normalized, flow, kinds.weights, kinds.error, kinds.token)
            sources = jnp.array([True, True, False])
            stands = standing_for(graph, features, bridge)
            return scores, bridge_share(graph, kinds, stands, sources)

        bridges = jnp.asarray(dataset.truth["e2"][rows])
        error = local_run(*arguments).error
        own_scores, share = jax.vmap(judge)(graphs, bridges)
        return error, own_scores, share, jax.vmap(judge)(graphs, (bridges + 1) % 40)[1]

    error, scores, share, other = program(params, own)
    np.testing.assert_allclose(error, 0, atol=1e-6)
    np.testing.assert_allclose(scores.replacement, 1, atol=1e-5)
    np.testing.assert_allclose(share, expected, atol=1e-5)
    np.testing.assert_allclose(other, 0, atol=1e-5)


@pytest.fixture(scope="module")
def relay():
    return Relay()


@pytest.fixture(scope="module")
def sets(relay):
    return {"neurons": neuron_set(relay.subject), "skipping": relay.skipping()}


@pytest.mark.parametrize(
    ("kind", "expected"), [pytest.param("neurons", 1, marks=pytest.mark.slow), ("skipping", 0)]
)
def test_a_cross_layer_transcoder_that_skips_the_bridge_is_caught(relay, sets, kind, expected):
    """Both describe the same model without an error, and features are labeled by their F1."""
    found = measure_graphs(relay.subject, sets[kind], splits=("train_ii",), max_features=8)
    np.testing.assert_allclose(found.replacement, 1, atol=1e-5)
    np.testing.assert_allclose(found.completeness, 1, atol=1e-5)
    assert (found.n_active == {"neurons": 3, "skipping": 1}[kind]).all()
    np.testing.assert_allclose(found.bridge_share.sel(bridge="own"), expected, atol=1e-5)
    np.testing.assert_allclose(found.bridge_share.sel(bridge="another chain's"), 0, atol=1e-5)
    assert (found.has_bridge == expected).all()
    assert (found.bridge_share_n == 6).all()


def test_a_swap_of_features_of_the_bridge_is_followed(relay, sets):
    found = measure_swaps(relay.subject, sets["neurons"], max_cases=40).squeeze("group")
    own = found.sel(control="own")
    assert own.n_set.sel(change="swap") == 2 and own.n_set.sel(change="ablate") == 1
    # Second facts whose features are inactive in the run are no part of the predictions.
    follows = own.follows.sel(change="swap")
    assert (follows.sel(within=list(OBSERVED)) == 1).all()
    assert (follows.sel(within=list(PREDICTED)) < 0.5).all()
    for control in ("random features", "another bridge"):
        assert (found.follows.sel(control=control, change="swap") < 0.5).all(), control
    assert (own.unchanged.sel(change="swap", within=list(OBSERVED)) == 0).all()
    # Without a bridge, the right answer has the logit of the others.
    ablated = own.effect.sel(change="ablate")
    np.testing.assert_allclose(ablated.sel(within=list(OBSERVED)), 10, atol=1e-3)
    np.testing.assert_allclose(own.effect.sel(change="swap", within="real"), 20, atol=1e-3)
    # An active neuron is at half of what one key adds, so its prediction without the key is minus
    # its activation, and effects are half of the prediction. No edge leads to the logits directly.
    slope = own.slope.sel(change="ablate")
    np.testing.assert_allclose(slope.sel(prediction="paths"), 0.5, atol=1e-4)
    assert not np.isfinite(slope.sel(prediction="edges")).any()


@pytest.mark.slow
def test_ablations_of_all_features_are_compared_with_their_predictions(relay, sets):
    """The three features of a chain each make the answer wrong, and edges add up in closed form."""
    found = measure_ablations(
        relay.subject, sets["neurons"], splits=("train_ii",), max_features=4, max_chains=12
    ).squeeze(["group", "split"])
    assert found.n_nodes == 36 and found.n_clusters >= 4
    # Only the feature of the second fact writes to the logits.
    np.testing.assert_allclose(found.slope.sel(prediction="edges"), 1, atol=1e-4)
    # Each feature before loses twice its activation in the prediction, and nothing else in truth.
    predicted = np.array([40, 20, 10])
    slope = 10 * predicted.sum() / (predicted**2).sum()
    np.testing.assert_allclose(found.slope.sel(prediction="paths"), slope, atol=1e-4)
    # Effects are all equal, so there is no correlation.
    assert np.isnan(found.correlation).all() and np.isnan(found.correlation_null).all()


@pytest.mark.slow
def test_what_skips_the_bridge_has_nothing_to_swap(relay, sets):
    found = measure_swaps(relay.subject, sets["skipping"], max_cases=40).sel(control="own")
    assert (found.n_set == 0).all() and (found.follows == 0).all() and (found.unchanged == 1).all()


def test_cases_have_three_different_bridges():
    dataset = small_world(order="r r e")
    cases = choose_cases(dataset)
    assert (cases.old != cases.new).all()
    assert ((cases.third != cases.old) & (cases.third != cases.new)).all()
    assert cases.at.tolist() == [False, False, True]
    assert set(cases.new) <= set(dataset.truth["e2"][rows_to_fit(dataset)])
