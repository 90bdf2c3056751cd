"""Ranks, growth and pruning of circuits equal a search in plain Python."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from implicit_reasoning.analysis.circuits import selection
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Spec
from implicit_reasoning.model.graph import EdgeGraph

WIDE, SMALL = (
    EdgeGraph(Spec(d_vocab=5, n_ctx=3, n_layers=layers, d_model=4, n_heads=2, d_mlp=4), n_pos)
    for layers, n_pos in [(2, 3), (1, 2)]
)
CASES = pytest.mark.parametrize("graph,n_pos", [(WIDE, 3), (WIDE, 1), (SMALL, 2)])


@functools.cache
def program(graph):
    """Return one program for a batch of scores and circuits; it is compiled for each shape."""

    def run(scores, circuit):
        ranks = selection.top_n(graph, scores), selection.greedy(graph, scores)
        return *ranks, selection.prune(graph, circuit)

    return jax.jit(jax.vmap(run))


def found(graph, scores, circuits=None):
    circuits = np.zeros(scores.shape, bool) if circuits is None else circuits
    results = jax.device_get(program(graph)(scores, circuits))
    return dict(zip(("top", "greedy", "prune"), results, strict=True))


def drawn(graph, n_pos, seed):
    """Return eight arrays of scores with many ties and zeros."""
    values = np.random.default_rng(seed).integers(-3, 4, (8, len(graph.edges), n_pos))
    return values.astype(np.float32)


def depends(graph, n_pos, node, pos):
    """Return the inputs on which the output of a node at a position depends."""
    if node == "input":
        return []
    if node.startswith("m"):
        return [(node, pos)]
    found = [(f"{node}<q>", pos)] + [(f"{node}<v>", p) for p in range(pos + 1)]
    return found + [(f"{node}<k>", p) for p in range(pos + 1) if pos > 0 or n_pos == 1]


def cells_of(graph, n_pos):
    alive = graph.alive if n_pos == graph.n_pos else graph.alive.any(1, keepdims=True)
    return [(edge, pos) for edge, pos in np.argwhere(alive)]


def grown(graph, scores):
    n_pos = scores.shape[1]
    ranks = np.full(scores.shape, scores.size)
    within, left = {("logits", n_pos - 1)}, cells_of(graph, n_pos)
    while can := [(e, p) for e, p in left if (graph.edges[e].receiver, p) in within]:
        edge, pos = best = max(can, key=lambda cell: abs(scores[cell]))
        ranks[best] = len(cells_of(graph, n_pos)) - len(left)
        left = [cell for cell in left if cell != best]
        within |= set(depends(graph, n_pos, graph.edges[edge].sender, pos))
    return ranks


def on_paths(graph, circuit):
    """Return the edges of all paths from the logits back to the embeddings, by enumeration."""
    n_pos, kept = circuit.shape[1], np.zeros(circuit.shape, bool)
    into = {}
    for edge, pos in cells_of(graph, n_pos):
        if circuit[edge, pos]:
            into.setdefault((graph.edges[edge].receiver, pos), []).append(edge)

    def walk(receiver, pos, path):
        for edge in into.get((receiver, pos), []):
            here, sender = [*path, (edge, pos)], graph.edges[edge].sender
            if sender == "input":
                kept[tuple(np.transpose(here))] = True
            for name, at in depends(graph, n_pos, sender, pos):
                walk(name, at, here)

    walk("logits", n_pos - 1, [])
    return kept


@CASES
def test_ranks_by_magnitude_are_a_stable_sort(graph, n_pos):
    scores = drawn(graph, n_pos, 0)
    for ranks, values in zip(found(graph, scores)["top"], scores, strict=True):
        order = sorted(cells_of(graph, n_pos), key=lambda cell: -abs(values[cell]))
        wanted = np.full(values.shape, values.size)
        wanted[tuple(np.transpose(order))] = np.arange(len(order))
        np.testing.assert_array_equal(ranks, wanted)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 10**6))
@CASES
def test_growth_is_a_search(graph, n_pos, seed):
    scores = drawn(graph, n_pos, seed)
    for ranks, values in zip(found(graph, scores)["greedy"], scores, strict=True):
        np.testing.assert_array_equal(ranks, grown(graph, values))
        # Every edge that is alive leads to the logits, so every one is added in the end.
        assert sorted(ranks[ranks < values.size]) == list(range(len(cells_of(graph, n_pos))))


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.2, 0.8))
@CASES
def test_pruning_keeps_the_edges_of_paths(graph, n_pos, seed, share):
    scores = drawn(graph, n_pos, 0)
    circuits = np.random.default_rng(seed).random(scores.shape) < share
    for pruned, circuit in zip(found(graph, scores, circuits)["prune"], circuits, strict=True):
        np.testing.assert_array_equal(pruned, on_paths(graph, circuit))


def test_a_dead_end_is_pruned_at_both_ends():
    graph = WIDE
    path = ["input->a0.h1<v>", "a0.h1->m1", "m1->logits"]
    dead = ["m0->a1.h0<v>", "a1.h0->logits", "input->a1.h1<q>"]
    circuit = np.broadcast_to(graph.mask(path + dead) == 1, (len(graph.edges), 3))
    circuits = np.stack([circuit] * 8)
    kept = np.asarray(found(graph, drawn(graph, 3, 0), circuits)["prune"][0])
    names = {str(graph.edges[edge]): set() for edge, _ in np.argwhere(kept)}
    for edge, pos in np.argwhere(kept):
        names[str(graph.edges[edge])].add(int(pos))
    # The head reads all positions, and the last MLP is read at the last position only.
    assert names == {path[0]: {0, 1, 2}, path[1]: {2}, path[2]: {2}}


def test_circuits_of_all_sizes_are_nested():
    graph = WIDE
    ranks = found(graph, drawn(graph, 3, 1))["greedy"][0]
    sizes = np.array([0, 1, 5, 10**6])
    circuits = np.asarray(selection.nested_circuits(jnp.asarray(ranks), sizes))
    np.testing.assert_array_equal(circuits.sum((1, 2)), [0, 1, 5, graph.alive.sum()])
    assert (circuits[:-1] <= circuits[1:]).all()


def test_a_threshold_selects_its_own_value():
    graph, scores = SMALL, drawn(SMALL, 2, 0)[0]
    found = np.asarray(selection.by_threshold(graph, jnp.asarray(scores), 2.0))
    np.testing.assert_array_equal(found, graph.alive & (abs(scores) >= 2))


def test_scores_of_other_positions_are_refused():
    with pytest.raises(InputError, match="the axis pos must have length 2 or 1"):
        selection.top_n(SMALL, jnp.zeros((len(SMALL.edges), 3)))


def test_a_resample_draws_whole_clusters():
    """With one row per cluster that differs from 0, a mean is the share of this cluster's rows."""
    clusters = np.array([7, 7, 7, 2, 5, 5])
    scores = (clusters[None, None] == np.array([2, 5, 7])[:, None, None]).astype(np.float32)
    draw = jax.jit(lambda x: selection.bootstrap_means(x, clusters, jax.random.key(0), 400))
    means = np.asarray(draw(scores))[:, :, 0]
    times = np.stack(np.meshgrid(*[range(4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    rows = times[times.sum(1) == 3] * np.array([1, 2, 3])  # all resamples of three clusters
    shares = rows / rows.sum(1, keepdims=True)
    distance = abs(means[:, None] - shares[None]).max(2)
    assert distance.min(1).max() < 1e-6
    assert (distance.min(0) < 1e-6).sum() >= 9  # of ten possible resamples
    # Each cluster is drawn in one third of the draws.
    assert abs((means[:, 0] == 0).mean() - (2 / 3) ** 3) < 0.08


def test_edges_of_one_sign():
    means = np.array([[1.0, 1.0, -1.0, 0.0]] * 9 + [[1.0, -1.0, -1.0, 0.0]], np.float32)
    mean = np.array([1.0, 1.0, -1.0, 0.0], np.float32)
    select = jax.jit(selection.of_one_sign, static_argnums=2)
    found = [select(means[:, :, None], mean[:, None], share)[:, 0] for share in (0.95, 0.85)]
    assert np.asarray(found).tolist() == [[True, False, True, False], [True, True, True, False]]
