"""Routes split the edges of graphs exactly, and paths split the values of targets exactly."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.dictionaries.graphs.attribution import attribute
from implicit_reasoning.dictionaries.graphs.connections import (
    connections,
    de_embeddings,
    head_relevance,
    logit_vectors,
    reading_vectors,
    through_heads,
)
from implicit_reasoning.dictionaries.graphs.paths import (
    Paths,
    beam_paths,
    merge_paths,
    top_paths,
)
from implicit_reasoning.dictionaries.graphs.routes import Step, list_routes, split_edges
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Spec, Transformer
from tests.dictionaries.graphs.replacements import drawn

SPEC = Spec(
    d_vocab=11,
    n_ctx=3,
    n_layers=2,
    d_model=16,
    n_heads=2,
    d_mlp=32,
    act_fn="gelu_new",
    init_std=0.4,
)
TOKENS = jnp.array([[1, 5, 9], [4, 4, 2]])
N_FEATURES, PLACES, N_LOGITS = 8, 48, 3


def waves(leaf):
    return 0.3 * np.sin(np.arange(leaf.size, dtype=np.float32)).reshape(leaf.shape)


@pytest.fixture(
    scope="module", params=["skip", pytest.param("cross_layer", marks=pytest.mark.slow)]
)
def split(request):
    """Return a replacement model, its graphs, its routes and the terms of all edges."""
    model, params, replacement, own = drawn(request.param, SPEC, N_FEATURES)
    # Norms whose weights are 1 would hide a norm that is left out.
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf + waves(leaf)), jax.device_get(params))
    routes = list_routes(model, TOKENS.shape[1], skip=request.param == "skip")

    @jax.jit
    def run(params, own):
        graphs = attribute(
            model, params, replacement, own, TOKENS, max_features=PLACES, max_logits=N_LOGITS
        )
        return graphs, split_edges(model, params, replacement, own, TOKENS, graphs, routes)

    graphs, terms = jax.device_get(run(params, own))
    return (model, params, replacement.weights(own)), graphs, routes, terms


def one(graphs, number=0):
    return jax.tree.map(lambda leaf: leaf[number], graphs)


def test_the_routes_of_an_edge_sum_to_its_weight(split):
    """Also for edges through two heads, and through skip connections."""
    _, graphs, routes, terms = split
    n_sources = graphs.adjacency.shape[1] - N_LOGITS
    targets = [*range(PLACES), *range(n_sources, n_sources + N_LOGITS)]
    expected = graphs.adjacency[:, targets, :n_sources]
    np.testing.assert_allclose(terms.sum(2), expected, atol=2e-5 * np.abs(expected).max())
    # Each length carries a part that the tolerance would notice.
    for length in range(3):
        part = terms[:, :, [len(route) == length for route in routes]]
        assert np.abs(part).max() > 1e-2 * np.abs(expected).max()


def test_limited_routes_are_the_first_of_all_routes(split):
    (model, _, _), _, routes, _ = split
    skip = any(step.head is None for route in routes for step in route)
    limited = list_routes(model, 3, max_steps=1, skip=skip)
    assert limited == tuple(route for route in routes if len(route) <= 1)


def test_routes_go_down_and_never_read_later_positions(monkeypatch):
    model = Transformer(SPEC)
    routes = list_routes(model, 2)
    # 1 route without steps; 2 blocks, 2 heads and 2 positions with one step; with two steps, 3 of
    # the 4 pairs of positions do not go forward, and there are 4 pairs of heads.
    assert len(routes) == 1 + 8 + 3 * 4
    assert (Step(1, 0, 0), Step(0, 1, 0)) in routes
    assert (Step(1, 0, 0), Step(0, 1, 1)) not in routes
    monkeypatch.setattr("implicit_reasoning.dictionaries.graphs.routes.MAX_ROUTES", 20)
    with pytest.raises(InputError, match="pass a smaller max_steps"):
        list_routes(model, 2)


def all_paths(paths, target, known=None):
    """List the paths to a target by brute force, as values by arcs."""
    known = {} if known is None else known
    if target not in known:
        found = {((target, -1, paths.terms.shape[2]),): paths.constant[target]}
        for route, source in np.argwhere(paths.terms[target]).tolist():
            arc, term = (target, route, source), paths.terms[target, route, source]
            if source >= paths.n_features:
                found[(arc,)] = term
                continue
            for arcs, value in all_paths(paths, source, known).items():
                found[(arc, *arcs)] = term * value / paths.total[source]
        known[target] = found
    return known[target]


def small(split, number=0):
    """Return the arcs of a prompt with the three most active features of each layer."""
    _, graphs, _, terms = split
    graph, terms = one(graphs, number), terms[number].copy()
    size = np.where(graph.counts, graph.activation, 0)
    kept = [np.argsort(-np.where(graph.layer == layer, size, -1))[:3] for layer in range(2)]
    dropped = np.setdiff1d(np.arange(PLACES), kept)
    terms[dropped] = 0
    terms[:, :, dropped] = 0
    kept = graph.counts & ~np.isin(np.arange(PLACES), dropped)
    return Paths.of(terms, graph._replace(counts=kept))


def test_top_paths_are_all_paths_in_order_of_size(split):
    paths = small(split)
    target = PLACES  # the most probable logit
    expected = all_paths(paths, target)
    sizes = sorted(map(abs, expected.values()), reverse=True)
    first = list(itertools.islice(top_paths(paths, target), 400))
    np.testing.assert_allclose([abs(path.value) for path in first], sizes[:400], rtol=1e-9)
    for path in first:
        assert path.value == pytest.approx(expected[path.arcs], rel=1e-9)
    assert max(len(path.arcs) for path in first) == 3  # through features of both layers


def test_the_paths_to_a_target_sum_to_its_value(split):
    paths = small(split)
    feature = int(np.flatnonzero(paths.total[:PLACES])[-1])
    for target in (feature, PLACES + 1):
        total = sum(path.value for path in top_paths(paths, target))
        assert total == pytest.approx(paths.total[target], rel=1e-6)


def test_a_wide_beam_finds_the_largest_positive_paths_and_a_narrow_one_misses_some(split):
    paths = small(split)
    target = PLACES
    exact = [path for path in itertools.islice(top_paths(paths, target), 60) if path.value > 0]
    leaves = {
        path.arcs: path.value
        for kept in beam_paths(paths, target, n_iters=3, n_branches=100_000, capped=False)
        for path in kept
    }
    constant = paths.terms.shape[2]  # The published code has no paths from constants.
    for path in exact:
        if path.arcs[-1].source != constant:
            assert leaves[path.arcs] == pytest.approx(path.value, rel=1e-9)
    narrow = beam_paths(paths, target, n_iters=3, n_branches=2)
    assert all(len(kept) <= 2 for kept in narrow)
    assert not {path.arcs for path in exact} <= {path.arcs for kept in narrow for path in kept}
    capped = beam_paths(paths, target, n_iters=2, n_branches=1000)
    assert any(path.capped < path.value for path in capped[1])
    first = {path.arcs: path.capped for path in capped[0]}
    assert all(path.capped <= first[path.arcs[:1]] + 1e-12 for path in capped[1])


def test_merged_paths_account_for_what_they_leave_out(split):
    paths = small(split)
    merged = merge_paths(paths, itertools.islice(top_paths(paths, PLACES), 20))
    used = merged.kept.any(1) | (merged.constant != 0)
    assert used[PLACES] and merged.kept.sum() >= 5
    whole = merged.adjacency.sum(1) + merged.pruned + merged.constant
    np.testing.assert_allclose(whole[used], paths.total[used], rtol=1e-5, atol=1e-6)
    assert (merged.pruned[~used] == 0).all()
    assert np.abs(merged.pruned[used]).max() > 1e-3 * np.abs(paths.total).max()


def test_connections_times_activations_scales_and_patterns_are_terms(split):
    """Input-invariant connections differ from terms only by what depends on the prompt."""
    (model, params, weights), graphs, routes, terms = split
    graph, terms = one(graphs), terms[0]
    sites = ("blocks.1.ln2.hook_scale", "blocks.1.ln1.hook_scale", "blocks.1.attn.hook_pattern")
    _, values = model.forward(params, TOKENS, sites=sites)
    scale2, scale1, pattern = (np.asarray(values[site][0]) for site in sites)
    read = reading_vectors(model, params, weights)
    direct = np.asarray(connections(weights, read[1], 0, before=1))
    heads = through_heads(model, params, read[1])[1]
    moved = np.asarray(connections(weights, heads, 0, before=1))
    seen = 0
    for target, source in itertools.product(range(PLACES), range(PLACES)):
        if not (graph.counts[target] and graph.counts[source]):
            continue
        if (graph.layer[target], graph.layer[source]) != (1, 0):
            continue
        ends = graph.pos[target], graph.pos[source]
        factor = graph.activation[source] / scale2[ends[0], 0]
        pair = graph.feature[source], graph.feature[target]
        if ends[0] == ends[1]:
            expected = direct[pair] * factor
            np.testing.assert_allclose(terms[target, 0, source], expected, rtol=1e-3, atol=1e-5)
        for head in range(SPEC.n_heads):
            route = routes.index((Step(1, head, int(ends[1])),))
            expected = moved[head][pair] * factor * pattern[head][ends] / scale1[ends[1], 0]
            np.testing.assert_allclose(terms[target, route, source], expected, rtol=1e-3, atol=1e-5)
            seen += 1
    assert seen > 20


def test_de_embeddings_are_terms_of_embeddings(split):
    (model, params, _), graphs, _, terms = split
    graph, terms = one(graphs), terms[0]
    scale = model.forward(params, TOKENS, sites=("ln_final.hook_scale",))[1]["ln_final.hook_scale"]
    scores = de_embeddings(params, logit_vectors(model, params))
    found = terms[PLACES:, 0, -1]  # from the last embedding, without steps
    expected = scores[TOKENS[0, 2], graph.token] / scale[0, -1, 0]
    counted = graph.probability > 0
    np.testing.assert_allclose(found[counted], expected[counted], rtol=1e-4)


def test_the_relevance_of_a_head_is_zero_if_it_writes_nothing(split):
    (model, params, weights), *_ = split
    read = reading_vectors(model, params, weights)[1]
    whole = params["blocks"]["0"]["attn"]
    keep = np.arange(SPEC.n_heads)[:, None, None] != 1
    silent = whole | {"W_O": whole["W_O"] * keep}
    blocks = params["blocks"] | {"0": params["blocks"]["0"] | {"attn": silent}}
    relevance = head_relevance(model, params | {"blocks": blocks}, read)
    assert (relevance[0, 1] == 0).all() and (relevance[0, 0] > 0).all()
    with pytest.raises(InputError, match="below the number of MLPs"):
        connections(weights, read, 1, before=1)
