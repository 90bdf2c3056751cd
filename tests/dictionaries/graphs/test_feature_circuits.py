"""Effects of features and errors are those of brute force, and graphs follow the chain rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.dictionaries.architectures import Autoencoder, Transcoder
from implicit_reasoning.dictionaries.dictionary import InferenceDictionary
from implicit_reasoning.dictionaries.graphs.attribution import node_kinds
from implicit_reasoning.dictionaries.graphs.bridge import BridgeFeatures, bridge_share, standing_for
from implicit_reasoning.dictionaries.graphs.feature_circuits import (
    FeatureCircuits,
    FeatureNodes,
    Kept,
    Places,
    circuit_sites,
    faithfulness,
    select,
    strongest,
)
from implicit_reasoning.dictionaries.graphs.feature_graphs import feature_graph
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Edit, Spec, Transformer
from tests.dictionaries.graphs.planted import Relay

SPEC = Spec(
    d_vocab=11,
    n_ctx=3,
    n_layers=2,
    d_model=12,
    n_heads=2,
    d_mlp=16,
    act_fn="gelu_new",
    normalization="none",
    init_std=0.4,
)
CLEAN = jnp.array([[1, 5, 9], [4, 4, 2]])
CORRUPT = jnp.array([[3, 5, 9], [4, 7, 2]])
N_FEATURES = 6
MODEL = Transformer(SPEC)
SITES = circuit_sites(MODEL)


def metric(logits):
    return logits[:, 3] - logits[:, 8]


def drawn():
    """Return random autoencoders of all sites, and their parameters."""
    random = np.random.default_rng(0)

    def weights(*shape):
        return jnp.asarray(random.normal(size=shape) / 3, jnp.float32)

    width = SPEC.d_model
    made = InferenceDictionary(Autoencoder(width, width, N_FEATURES), "standard")
    own = [
        {
            "W_enc": weights(width, N_FEATURES),
            "b_enc": weights(N_FEATURES),
            "W_dec": weights(N_FEATURES, width),
            "b_dec": weights(width),
        }
        for _ in SITES
    ]
    return FeatureNodes((made,) * len(SITES), SITES), own


def all_places():
    """Return all nodes of two prompts."""
    grid = np.indices((len(SITES), 3, N_FEATURES + 1)).reshape(3, -1)
    embed = np.stack([np.full(3, len(SITES)), np.arange(3), np.zeros(3, int)])
    places = np.concatenate([grid, embed], 1)
    return Places(*(jnp.asarray(np.tile(x, (2, 1))) for x in places))


def flat(effects):
    """Return effects in the order of `all_places`."""
    both = jnp.concatenate([effects.features, effects.errors[..., None]], -1)
    both = jnp.swapaxes(both, 1, 2).reshape(2, -1)
    return jnp.concatenate([both, effects.embeddings], 1)


def drawn_circuits():
    """Return the circuit without nodes, the whole model and a random circuit."""
    random = np.random.default_rng(1)
    shapes = (1, 3, len(SITES), N_FEATURES), (1, 3, len(SITES))
    return Kept(
        *(
            jnp.stack([jnp.asarray(random.random(shape) < share) for share in (0.0, 1.1, 0.5)])
            for shape in shapes
        )
    )


NODES, OWN = drawn()
HAND = jax.device_get(OWN)
KEPT = drawn_circuits()


@jax.jit
def program(params):
    """Compute everything that the tests read."""
    circuits = FeatureCircuits.of(MODEL, params, NODES, OWN, CLEAN, CORRUPT, metric)
    effects = circuits.attributions()
    return {
        "clean": circuits.clean,
        "other": circuits.other,
        "baseline": circuits.baseline,
        "attributions": effects,
        "integrated": circuits.integrated_gradients(16),
        "exact": circuits.exact(all_places()),
        "kept": jax.lax.map(circuits.metric_of, KEPT),
        "graph": feature_graph(circuits, effects, max_features=10_000),
        "gradients": circuits.gradients()[0],
    }


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(1))


@pytest.fixture(scope="module")
def found(params):
    return jax.device_get(program(params))


@jax.jit
def _run(params, tokens, which, values):
    edits = {site: Edit(_set_if, (which[n], values[n])) for n, site in enumerate(SITES)}
    logits, values = MODEL.forward(params, tokens, edits=edits, sites=SITES)
    return metric(logits[:, -1]), [values[site] for site in SITES]


def _set_if(value, hooks, args):
    return jnp.where(args[0], args[1], value)


def run(params, tokens, values=()):
    """Run with some sites, by number, set to values. Return the metric and the values of sites."""
    values = dict(values)
    empty = jnp.zeros((2, 3, SPEC.d_model))
    which = jnp.array([number in values for number in range(len(SITES))])
    stacked = jnp.stack([values.get(number, empty) for number in range(len(SITES))])
    return jax.device_get(_run(params, tokens, which, stacked))


def test_features_and_errors_are_the_model(params, found):
    for tokens, values in ((CLEAN, found["clean"]), (CORRUPT, found["other"])):
        _, sites = run(params, tokens)
        for number, site in enumerate(sites):
            whole = values.acts[:, :, number] @ HAND[number]["W_dec"] + HAND[number]["b_dec"]
            np.testing.assert_allclose(whole + values.error[:, :, number], site, atol=1e-5)
    np.testing.assert_allclose(found["baseline"], run(params, CLEAN)[0], atol=1e-6)
    assert abs(found["clean"].error).mean() > 0.05


def test_exact_effects_are_those_of_setting_one_node(params, found):
    clean, other, places = found["clean"], found["other"], all_places()
    sites, checked = run(params, CLEAN)[1], 0
    for index in range(0, places.site.shape[1] - 3, 4):
        site, pos, feature = (int(x[0, index]) for x in places)
        acts, error = clean.acts[:, pos, site].copy(), clean.error[:, pos, site]
        if feature < N_FEATURES:
            acts[:, feature] = other.acts[:, pos, site, feature]
        else:
            error = other.error[:, pos, site]
        state = acts @ HAND[site]["W_dec"] + HAND[site]["b_dec"] + error
        value = sites[site].copy()
        value[:, pos] = state
        patched = run(params, CLEAN, {site: value})[0]
        wanted = patched - found["baseline"]
        np.testing.assert_allclose(found["exact"][:, index], wanted, atol=2e-5)
        checked += int((abs(wanted) > 1e-3).sum())
    assert checked > 15
    # In each pair, one token differs.
    corrupt = run(params, CORRUPT)[0] - found["baseline"]
    of_embeddings = found["exact"][:, -3:]
    np.testing.assert_allclose(of_embeddings[np.arange(2), [0, 1]], corrupt, atol=2e-5)


def test_effects_along_a_line_sum_to_the_effect_of_the_site(params, found):
    integrated, baseline = found["integrated"], found["baseline"]
    corrupt, other = run(params, CORRUPT)
    of_sites = integrated.features.sum((1, 3)) + integrated.errors.sum(1)
    for number, value in enumerate(other):
        wanted = run(params, CLEAN, {number: value})[0] - baseline
        np.testing.assert_allclose(of_sites[:, number], wanted, rtol=1e-3, atol=1e-4)
    of_embeddings = integrated.embeddings.sum(1)
    np.testing.assert_allclose(of_embeddings, corrupt - baseline, rtol=1e-3, atol=1e-4)
    estimates = flat(found["attributions"]), flat(integrated)
    errors = [abs(np.asarray(one) - found["exact"]).mean() for one in estimates]
    assert errors[1] < errors[0]


def test_in_a_linear_model_all_effects_are_equal(params):
    """Attention is uniform, and MLPs write constants."""
    blocks = {
        name: block
        | {"attn": block["attn"] | {"W_Q": jnp.zeros_like(block["attn"]["W_Q"])}}
        | {"mlp": block["mlp"] | {"W_in": jnp.zeros_like(block["mlp"]["W_in"])}}
        for name, block in params["blocks"].items()
    }
    linear = jax.device_get(program(params | {"blocks": blocks}))
    for estimate in ("attributions", "integrated"):
        np.testing.assert_allclose(flat(linear[estimate]), linear["exact"], atol=1e-5)
    assert (abs(linear["exact"]) > 1e-2).sum() > 50


def test_a_circuit_sets_all_other_nodes(params, found):
    other, (nothing, whole, some) = found["other"], found["kept"]
    np.testing.assert_allclose(whole, found["baseline"], atol=1e-6)
    # Without any node, the last site at the last position is that of the corrupt prompt.
    np.testing.assert_allclose(nothing, run(params, CORRUPT)[0], atol=1e-5)
    features, errors = (np.asarray(x[2]) for x in KEPT)
    values = {}
    for number, own in enumerate(HAND):
        value = run(params, CLEAN, values)[1][number]
        acts = np.maximum(0, (value - own["b_dec"]) @ own["W_enc"] + own["b_enc"])
        error = value - acts @ own["W_dec"] - own["b_dec"]
        acts = np.where(features[:, :, number], acts, other.acts[:, :, number])
        error = np.where(errors[:, :, number, None], error, other.error[:, :, number])
        values[number] = acts @ own["W_dec"] + own["b_dec"] + error
    np.testing.assert_allclose(some, run(params, CLEAN, values)[0], atol=2e-5)
    shares = faithfulness(found["kept"], whole, nothing)
    wanted = (some.mean() - nothing.mean()) / (whole.mean() - nothing.mean())
    np.testing.assert_allclose(shares, [0, 1, wanted], atol=1e-5)


def test_nodes_are_selected_by_the_size_of_their_effect(found):
    effects = found["attributions"]
    kept = select(effects, 0.05)
    np.testing.assert_array_equal(kept.features, abs(effects.features) >= 0.05)
    np.testing.assert_array_equal(kept.complement.errors, abs(effects.errors) < 0.05)
    chosen = strongest(effects, 7)
    size, places = abs(effects.features), jax.device_get(chosen)
    own = size[np.arange(2)[:, None], places.pos, places.site, places.feature]
    np.testing.assert_allclose(np.sort(own), np.sort(size.reshape(2, -1))[:, -7:])
    assert (np.diff(places.site) >= 0).all()


def test_edges_follow_the_chain_rule(found):
    """The edges of a source, times the gradients at their targets, sum to its attribution."""
    graph, gradient = found["graph"], found["gradients"]
    n, n_errors = graph.layer.shape[1], 3 * len(SITES)
    assert n == 3 * len(SITES) * N_FEATURES and (graph.n_active < n).all()
    rows = jnp.stack([one["W_dec"] for one in OWN])
    batch = np.arange(2)[:, None]
    weight = jnp.einsum(
        "bfd,bfd->bf", gradient[batch, graph.pos, graph.layer], rows[graph.layer, graph.feature]
    )
    weight = jnp.concatenate(
        [weight, jnp.ones((2, n_errors)), jnp.zeros((2, 3)), jnp.ones((2, 1))], 1
    )
    summed = jnp.einsum("bt,bts->bs", weight, graph.adjacency)
    effects = found["attributions"]
    wanted = effects.features[batch, graph.pos, graph.layer, graph.feature]
    np.testing.assert_allclose(summed[:, :n], wanted, rtol=1e-4, atol=2e-6)
    errors = jnp.swapaxes(effects.errors, 1, 2).reshape(2, -1)
    np.testing.assert_allclose(summed[:, n : n + n_errors], errors, rtol=1e-4, atol=2e-6)
    np.testing.assert_allclose(summed[:, -4:-1], effects.embeddings, rtol=1e-4, atol=2e-6)
    acts = found["clean"].acts[batch, graph.pos, graph.layer, graph.feature]
    np.testing.assert_array_equal(graph.activation, acts)
    forward = graph.layer[:, :, None] > graph.layer[:, None]
    assert not np.where(forward, 0, graph.adjacency[:, :n, :n]).any()
    after = found["kept"][0] - found["baseline"]
    np.testing.assert_allclose(graph.total[:, -1], after, atol=1e-5)


@pytest.mark.slow
def test_the_bridge_share_of_one_hot_autoencoders_is_that_of_the_mechanism():
    """Autoencoders whose features are the one-hot codes of a composer have no error."""
    relay = Relay()
    model, width = relay.model, relay.model.spec.d_model
    sites = circuit_sites(model)
    eye, zeros = jnp.eye(width), jnp.zeros(width)
    one = {"W_enc": eye, "b_enc": zeros, "W_dec": eye, "b_dec": zeros}
    made = InferenceDictionary(Autoencoder(width, width, width), "standard")
    nodes, own = FeatureNodes((made,) * len(sites), sites), [one] * len(sites)
    truth, dataset = relay.dataset.truth, relay.dataset
    rows = dataset.rows("train_ii")[:4]
    clean = np.asarray(dataset.tokens[rows][:, :3])
    e2, answer = truth["e2"][rows], truth["answer"][rows]
    tail = dataset.world.tail
    e1 = np.array(
        [
            next(
                e
                for e in range(6)
                if tail[tail[e, truth["r1"][row]], truth["r2"][row]] != truth["answer"][row]
            )
            for row in rows
        ]
    )
    corrupt = clean.copy()
    corrupt[:, 2] = e1
    value = np.full((3, len(sites), width), -1)
    for code in (relay.bridge, relay.second):
        value[:, :, code] = np.arange(6)
    features = BridgeFeatures(jnp.asarray(value), jnp.ones(value.shape))

    @jax.jit
    def program(params):
        def margin(logits):
            return jnp.take_along_axis(logits, jnp.asarray(answer)[:, None], 1)[:, 0]

        circuits = FeatureCircuits.of(model, params, nodes, own, clean, corrupt, margin)
        graphs = feature_graph(circuits, circuits.attributions(), max_features=40)

        def shared(graph, bridge):
            kinds = node_kinds(graph, 3, len(sites))
            stands = standing_for(graph, features, bridge)
            return bridge_share(graph, kinds, stands, jnp.array([True, False, True]))

        shares = [jax.vmap(shared)(graphs, jnp.asarray(b)) for b in (e2, (e2 + 1) % 6)]
        return circuits.clean.error, shares

    error, (share, other) = program(relay.params)
    np.testing.assert_allclose(error, 0, atol=1e-6)
    np.testing.assert_allclose(share, 1, atol=1e-5)
    np.testing.assert_allclose(other, 0, atol=1e-5)


def test_what_no_circuit_can_be_made_of_is_refused():
    width = SPEC.d_model
    plain = InferenceDictionary(Autoencoder(width, width, 8), "standard")
    with pytest.raises(InputError, match="6 sites for 2 autoencoders"):
        FeatureNodes((plain,) * 2, SITES)
    with pytest.raises(InputError, match="same number of features, got 8, 9"):
        other = InferenceDictionary(Autoencoder(width, width, 9), "standard")
        FeatureNodes((plain, other), SITES[:2])
    with pytest.raises(InputError, match="not gated, got standard Transcoder"):
        transcoder = InferenceDictionary(Transcoder(width, width, 8), "standard")
        FeatureNodes((transcoder,), SITES[:1])
