"""Influence is the sum over paths, and pruning follows its published definition."""

import jax
import jax.numpy as jnp
import numpy as np

from implicit_reasoning.dictionaries.graphs.influence import (
    graph_scores,
    influence,
    prune,
    share_through,
    shares,
)

# Nodes: 6 features in three layers, 2 errors, 2 embeddings, 2 logits.
LAYERS = np.array([0, 0, 1, 1, 2, 2])
ORDER = jnp.array([*(1.0 + LAYERS), 0, 0, 0, 0, 9, 9])
FEATURE = np.arange(12) < 6
ERROR = (np.arange(12) >= 6) & (np.arange(12) < 8)
TOKEN = (np.arange(12) >= 8) & (np.arange(12) < 10)
LOGIT = np.arange(12) >= 10
WEIGHTS = jnp.where(LOGIT, jnp.array([0.0] * 10 + [0.7, 0.25]), 0)


def drawn(seed):
    random = np.random.default_rng(seed)
    order = np.asarray(ORDER)
    allowed = (order[:, None] > order[None]) & ~LOGIT[None] & (FEATURE | LOGIT)[:, None]
    return jnp.asarray(np.where(allowed, random.normal(size=(12, 12)), 0), jnp.float32)


def by_paths(normalized, weights):
    """Return the influence by following all paths backward."""
    found = np.zeros(12)

    def walk(node, amount):
        for source in np.flatnonzero(normalized[node]):
            found[source] += amount * normalized[node, source]
            walk(source, amount * normalized[node, source])

    for node in np.flatnonzero(weights):
        walk(node, weights[node])
    return found


def test_influence_is_the_sum_over_all_paths():
    normalized = np.asarray(shares(drawn(0)), np.float64)
    np.testing.assert_allclose(normalized.sum(1)[FEATURE | LOGIT], 1, atol=1e-6)
    found = influence(jnp.asarray(normalized, jnp.float32), WEIGHTS)
    np.testing.assert_allclose(found, by_paths(normalized, np.asarray(WEIGHTS)), atol=1e-6)


def test_scores_follow_their_definitions():
    normalized = shares(drawn(1))
    flow = influence(normalized, WEIGHTS)
    found = np.asarray(flow)
    scores = graph_scores(normalized, flow, WEIGHTS, jnp.asarray(ERROR), jnp.asarray(TOKEN))
    of_tokens, of_errors = found[TOKEN].sum(), found[ERROR].sum()
    # All influence ends at the leaves.
    np.testing.assert_allclose(of_tokens + of_errors, float(WEIGHTS.sum()), rtol=1e-5)
    np.testing.assert_allclose(scores.replacement, of_tokens / (of_tokens + of_errors), rtol=1e-5)
    total = found + np.asarray(WEIGHTS)
    missing = np.asarray(normalized)[:, ERROR].sum(1)
    expected = (total * (1 - missing)).sum() / total.sum()
    np.testing.assert_allclose(scores.completeness, expected, rtol=1e-5)


def test_the_share_through_nodes_is_that_of_the_paths_through_them():
    normalized = np.asarray(shares(drawn(2)), np.float64)
    sources, through = np.arange(12) == 8, np.isin(np.arange(12), [1, 3])
    whole, passing = 0.0, 0.0

    def walk(node, amount, passed):
        nonlocal whole, passing
        for source in np.flatnonzero(normalized[node]):
            part = amount * normalized[node, source]
            if sources[source]:
                whole, passing = whole + part, passing + part * passed
            walk(source, part, passed or through[source])

    for node in np.flatnonzero(np.asarray(WEIGHTS)):
        walk(node, float(WEIGHTS[node]), False)
    one, arrays = jnp.asarray(normalized, jnp.float32), (jnp.asarray(sources), jnp.asarray(through))
    found = share_through(one, WEIGHTS, *arrays)
    assert 0.1 < passing / whole < 0.9
    np.testing.assert_allclose(found, passing / whole, rtol=1e-5)
    nothing = jnp.zeros_like(one)
    assert np.isnan(share_through(nothing, WEIGHTS, *arrays))


def pruned_by_hand(adjacency, nodes, edges):
    """Prune as circuit-tracer does, in numpy and float64."""
    adjacency = np.asarray(adjacency, np.float64)
    weights = np.asarray(WEIGHTS, np.float64)

    def normalize(matrix):
        return abs(matrix) / np.maximum(abs(matrix).sum(1, keepdims=True), 1e-10)

    def threshold(scores, share):
        ordered = np.sort(scores)[::-1]
        return ordered[
            min(np.searchsorted(ordered.cumsum() / ordered.sum(), share), len(scores) - 1)
        ]

    found = by_paths(normalize(adjacency), weights)
    always = TOKEN | LOGIT
    node = (found >= threshold(found, nodes)) | always
    kept = adjacency * node[:, None] * node[None]
    scores = normalize(kept) * (by_paths(normalize(kept), weights) + weights)[:, None]
    edge = (scores >= threshold(scores.ravel(), edges)) & (scores > 0)
    while True:
        before = node.copy()
        edge &= node[:, None] & node[None]
        node &= edge.any(0) | always
        edge &= node[:, None] & node[None]
        node &= edge.any(1) | ~FEATURE
        if (before == node).all():
            return node, edge & node[:, None] & node[None]


def test_pruning_is_the_published_one():
    run = jax.jit(
        lambda adjacency, nodes, edges: prune(
            adjacency,
            WEIGHTS,
            jnp.asarray(FEATURE),
            jnp.asarray(TOKEN | LOGIT),
            nodes=nodes,
            edges=edges,
        )
    )
    sizes = set()
    for seed in range(20):
        for nodes, edges in ((0.8, 0.98), (0.5, 0.7), (0.99, 0.4)):
            adjacency = drawn(seed)
            found = run(adjacency, nodes, edges)
            node, edge = pruned_by_hand(adjacency, nodes, edges)
            np.testing.assert_array_equal(found.node, node)
            np.testing.assert_array_equal(found.edge, edge)
            sizes.add(int(node.sum()))
    assert len(sizes) > 3
