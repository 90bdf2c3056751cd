"""A tiny model with random weights, a batch of prompt pairs, and one program for all masks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from implicit_reasoning.analysis.circuits import scores
from implicit_reasoning.model import Spec, Transformer
from implicit_reasoning.model.graph import EdgeGraph, forward_edges
from tests.model.exchange.models import filled, tokens_for

SPEC = Spec(d_vocab=13, n_ctx=3, n_layers=2, d_model=8, n_heads=2, d_mlp=12)
MODEL, GRAPH = Transformer(SPEC), EdgeGraph(SPEC, 3)
CLEAN = tokens_for(SPEC, rows=2)
CORRUPT = (CLEAN + 3) % SPEC.d_vocab


def metric(logits):
    return logits[:, 4] - 2 * logits[:, 7]


@functools.cache
def params():
    return jax.tree.map(lambda x: 2 * x, filled(MODEL))


@functools.cache
def runs():
    return jax.jit(lambda p: scores.two_runs(MODEL, p, CLEAN, CORRUPT))(params())


@functools.cache
def _masked():
    def run(params, masks, other):
        def of(mask):
            return forward_edges(MODEL, params, CLEAN, GRAPH, mask, other)[0][:, 0]

        return jax.lax.map(of, masks)

    return jax.jit(run)


def masked(masks, other=None, fill=4):
    """Return the logits [mask, batch, d_vocab] with each mask, from one program for all calls."""
    shape = len(GRAPH.edges), GRAPH.n_pos
    masks = np.stack([np.broadcast_to(mask, shape) for mask in masks])
    other, found = runs().other if other is None else jnp.asarray(other), []
    for first in range(0, len(masks), fill):
        part = masks[first : first + fill]
        full = np.ones((fill, *part.shape[1:]), np.float32)
        full[: len(part)] = part
        found.append(np.asarray(_masked()(params(), full, other))[: len(part)])
    return np.concatenate(found)


def metrics(masks, other=None):
    """Return the metric [mask, batch] with each mask."""
    return np.stack([metric(logits) for logits in masked(masks, other)])
