"""Effects of interventions are those that the graph predicts, and swaps of bridges are followed."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.dictionaries import splice
from implicit_reasoning.dictionaries.architectures import CrossLayer
from implicit_reasoning.dictionaries.dictionary import InferenceDictionary
from implicit_reasoning.dictionaries.graphs.attribution import attribute
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
from implicit_reasoning.dictionaries.replacement import Replacement, mlp_sites
from implicit_reasoning.dictionaries.splice import Sites
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Edit, Transformer
from implicit_reasoning.model.edits import mask
from tests.dictionaries.graphs.planted import labeled
from tests.dictionaries.graphs.replacements import drawn
from tests.dictionaries.graphs.test_attribution import N_FEATURES, PLACES, SPEC, TOKENS

N_VALUES = 3


class Made(NamedTuple):
    """Random transcoders, their graphs, interventions on nodes, and all results."""

    model: Any
    params: Any
    replacement: Any
    own: Any
    graphs: Any
    changes: Any
    local: Any
    weights: Any
    found: Any
    predicted: Any


@pytest.fixture(
    scope="module", params=["skip", pytest.param("cross_layer", marks=pytest.mark.slow)]
)
def made(request):
    model, params, replacement, own = drawn(request.param, SPEC, N_FEATURES)
    shape = (len(TOKENS), TOKENS.shape[1], SPEC.n_layers, N_FEATURES)
    chance = np.random.default_rng(0).random((2, *shape)) < 0.1

    @jax.jit
    def program(params, own, chance):
        graphs = attribute(model, params, replacement, own, TOKENS, max_features=PLACES)
        run = Interventions.of(model, params, replacement, own, TOKENS)
        acts = run.local.acts
        some, inactive = (acts > 0) & chance[0], (acts == 0) & chance[1]
        first = graphs.pos[:, 0], graphs.layer[:, 0], graphs.feature[:, 0]
        one = jnp.zeros_like(some).at[jnp.arange(len(TOKENS)), *first].set(True)
        changes = [
            ablate(some),
            clamp(some, 20 * acts),  # other features switch on and off
            clamp(one, acts + 1e-3),  # all other features stay active or inactive
            clamp(some | inactive, 0.3),
        ]
        nothing = run(ablate(jnp.zeros_like(some)), "real")
        changes = jax.tree.map(lambda *parts: jnp.stack(parts), *changes)
        found = {
            within: jax.lax.map(lambda change, within=within: run(change, within), changes)
            for within in WITHIN
        }
        predicted = jax.vmap(jax.vmap(predicted_effects), (None, 0, 0))(graphs, *changes)
        return graphs, changes, run.local, run.weights, found | {"none": nothing}, predicted

    results = jax.device_get(program(params, own, chance))
    return Made(model, params, replacement, own, *results)


def observed(made, within):
    """Return the changes of the targets of the graph within a model, [change, batch, target]."""
    graphs, batch = made.graphs, np.arange(len(TOKENS))[:, None]

    def targets(logits, inputs):
        pre = np.einsum("...bpld,ldf->...bplf", inputs, made.weights.encoder)
        centred = logits - logits.mean(-1, keepdims=True)
        of_features = pre[..., batch, graphs.pos, graphs.layer, graphs.feature]
        return np.concatenate([of_features, centred[..., batch, graphs.token]], -1)

    return targets(*made.found[within]) - targets(made.local.logits, made.local.inputs)


def counted(graphs):
    return np.concatenate([graphs.counts, graphs.probability > 0], 1)


def test_with_fixed_features_effects_are_the_direct_edges(made):
    """Ablations, large and small changes of features that are nodes."""
    there = counted(made.graphs)
    wanted = np.where(there, made.predicted.edges, 0)[:3]
    found = np.where(there, observed(made, "edges"), 0)[:3]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-4)
    assert (abs(wanted[:2]) > 0.01).sum() > 50


def test_with_features_that_follow_effects_are_those_over_all_paths(made):
    there = counted(made.graphs)
    wanted, direct = (np.where(there, x, 0)[:3] for x in made.predicted[::-1])
    found = np.where(there, observed(made, "paths"), 0)[:3]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-4)
    assert abs(wanted - direct).max() > 0.05


def test_small_changes_do_in_the_replacement_model_what_all_paths_predict(made):
    there = counted(made.graphs)
    wanted = np.where(there, made.predicted.paths, 0)[2]
    found = np.where(there, observed(made, "replacement"), 0)[2]
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=2e-6)
    assert abs(wanted).max() > 1e-4
    # Large changes switch features on and off, so they do something else.
    assert abs(observed(made, "replacement") - observed(made, "paths"))[1].max() > 1e-3


def test_without_a_change_all_models_are_the_model(made):
    found = made.found
    np.testing.assert_allclose(found["none"].logits, made.local.logits, atol=1e-5)
    assert abs(found["real"].logits - found["frozen"].logits).max() > 1e-3
    assert abs(found["frozen"].logits - found["replacement"].logits).max() > 1e-3


def test_real_interventions_are_edits_of_spliced_dictionaries(made):
    model, params, replacement, own = made[:4]
    sites, crossing = replacement.sites, len(made.own) == 1
    parts = [sites] if crossing else [Sites((r,), (w,)) for r, w in zip(*sites, strict=True)]

    @jax.jit
    def program(params, own, where, value):
        edits = {}
        for number, here in enumerate(parts):
            everywhere = jnp.ones(TOKENS.shape[1], bool)
            dictionary = replacement.dictionaries[number], own[number]
            edits |= splice.edits(*dictionary, here, everywhere, keep_error=True)
            layers = slice(None) if crossing else number
            flat = tuple(x[:, :, layers].reshape(*TOKENS.shape, -1) for x in (where, value))
            edits |= {f"{write}.hook_acts": Edit(mask, flat) for write in here.write}
        return model.forward(params, TOKENS, edits=edits)[0][:, -1]

    logits = program(params, own, made.changes.where[1], made.changes.value[1])
    found = made.found["real"].logits[1]
    np.testing.assert_allclose(found, logits, atol=2e-5)
    assert abs(found - made.found["none"].logits).max() > 0.1


def test_a_swap_sets_the_features_of_both_bridges():
    value = jnp.asarray([[[0, 1, 2, -1]], [[1, 1, 0, 2]]])  # [pos, layer, feature]
    features = BridgeFeatures(value, jnp.ones(value.shape))
    random = np.random.default_rng(1)
    acts = jnp.asarray(
        random.exponential(size=(40, 2, 1, 4)) * (random.random((40, 2, 1, 4)) < 0.7)
    )
    bridge, states = random.integers(0, N_VALUES, 40), random.random((40, 2)) < 0.8
    prompts = labeled(bridge, np.zeros(40, bool), states, N_VALUES)
    means = np.asarray(mean_activations(acts, features, prompts))
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
    change, acts = Intervention(made.changes.where[3], made.changes.value[3]), made.local.acts
    arguments = jax.tree.map(jnp.asarray, (change, acts, made.weights))
    null = jax.device_get(jax.jit(random_features)(jax.random.key(0), *arguments))
    norms = np.sqrt((made.weights.decoder**2).sum((-2, -1)))

    def sizes(one):
        return np.sort(np.where(one.where, one.value - acts, 0) * norms, -1)

    np.testing.assert_allclose(sizes(null), sizes(change), atol=1e-5)
    some = change.where.any(-1) & ~change.where.all(-1)
    assert (null.where != change.where).any(-1)[some].all()


def test_what_cannot_run_is_refused(made):
    model, params, replacement, own = made[:4]
    results = made.local, made.weights, {}
    run = Interventions(model, params, replacement, own, TOKENS, *results)
    with pytest.raises(InputError, match="within is 'reel'; it must be one of edges, paths"):
        run(made.changes, "reel")
    depth, width = SPEC.n_layers, SPEC.d_model
    crossing = CrossLayer(depth * width, depth * width, depth * 8, n_layers=depth)
    topk = Replacement((InferenceDictionary(crossing, "topk", 4),), mlp_sites(Transformer(SPEC)))
    with pytest.raises(InputError, match="compete with features of later layers"):
        Interventions.of(model, params, topk, own, TOKENS)
