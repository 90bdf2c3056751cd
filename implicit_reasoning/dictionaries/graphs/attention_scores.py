"""Split attention scores into terms of pairs of sources (QK attribution).

Attribution graphs freeze attention patterns, so they do not show why a head attends where it does.
In the local replacement model, queries and keys are linear in the sources of the graph: the active
features, the errors and the embeddings. The score of a head is the product of a query and a key, so
it is a sum over pairs of sources, one at the query and one at the key. The last source, the
constant, is what remains if all sources are 0: biases and position embeddings.

    parts = source_queries_and_keys(model, params, replacement, own, tokens, graphs)
    terms = score_terms(parts, layer=1, head=0, query=2, key=1)

The number of terms is the square of the number of sources. `sum_groups` sums sources first, such as
all features that stand for the bridge.

Source: Kamath et al. 2025, "Tracing attention computation through feature interactions",
Transformer Circuits Thread (QK attributions).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from implicit_reasoning.dictionaries.graphs.attribution import Graph
from implicit_reasoning.dictionaries.replacement import (
    Replacement,
    Weights,
    Written,
    local_run,
    push_forward,
)
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.runtime.machine import highest_precision

_AT_ONCE = 16  # sources that are pushed forward together


class QueriesAndKeys(NamedTuple):
    """The parts of queries and keys that come from each source.

    The sources are `[features, errors, embeddings, constant]`, in the order of the nodes of the
    graph. Parts of features that do not count are 0.

    Attributes:
      queries: the part of each query. The sum over sources is `attn.hook_q`.
      keys: the part of each key. The sum over sources is `attn.hook_k`.
    """

    queries: Float[Array, "batch source layer pos head d_head"]
    keys: Float[Array, "batch source layer pos head d_head"]


@highest_precision
def source_queries_and_keys(
    model: Transformer,
    model_params: Params,
    replacement: Replacement,
    params: Sequence[Params],
    tokens: Int[Array | np.ndarray, "batch pos"],
    graphs: Graph,
) -> QueriesAndKeys:
    """Split the queries and keys of all heads into parts of sources.

    The function can be compiled, with the model and the replacement as static arguments.

    Args:
      model: the model.
      model_params: the parameters of one model.
      replacement: the transcoders.
      params: the parameters of each transcoder.
      tokens: the prompts.
      graphs: the graphs of these prompts, from `attribute`.
    """
    weights = replacement.weights(params)
    local = local_run(model, model_params, replacement, params, tokens)
    sites = [f"blocks.{n}.attn.hook_{name}" for name in ("q", "k") for n in range(model.spec.depth)]
    _, values = model.forward(model_params, tokens, sites=("hook_embed", *sites))
    push = push_forward(model, model_params, replacement, weights, tokens, sites)
    written = _written(graphs, weights, local.error, values["hook_embed"])
    parts = jax.lax.map(push, written, batch_size=_AT_ONCE)  # leaves [source, batch, ...]

    def stacked(name: str) -> Array:
        own = [site for site in sites if site.endswith(name)]
        of_sources = jnp.stack([parts[site] for site in own], 2)
        total = jnp.stack([values[site] for site in own], 1)
        constant = total - of_sources.sum(0)
        return jnp.concatenate([of_sources.swapaxes(0, 1), constant[:, None]], 1)

    return QueriesAndKeys(stacked("hook_q"), stacked("hook_k"))


def _written(graphs: Graph, weights: Weights, error: Array, embed: Array) -> Written:
    """Return what each source writes, with a leading axis [source]."""
    n_batch, n_pos, n_layers, _ = error.shape
    batch = jnp.arange(n_batch)

    def of_feature(place: tuple[Array, ...]) -> Written:
        layer, pos, feature, activation = place
        rows = activation[:, None, None] * weights.decoder[layer, feature]
        return Written(jnp.zeros_like(embed), jnp.zeros_like(error).at[batch, pos].set(rows))

    activation = jnp.where(graphs.counts, graphs.activation, 0)
    places = graphs.layer.T, graphs.pos.T, graphs.feature.T, activation.T
    n_errors = n_layers * n_pos
    errors = jnp.einsum("lm,pq,bqmd->lpbqmd", jnp.eye(n_layers), jnp.eye(n_pos), error)
    embeddings = jnp.einsum("pq,bqd->pbqd", jnp.eye(n_pos), embed)
    parts = (
        jax.vmap(of_feature)(places),
        Written(jnp.zeros((n_errors, *embed.shape)), errors.reshape(n_errors, *error.shape)),
        Written(embeddings, jnp.zeros((n_pos, *error.shape))),
    )
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


@highest_precision
def sum_groups(
    parts: QueriesAndKeys, groups: Float[Array | np.ndarray, "batch group source"]
) -> QueriesAndKeys:
    """Sum the parts of groups of sources.

    Args:
      parts: the parts of single sources.
      groups: 1 where a source is in a group, otherwise 0. If every source is in one group, the
        terms of the groups sum to the scores.

    Returns:
      The parts, with groups instead of sources.
    """
    shares = jnp.asarray(groups, jnp.float32)
    return QueriesAndKeys(*(jnp.einsum("bgs,bs...->bg...", shares, x) for x in parts))


@highest_precision
def score_terms(
    parts: QueriesAndKeys, *, layer: int, head: int, query: int, key: int
) -> Float[Array, "batch query_source key_source"]:
    """Return the terms of one attention score, for all pairs of sources.

    Their sum is `attn.hook_attn_scores` at this layer, head, query and key. Only differences
    between keys change the pattern. Subtract the terms of another key to see why a head attends to
    one key rather than to the other.

    Args:
      parts: the parts of queries and keys.
      layer: the block. A looped model has one for each unrolled block.
      head: the head.
      query: the position of the query.
      key: the position of the key.
    """
    queries = parts.queries[:, :, layer, query, head]
    keys = parts.keys[:, :, layer, key, head]
    return jnp.einsum("bse,bte->bst", queries, keys) / queries.shape[-1] ** 0.5
