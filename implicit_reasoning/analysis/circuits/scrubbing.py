"""Causal scrubbing: run a model on replacement prompts that a hypothesis says are equivalent.

Every term in the residual stream that a hypothesis names comes from a run on another prompt, whose
variable has the same value. All other terms come from a run on a random prompt. If the hypothesis
is right, the answers stay.

Source: Chan et al. 2022, "Causal scrubbing: a method for rigorously testing interpretability
hypotheses" (the recursive algorithm).
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from implicit_reasoning.analysis.circuits.hypotheses import Drawn
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.model.graph import (
    EdgeGraph,
    forward_edges,
    sender_outputs,
    sender_sites,
)

Terms = Float[Array, "batch pos sender d_model"]


def replacements(model: Transformer, params: Params, graph: EdgeGraph, drawn: Drawn) -> Terms:
    """Return the terms of all senders that replace those of a run.

    Args:
      model: the model.
      params: the parameters of one model.
      graph: the edge graph of the model.
      drawn: the prompts of the run and of its parts, as from `hypotheses.draw`.
    """
    terms = sender_outputs(model, params, jnp.asarray(drawn.rest))[1]
    for part in drawn.parts:
        chosen = np.array([graph.senders.index(name) for name in part.senders or graph.senders])
        own = _terms_of(model, params, graph, part)
        terms = terms.at[:, part.pos, chosen].set(own[:, chosen])
    return terms


def scrubbed_logits(
    model: Transformer,
    params: Params,
    graph: EdgeGraph,
    drawn: Drawn,
    terms: Terms,
    n_replaced: Int[Array, ""] | int,
) -> Float[Array, "batch d_vocab"]:
    """Run the model with replaced terms, and return the logits at the last position.

    Args:
      model: the model.
      params: the parameters of one model.
      graph: the edge graph of the model.
      drawn: the prompts of the runs.
      terms: the terms of all senders, as from `replacements`.
      n_replaced: the number of senders whose terms are replaced, in forward order. Later senders
        compute from the replaced terms. The number of all senders means that only the logits do.
        It may be traced.
    """
    live = (jnp.arange(len(graph.senders)) >= n_replaced).astype(jnp.float32)
    tokens = jnp.asarray(drawn.tokens)
    mask = graph.node_mask(live[:, None])
    logits, _ = forward_edges(model, params, tokens, graph, mask, terms)
    return logits[:, 0]


def _terms_of(
    model: Transformer, params: Params, graph: EdgeGraph, part: Drawn
) -> Float[Array, "batch sender d_model"]:
    """Return the terms of all senders at the position of a part, from the run of the part."""
    tokens = jnp.asarray(part.tokens)
    if part.rest is None:
        return sender_outputs(model, params, tokens)[1][:, part.pos]
    other = replacements(model, params, graph, part)
    none = np.zeros((len(graph.edges), 1), np.float32)
    sites = sender_sites(model)
    _, values = forward_edges(model, params, tokens, graph, none, other, sites=sites)
    # In the last block, heads and MLP have the last position only.
    columns = [values[site][:, part.pos - graph.n_pos] for site in sites]
    return jnp.concatenate([x if x.ndim == 3 else x[:, None] for x in columns], axis=1)
