"""The edge graph: a mask for every edge equals edits of single inputs, and edges patched alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Edit, Spec, Transformer, add
from implicit_reasoning.model.edge_patches import edge_cache_sites, edge_cells, edge_logits
from implicit_reasoning.model.graph import (
    EdgeGraph,
    block_starts,
    forward_edges,
    forward_edges_from,
    sender_outputs,
)
from implicit_reasoning.model.units import Edge
from implicit_reasoning.model.wirings import forward_at
from tests.model.exchange.models import filled, tokens_for

SPEC = Spec(d_vocab=13, n_ctx=3, n_layers=2, d_model=8, n_heads=2, d_mlp=12)
LOOPED = dataclasses.replace(SPEC, n_layers=1, n_loops=2, normalization="none", head_width=3)
POCKET = dataclasses.replace(SPEC, n_heads=4)


class Subject:
    """Random parameters, a clean and a corrupt batch, and one program for all masks."""

    def __init__(self, spec):
        self.model, self.graph = Transformer(spec), EdgeGraph(spec, spec.n_ctx)
        # Large parameters, so that every query and key matters. Without norms, logits explode.
        factor = 3 if spec.normalization == "LN" else 1
        self.params = jax.tree.map(lambda x: factor * x, filled(self.model))
        self.clean, self.corrupt = (tokens_for(spec, rows=2, seed=seed) for seed in (1, 2))
        outputs = jax.jit(functools.partial(sender_outputs, self.model))
        self.logits, self.own = outputs(self.params, self.clean)
        self.corrupt_logits, self.other = outputs(self.params, self.corrupt)

    @functools.cached_property
    def _masked(self):
        def run(live):
            arguments = self.params, self.clean, self.graph, live, self.other
            return forward_edges(self.model, *arguments)[0][:, 0]

        return jax.jit(lambda masks: jax.lax.map(run, masks))

    def masked(self, *masks):
        """Return the logits with each mask. A call fills up to 200 masks, so one is compiled."""
        shape = (len(self.graph.edges), self.graph.n_pos)
        full = np.ones((200, *shape), np.float32)
        full[: len(masks)] = [np.broadcast_to(mask, shape) for mask in masks]
        return np.asarray(self._masked(full))[: len(masks)]

    def alone(self, by_position):
        """Return the logits after patching each edge alone, and the masks that do the same."""
        sites = edge_cache_sites(self.model)

        def run(params):
            cache = forward_at(self.model, params, self.clean, sites=sites)[1]
            change = self.other - self.own
            return edge_logits(
                self.model, params, cache, change, self.graph, by_position=by_position
            )

        cells = edge_cells(self.graph, by_position=by_position)
        masks = np.ones((len(cells.edge), len(self.graph.edges), self.graph.n_pos), np.float32)
        for mask, edge, pos in zip(masks, *cells, strict=True):
            mask[edge, pos if by_position else slice(None)] = 0
        return np.asarray(jax.jit(run)(self.params)), masks


@functools.cache
def subject(spec=SPEC):
    return Subject(spec)


both = pytest.mark.parametrize(
    "spec",
    [
        pytest.param(SPEC, id="two blocks"),
        pytest.param(LOOPED, id="looped, no norm", marks=pytest.mark.slow),
    ],
)


@both
def test_all_edges_live_is_forward_and_no_edge_live_is_the_other_run(spec):
    of = subject(spec)
    own, other = of.masked(1, 0)
    assert np.abs(of.logits - of.corrupt_logits).max() > 0.1
    np.testing.assert_allclose(own, of.logits, atol=2e-6)
    np.testing.assert_allclose(other, of.corrupt_logits, atol=2e-6)


@both
def test_edges_patched_alone_are_masks_of_one_edge(spec):
    of = subject(spec)
    found, masks = of.alone(by_position=True)
    wanted = of.masked(*masks)
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    # Every edge that is alive has an effect on some logit.
    assert np.abs(wanted - np.asarray(of.logits)).max(axis=(1, 2)).min() > 1e-5


@pytest.mark.slow
@both
def test_edges_patched_alone_at_all_positions(spec):
    of = subject(spec)
    found, masks = of.alone(by_position=False)
    np.testing.assert_allclose(found, of.masked(*masks), atol=2e-6)


def test_what_is_not_alive_has_no_effect():
    of = subject()
    np.testing.assert_allclose(of.masked(of.graph.alive)[0], of.logits, atol=2e-6)


RECEIVERS = {
    "input->a0.h1<k>": ("blocks.0.hook_k_input", 1),
    "a0.h1->m0": ("blocks.0.hook_mlp_in", None),
    "m0->a1.h0<v>": ("blocks.1.hook_v_input", 0),
    "a0.h0->a1.h1<q>": ("blocks.1.hook_q_input", 1),
    "a1.h0->m1": ("blocks.1.hook_mlp_in", None),
    "m0->logits": ("blocks.1.hook_resid_post", None),
}


def test_a_masked_edge_is_an_edit_of_one_input():
    """The edges and their positions are found again in the input of the receiver alone."""
    of, pos = subject(), SPEC.n_ctx - 1
    sites = {site for site, _ in RECEIVERS.values()}
    shapes = jax.eval_shape(lambda: of.model.forward(of.params, of.clean, sites=tuple(sites))[1])

    @jax.jit
    def edited(terms):
        edits = {site: Edit(add, term) for site, term in terms.items()}
        return of.model.forward(of.params, of.clean, edits=edits)[0][:, -1]

    masks = []
    for name, (site, head) in RECEIVERS.items():
        edge = of.graph.index(name)
        change = (of.other - of.own)[:, pos, of.graph.sender[edge]]
        terms = {at: np.zeros(shape.shape, np.float32) for at, shape in shapes.items()}
        at = (slice(None), pos) if head is None else (slice(None), pos, head)
        terms[site][at] = change
        mask = np.ones((len(of.graph.edges), SPEC.n_ctx), np.float32)
        mask[edge, pos] = 0
        masks.append(mask)
        np.testing.assert_allclose(of.masked(mask)[0], edited(terms), atol=2e-6, err_msg=name)
    assert np.abs(of.masked(*masks) - np.asarray(of.logits)).max(axis=(1, 2)).min() > 1e-4


def test_half_an_edge_is_between():
    """With the input of the norm-free unembedding, the logits are linear in the weight."""
    of = subject(LOOPED)
    whole, half = np.ones((2, len(of.graph.edges), 1), np.float32)
    edge = of.graph.index("m1->logits")
    whole[edge], half[edge] = 0, 0.5
    patched, between = of.masked(whole, half)
    np.testing.assert_allclose(between, (patched + np.asarray(of.logits)) / 2, atol=2e-6)


def test_counts_at_pocket():
    """Without positions there are 110 edges. At three positions, 240 can matter if queries of the
    first position, which attends only to itself, are counted.
    """
    graph = EdgeGraph(POCKET, 3)
    queries = [
        edge.receiver.startswith("a0") and edge.receiver.endswith("<q>") for edge in graph.edges
    ]
    assert len(graph.edges) == 110
    assert graph.alive.sum() + np.sum(queries) == 240


def test_masks_of_names_and_nodes():
    graph = subject().graph
    mask = graph.mask(["m0->logits", Edge("a0.h1", "m1")])
    assert {str(graph.edges[number]) for number in np.flatnonzero(mask)} == {
        "m0->logits",
        "a0.h1->m1",
    }
    nodes = jnp.ones((len(graph.senders), 3)).at[graph.senders.index("a0.h1"), 2].set(0)
    off = np.argwhere(np.asarray(graph.node_mask(nodes)) == 0)
    assert {graph.edges[edge].sender for edge, _ in off} == {"a0.h1"}
    assert set(off[:, 1]) == {2} and len(off) == sum(e.sender == "a0.h1" for e in graph.edges)


def test_bad_input_is_refused():
    of = subject()
    with pytest.raises(InputError, match=r"has no edge a5\.h0->logits"):
        of.graph.mask(["a5.h0->logits"])
    with pytest.raises(InputError, match="reads prompts of 1 to 3 tokens"):
        EdgeGraph(SPEC, 4)
    arguments = of.model, of.params, of.clean
    with pytest.raises(InputError, match=r"must be \(\d+, 3\) or \(\d+, 1\)"):
        forward_edges(*arguments, of.graph, np.ones((5, 3)), of.other)
    with pytest.raises(InputError, match="the graph is for prompts of 2 tokens"):
        forward_edges(*arguments, EdgeGraph(SPEC, 2), np.ones((len(of.graph.edges), 1)), of.other)


@both
def test_a_run_from_the_start_of_a_block_is_the_whole_run(spec):
    """Edges into earlier blocks are live; all other edges have random weights."""
    of = subject(spec)
    per_block = 3 * spec.n_heads + 1
    block = of.graph.receiver // per_block
    drawn = np.random.default_rng(0).random((len(of.graph.edges), spec.n_ctx))
    masks = [
        np.where(block[:, None] < layer, 1, drawn).astype(np.float32)
        for layer in range(spec.depth + 1)
    ]

    @jax.jit
    def run(params, other):
        starts = block_starts(of.model, params, of.clean)
        return [
            forward_edges_from(of.model, params, start, of.graph, mask, other)[:, 0]
            for start, mask in zip(starts, masks, strict=True)
        ]

    found = run(of.params, of.other)
    assert np.abs(np.diff(found, axis=0)).max(axis=(1, 2)).min() > 1e-3
    np.testing.assert_allclose(found, of.masked(*masks), atol=3e-6)
