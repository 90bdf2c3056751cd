"""Paths, nodes and corruptions equal masks by hand and runs with plain edits."""

import functools

import jax
import numpy as np
import pytest

from implicit_reasoning.analysis.circuits import corruptions, nodes, paths, scores
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Edit, set_to
from implicit_reasoning.model.graph import edge_edits, sender_outputs
from tests.analysis.circuits import tiny

parse = paths.EdgePath.parse
SMALL = 1e-3
PATHS = [
    parse("input -> a0.h1<v> -> m1 -> logits"),
    parse("input -> a0.h1<v> -> a1.h0<k> -> logits", (0, 1, 2)),
    parse("a0.h0 -> m0 -> a1.h1<q>", (2, 2)),
    parse("input -> m0", (0,)),
    parse("m0 -> a1.h1<v>", (1,)),
    parse("a1.h0 -> logits"),
]


@functools.cache
def found():
    """Return all effects from one program."""

    def run(params, runs):
        of = tiny.MODEL, params, tiny.GRAPH, runs, tiny.metric
        near = runs._replace(other=runs.own + SMALL * runs.change)
        return {
            "paths": paths.path_effects(*of, paths.path_masks(tiny.GRAPH, PATHS)),
            "nodes": nodes.exact_nodes(*of),
            "EAP": nodes.node_sums(tiny.GRAPH, scores.eap(*of)),
            "near": nodes.exact_nodes(*of[:3], near, tiny.metric, by_position=False),
            "mean": corruptions.mean_outputs(tiny.MODEL, params, tiny.CORRUPT, 3),
            "noise": corruptions.noisy_outputs(
                tiny.MODEL, params, tiny.CLEAN, jax.random.key(0), scale=0.5, positions=(1,)
            ),
        }

    return jax.device_get(jax.jit(run)(tiny.params(), tiny.runs()))


def clean_metric():
    return tiny.metrics([np.ones((1, 1))])[0]


def walked(path):
    """Patch a path step by step: the output of each node with one changed input, all else clean."""
    own, other = (np.asarray(x) for x in (tiny.runs().own, tiny.runs().other))
    sender = tiny.GRAPH.senders.index(path.edges[0].sender)
    carried = other[:, :, sender]  # the value of the present sender
    for step, edge in enumerate(path.edges):
        pos = slice(None) if path.positions is None else path.positions[step]
        frozen = own.copy()
        frozen[:, :, tiny.GRAPH.senders.index(edge.sender)] = carried
        mask = np.ones((len(tiny.GRAPH.edges), tiny.GRAPH.n_pos), np.float32)
        mask[tiny.GRAPH.index(edge), pos] = 0
        if step == len(path.edges) - 1:
            return tiny.metrics([mask], frozen)[0] - clean_metric()
        carried = output_of(edge.receiver.partition("<")[0], mask, frozen)
    raise AssertionError


@functools.cache
def _outputs():
    def run(params, mask, other):

        edits = edge_edits(tiny.MODEL, tiny.GRAPH, mask, other)
        return sender_outputs(tiny.MODEL, params, tiny.CLEAN, edits=edits)[1]

    return jax.jit(run)


def output_of(node, mask, other):
    """Return the output of a node at all positions in a run with a mask."""
    outputs = _outputs()(tiny.params(), mask, other)
    return np.asarray(outputs[:, :, tiny.GRAPH.senders.index(node)])


@pytest.mark.parametrize("number", range(len(PATHS)), ids=[str(path) for path in PATHS])
def test_a_path_is_walked_node_by_node(number):
    wanted = walked(PATHS[number])
    assert np.abs(wanted).max() > 1e-4
    np.testing.assert_allclose(found()["paths"][number], wanted, atol=2e-5)


def test_a_path_of_one_edge_is_the_edge():
    """All else is live, as in exact scores."""
    for number in (3, 4, 5):
        path, mask = PATHS[number], np.ones((len(tiny.GRAPH.edges), 3), np.float32)
        (edge,), (pos,) = path.edges, path.positions or (2,)
        mask[tiny.GRAPH.index(edge), pos] = 0
        wanted = tiny.metrics([mask])[0] - clean_metric()
        np.testing.assert_allclose(found()["paths"][number], wanted, atol=1e-5)


def test_paths_that_do_not_exist_are_refused():
    with pytest.raises(InputError, match="does not begin where"):
        paths.EdgePath((PATHS[0].edges[0], PATHS[0].edges[2]))
    with pytest.raises(InputError, match="needs 3 positions; got 1"):
        parse("input -> a0.h1<v> -> m1 -> logits", (0,))
    with pytest.raises(InputError, match="at least one edge"):
        parse("input")
    for positions, message in [
        ((2, 1, 2), "does not depend on its input at position 2"),
        ((0, 1, 1), "enters the logits at another position"),
        ((0, 1, 3), "position 3 does not exist"),
    ]:
        path = parse("input -> a0.h1<v> -> a1.h0<k> -> logits", positions)
        with pytest.raises(InputError, match=message):
            paths.path_masks(tiny.GRAPH, [path])
    with pytest.raises(InputError, match="has no edge"):
        paths.path_masks(tiny.GRAPH, [parse("input -> a0.h7<v>")])


def test_a_node_is_all_its_edges():
    alive = nodes.alive_nodes(tiny.GRAPH)
    cells = np.argwhere(alive)
    masks = np.ones((len(cells), len(tiny.GRAPH.edges), tiny.GRAPH.n_pos), np.float32)
    for mask, (sender, pos) in zip(masks, cells, strict=True):
        mask[tiny.GRAPH.sender == sender, pos] = 0
    wanted = tiny.metrics(masks) - clean_metric()
    np.testing.assert_allclose(found()["nodes"][tuple(cells.T)], wanted, atol=1e-5)
    assert (found()["nodes"][~alive] == 0).all() and not alive.all()


def test_summed_estimates_are_the_slope_of_nodes():
    """The nodes are patched at all positions, so the estimates of positions are summed."""
    slope, eap = found()["near"][:, 0] / SMALL, found()["EAP"].sum(1)
    np.testing.assert_allclose(eap, slope, atol=0.05 * np.abs(slope).max())


def test_means_are_those_of_the_reference():
    other = np.asarray(tiny.runs().other)
    assert found()["mean"].shape == (3, *other.shape[1:])
    np.testing.assert_allclose(found()["mean"][2], other.mean(0), atol=1e-6)


def test_zeros_remove_senders():
    """Without the output of its last MLP, the model is one whose last MLP is edited to zero."""
    own, _ = tiny.runs().own, tiny.runs().other
    m1 = tiny.GRAPH.senders.index("m1")
    mask = np.where(tiny.GRAPH.sender == m1, 0, 1)[:, None]
    got = tiny.masked([mask], corruptions.zero_outputs(own))[0]
    edits = {"blocks.1.hook_mlp_out": Edit(set_to, 0.0)}
    run = jax.jit(lambda p: tiny.MODEL.forward(p, tiny.CLEAN, edits=edits)[0][:, -1])
    np.testing.assert_allclose(got, run(tiny.params()), atol=1e-5)


def test_noise_begins_at_the_embeddings_of_its_positions():
    own = np.asarray(tiny.runs().own)
    change = found()["noise"] - own
    assert (change[:, 0] == 0).all()  # a causal model does not see later noise
    assert (change[:, 2, 0] == 0).all() and (np.abs(change[:, 2, 1:]).max((0, 2)) > 1e-4).all()
    spread = 0.5 * np.asarray(tiny.params()["embed"]["W_E"]).std()
    assert change[:, 1, 0].std() == pytest.approx(spread, rel=0.4)
