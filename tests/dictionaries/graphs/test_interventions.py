"""Effects of interventions are those that the graph predicts, and swaps of bridges are followed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.dictionaries import splice
from implicit_reasoning.dictionaries.architectures import CrossLayer
from implicit_reasoning.dictionaries.dictionary import InferenceDictionary
from implicit_reasoning.dictionaries.graphs.bridge import BridgeFeatures
from implicit_reasoning.dictionaries.graphs.interventions import (
    WITHIN,
    Intervention,
    Interventions,
    ablate,
    clamp,
    mean_activations,
    predicted_effects,
    random_features,
    swap,
)
from implicit_reasoning.dictionaries.replacement import Replacement, local_run, mlp_sites
from implicit_reasoning.dictionaries.splice import Sites
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Edit, Transformer
from implicit_reasoning.model.edits import mask
from tests.dictionaries.graphs.replacements import drawn
from tests.dictionaries.graphs.test_attribution import N_FEATURES, SPEC, TOKENS, graphs_of

N_VALUES = 3


@pytest.fixture(scope="module", params=["skip", "cross_layer"])
def made(request):
    """Return random transcoders, their graphs, interventions on nodes, and all results."""
    model, params, replacement, own = drawn(request.param, SPEC, N_FEATURES)
    graphs = graphs_of(model, params, replacement, own, TOKENS)

    @jax.jit
    def program(params, own, changes):
        run = Interventions.of(model, params, replacement, own, TOKENS)
        nothing = ablate(jnp.zeros(run.local.acts.shape, bool))
        found = {
            within: jax.lax.map(lambda change, within=within: run(change, within), changes)
            for within in WITHIN
        }
        return found | {"none": run(nothing, "real")}

    random = np.random.default_rng(0)
    local = jax.jit(lambda own: local_run(model, params, replacement, own, TOKENS))(own)
    active = np.asarray(local.acts) > 0
    some = active & (random.random(active.shape) < 0.1)
    inactive = ~active & (random.random(active.shape) < 0.1)
    one = np.zeros_like(active)
    for row in range(len(TOKENS)):
        one[row, graphs.pos[row, 0], graphs.layer[row, 0], graphs.feature[row, 0]] = True
    changes = [
        ablate(jnp.asarray(some)),
        clamp(jnp.asarray(some), 20 * local.acts),  # other features switch on and off
        clamp(jnp.asarray(one), local.acts + 1e-3),  # all other features stay active or inactive
        clamp(jnp.asarray(some | inactive), 0.3),
    ]
    changes = jax.tree.map(lambda *parts: jnp.stack(parts), *changes)
    found = program(params, own, changes)
    return (model, params, replacement, own), graphs, changes, local, found


def predicted(graphs, changes):
    """Return the predictions for all changes and prompts, [change, batch, target]."""
    return jax.jit(jax.vmap(jax.vmap(predicted_effects), (None, 0, 0)))(
        graphs, changes.where, changes.value
    )


def observed(made, within):
    """Return the changes of the targets of the graph within a model, [change, batch, target]."""
    (_, _, replacement, own), graphs, _, local, found = made
    weights = replacement.weights(own)
    batch = np.arange(len(TOKENS))[:, None]

    def targets(logits, inputs):
        pre = jnp.einsum("bpld,ldf->bplf", inputs, weights.encoder)
        centred = logits - logits.mean(-1, keepdims=True)
        of_features = pre[batch, graphs.pos, graphs.layer, graphs.feature]
        return jnp.concatenate([of_features, jnp.take_along_axis(centred, graphs.token, 1)], 1)

    return jax.vmap(targets)(*found[within]) - targets(local.logits, local.inputs)[None]


def counted(graphs):
    return np.asarray(jnp.concatenate([graphs.counts, graphs.probability > 0], 1))


def test_with_fixed_features_effects_are_the_direct_edges(made):
    """Ablations, large and small changes of features that are nodes."""
    _, graphs, changes, _, _ = made
    there = counted(graphs)
    wanted = np.where(there, predicted(graphs, changes).edges, 0)[:3]
    found = np.where(there, observed(made, "edges"), 0)[:3]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-4)
    assert (abs(wanted[:2]) > 0.01).sum() > 50


def test_with_features_that_follow_effects_are_those_over_all_paths(made):
    _, graphs, changes, _, _ = made
    there = counted(graphs)
    prediction = predicted(graphs, changes)
    wanted, direct = (np.where(there, x, 0)[:3] for x in (prediction.paths, prediction.edges))
    found = np.where(there, observed(made, "paths"), 0)[:3]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-4)
    assert abs(wanted - direct).max() > 0.05


def test_small_changes_do_in_the_replacement_model_what_all_paths_predict(made):
    _, graphs, changes, _, _ = made
    there = counted(graphs)
    wanted = np.where(there, predicted(graphs, changes).paths, 0)[2]
    found = np.where(there, observed(made, "replacement"), 0)[2]
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=2e-6)
    assert abs(wanted).max() > 1e-4
    # Large changes switch features on and off, so they do something else.
    assert abs(observed(made, "replacement") - observed(made, "paths"))[1].max() > 1e-3


def test_without_a_change_all_models_are_the_model(made):
    _, _, _, local, found = made
    np.testing.assert_allclose(found["none"].logits, local.logits, atol=1e-5)
    assert abs(found["real"].logits - found["frozen"].logits).max() > 1e-3
    assert abs(found["frozen"].logits - found["replacement"].logits).max() > 1e-3


def test_real_interventions_are_edits_of_spliced_dictionaries(made):
    (model, params, replacement, own), _, changes, _, found = made
    sites, changed = replacement.sites, Intervention(changes.where[1], changes.value[1])
    parts = [sites] if len(own) == 1 else [Sites((r,), (w,)) for r, w in zip(*sites, strict=True)]
    everywhere, edits = jnp.ones(TOKENS.shape[1], bool), {}
    for number, here in enumerate(parts):
        spliced = splice.edits(
            replacement.dictionaries[number], own[number], here, everywhere, keep_error=True
        )
        one = changed if len(own) == 1 else jax.tree.map(lambda x, n=number: x[:, :, n], changed)
        flat = tuple(x.reshape(*TOKENS.shape, -1) for x in one)
        edits |= spliced | {f"{write}.hook_acts": Edit(mask, flat) for write in here.write}
    logits = jax.jit(lambda edits: model.forward(params, TOKENS, edits=edits)[0])(edits)
    np.testing.assert_allclose(found["real"].logits[1], logits[:, -1], atol=2e-5)
    assert abs(found["real"].logits[1] - found["none"].logits).max() > 0.1


def test_a_swap_sets_the_features_of_both_bridges():
    value = jnp.asarray([[[0, 1, 2, -1]], [[1, 1, 0, 2]]])  # [pos, layer, feature]
    features = BridgeFeatures(value, jnp.ones(value.shape))
    random = np.random.default_rng(1)
    acts = jnp.asarray(
        random.exponential(size=(40, 2, 1, 4)) * (random.random((40, 2, 1, 4)) < 0.7)
    )
    bridge, states = random.integers(0, N_VALUES, 40), random.random((40, 2)) < 0.8
    means = np.asarray(mean_activations(acts, features, bridge, states, N_VALUES))
    for place in np.ndindex(value.shape):
        own = np.asarray(acts)[(slice(None), *place)]
        chosen = own[(bridge == value[place]) & states[:, place[0]] & (own > 0)]
        expected = chosen.mean() if value[place] >= 0 else 0
        np.testing.assert_allclose(means[place], expected, rtol=1e-5)
    old, new = jnp.array([0, 1]), jnp.array([1, -1])
    found = swap(features, jnp.asarray(means), old, new, np.array([False, True]))
    assert not found.where[:, 0].any()
    assert found.where[:, 1, 0].tolist() == [[True, True, True, False], [True, True, False, False]]
    np.testing.assert_allclose(found.value[0, 1, 0], means[1, 0] * np.array([1, 1, 0, 0]))
    assert (found.value[1] == 0).all()


def test_random_features_change_by_vectors_of_the_same_norm(made):
    (_, _, replacement, own), _, changes, local, _ = made
    weights = replacement.weights(own)
    change = Intervention(changes.where[3], changes.value[3])
    null = random_features(jax.random.key(0), change, local.acts, weights)
    norms = jnp.sqrt((weights.decoder**2).sum((-2, -1)))

    def sizes(one):
        moved = jnp.where(one.where, one.value - local.acts, 0) * norms[None, None]
        return np.sort(np.asarray(moved), -1)

    np.testing.assert_allclose(sizes(null), sizes(change), atol=1e-5)
    assert (null.where != change.where).any(-1)[change.where.any(-1) & ~change.where.all(-1)].all()


def test_what_cannot_run_is_refused():
    model, params, replacement, own = drawn("skip", SPEC, N_FEATURES)
    run = Interventions.of(model, params, replacement, own, TOKENS)
    with pytest.raises(InputError, match="within is 'reel'; it must be one of edges, paths"):
        run(ablate(run.local.acts > 0), "reel")
    depth, width = SPEC.n_layers, SPEC.d_model
    crossing = CrossLayer(depth * width, depth * width, depth * 8, n_layers=depth)
    topk = Replacement((InferenceDictionary(crossing, "topk", 4),), mlp_sites(Transformer(SPEC)))
    with pytest.raises(InputError, match="compete with features of later layers"):
        Interventions.of(model, params, topk, own, TOKENS)
