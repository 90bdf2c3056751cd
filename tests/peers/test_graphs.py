"""circuit-tracer makes the same attribution graphs from exported weights and transcoders."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.dictionaries.activations import JumpReLU, ReLU
from implicit_reasoning.dictionaries.architectures import CrossLayer, SkipTranscoder, Transcoder
from implicit_reasoning.dictionaries.exchange import save_cross_layer, save_transcoder_set
from implicit_reasoning.dictionaries.graphs.attribution import attribute, node_kinds
from implicit_reasoning.dictionaries.graphs.exchange import graph_json, save_graph
from implicit_reasoning.dictionaries.graphs.influence import graph_scores, influence, prune, shares
from implicit_reasoning.dictionaries.replacement import Replacement, mlp_sites
from implicit_reasoning.model import Transformer
from implicit_reasoning.model.exchange import save_weights
from tests.dictionaries.parameters import at_random
from tests.model.exchange.models import filled
from tests.peers.cases import SPEC
from tests.peers.environment import run_in

pytestmark = pytest.mark.peers

QUERIES, POSITIONS, F, PLACES = 20, 5, 24, 240
KINDS = ("relu", "skip", "cross_layer")


def drawn(kind, spec):
    """Return the transcoders of a kind, with random parameters."""
    depth, width = spec.n_layers, spec.d_model
    if kind == "cross_layer":
        architecture = CrossLayer(depth * width, depth * width, depth * F, n_layers=depth)
        parts = [at_random(architecture, JumpReLU(threshold=0.3))]
    else:
        made = {"relu": Transcoder, "skip": SkipTranscoder}[kind]
        parts = [at_random(made(width, width, F), ReLU(), seed=n) for n in range(depth)]
    finished = [
        (whole, whole.finish(params, jnp.float32(0.4), jnp.float32(4), 1.5, 1.5))
        for whole, params, *_ in parts
    ]
    return [(whole.for_inference(), params) for whole, params in finished]


@pytest.fixture(scope="module")
def made_by_both(tmp_path_factory):
    """Return the folder with circuit-tracer's graphs, and our graphs by kind."""
    folder, model = tmp_path_factory.mktemp("graphs"), Transformer(SPEC)
    params = filled(model)
    save_weights(folder / "ours.safetensors", model, params)
    shape = QUERIES, POSITIONS
    tokens = np.random.default_rng(0).integers(0, model.spec.d_vocab, shape).astype(np.int32)
    np.save(folder / "tokens.npy", tokens)
    graphs = {}
    for kind in KINDS:
        sets = drawn(kind, model.spec)
        if kind == "cross_layer":
            save_cross_layer(folder / kind, *sets[0])
        else:
            save_transcoder_set(folder / kind, sets)
        replacement = Replacement(tuple(whole for whole, _ in sets), mlp_sites(model))
        own = [one for _, one in sets]
        graphs[kind] = jax.jit(
            lambda params, own, tokens, replacement=replacement: attribute(
                model, params, replacement, own, tokens, max_features=PLACES
            )
        )(params, own, jnp.asarray(tokens))
        for row in range(QUERIES):
            one = jax.tree.map(lambda x, row=row: x[row], graphs[kind])
            made = graph_json(
                f"ours_{row}",
                one,
                tokens=tokens[row].tolist(),
                names=[str(token) for token in range(model.spec.d_vocab)],
                n_layers=model.spec.n_layers,
            )
            save_graph(folder / kind, made)
    run_in("circuit_tracer", "circuit_tracer_graphs", folder)
    return folder, graphs, model.spec


@pytest.mark.parametrize("kind", KINDS)
def test_edges_scores_and_pruning_are_those_of_circuit_tracer(made_by_both, kind):
    folder, graphs, spec = made_by_both
    of_query = jax.jit(lambda graph: _judged(graph, spec.n_layers))
    for row in range(QUERIES):
        graph = jax.tree.map(lambda x, row=row: x[row], graphs[kind])
        theirs = np.load(folder / kind / f"graph_{row}.npz")
        ours = {
            (int(layer), int(pos), int(feature)): place
            for place, (layer, pos, feature) in enumerate(
                zip(graph.layer, graph.pos, graph.feature, strict=True)
            )
            if graph.counts[place]
        }
        assert ours.keys() == {tuple(map(int, one)) for one in theirs["features"]}
        n_logits = len(theirs["tokens"])
        np.testing.assert_array_equal(graph.token[:n_logits], theirs["tokens"])
        np.testing.assert_allclose(graph.probability[:n_logits], theirs["probabilities"], rtol=1e-4)
        places = [ours[tuple(map(int, one))] for one in theirs["features"]]
        leaves = PLACES + np.arange((spec.n_layers + 1) * POSITIONS)
        logits = leaves[-1] + 1 + np.arange(n_logits)
        order = np.concatenate([places, leaves, logits])
        np.testing.assert_allclose(
            graph.activation[jnp.array(places)], theirs["activations"], rtol=1e-4, atol=1e-5
        )
        adjacency = np.asarray(graph.adjacency)[np.ix_(order, order)]
        scale = abs(theirs["adjacency"]).max()
        np.testing.assert_allclose(adjacency / scale, theirs["adjacency"] / scale, atol=1e-4)
        scores, pruned = of_query(graph)
        np.testing.assert_allclose(scores, theirs["scores"], atol=1e-4)
        np.testing.assert_array_equal(np.asarray(pruned.node)[order], theirs["node"])
        np.testing.assert_array_equal(np.asarray(pruned.edge)[np.ix_(order, order)], theirs["edge"])


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_the_front_end_are_those_of_circuit_tracer(made_by_both, kind):
    folder, *_ = made_by_both
    for row in range(QUERIES):
        ours, theirs = (
            json.loads((folder / kind / f"{name}_{row}.json").read_text())
            for name in ("ours", "graph")
        )
        nodes, their_nodes = ({n["node_id"]: n for n in g["nodes"]} for g in (ours, theirs))
        assert nodes.keys() == their_nodes.keys()
        for name, node in their_nodes.items():
            for field, value in node.items():
                if isinstance(value, float):
                    assert nodes[name][field] == pytest.approx(value, abs=1e-4), (name, field)
                elif field == "clerp":
                    assert nodes[name][field].partition("(")[0] == value.partition("(")[0]
                else:
                    assert nodes[name][field] == value, (name, field)
        links, their_links = (
            {(link["source"], link["target"]): link["weight"] for link in g["links"]}
            for g in (ours, theirs)
        )
        assert links.keys() == their_links.keys()


def _judged(graph, n_layers):
    kinds = node_kinds(graph, POSITIONS, n_layers)
    normalized = shares(graph.adjacency)
    flow = influence(normalized, kinds.weights)
    scores = graph_scores(normalized, flow, kinds.weights, kinds.error, kinds.token)
    return scores, prune(graph.adjacency, kinds.weights, kinds.feature, kinds.always)
