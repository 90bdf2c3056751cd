"""Attribution graphs: the direct effects of features, errors and embeddings on features and logits.

In the local replacement model (`replacement.py`), the pre-activation of a feature is a constant
plus a sum over sources: the active features, the errors and the embeddings. The weight of an edge
is the term of one source. A feature's term is its activation times a virtual weight, summed over
all paths through frozen attention heads and over all layers that the feature writes. A logit node
is the logit of a token minus the mean of all logits.

All targets are pulled back by one linear map, and all prompts of a batch are one program. Map the
function over checkpoints with `jax.vmap`.

Sources: Ameisen et al. 2025, "Circuit tracing", methods; Hanna et al. 2025, circuit-tracer (logit
nodes; the order of nodes).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.dictionaries.replacement import (
    LocalRun,
    Read,
    Replacement,
    Weights,
    Written,
    local_run,
    transport,
)
from implicit_reasoning.model import Params, Transformer
from implicit_reasoning.runtime.machine import highest_precision

LOGITS, PROBABILITY = 10, 0.95
"""The most logit nodes of a graph, and the probability that they cover if fewer are enough."""

_AT_ONCE = 16  # targets that are pulled back together


class Graph(NamedTuple):
    """The attribution graphs of a batch of prompts.

    The nodes are `[features, errors, embeddings, logits]`. Features are sorted by layer. Errors are
    sorted by layer and then by position, and embeddings by position. If a prompt has fewer active
    features or logits than there are places, the rest of these nodes does not count.

    Attributes:
      adjacency: the weight of each edge. Rows are targets, and columns are sources.
      layer: the layer of each feature.
      pos: the position of each feature.
      feature: the number of each feature in its layer.
      activation: the activation of each feature.
      counts: whether each feature counts.
      token: the token of each logit node.
      probability: the probability of each logit node; 0 if it does not count.
      total: the pre-activation of each feature, and the logit minus the mean of each logit node.
      n_active: the number of active features. If it is larger than the number of places, the
        features with the largest activation times decoder norm are nodes.
    """

    adjacency: Float[Array, "batch node node"]
    layer: Int[Array, "batch feature"]
    pos: Int[Array, "batch feature"]
    feature: Int[Array, "batch feature"]
    activation: Float[Array, "batch feature"]
    counts: Bool[Array, "batch feature"]
    token: Int[Array, "batch logit"]
    probability: Float[Array, "batch logit"]
    total: Float[Array, "batch target"]
    n_active: Int[Array, " batch"]


def attribute(
    model: Transformer,
    model_params: Params,
    replacement: Replacement,
    params: Sequence[Params],
    tokens: Int[Array | np.ndarray, "batch pos"],
    *,
    max_features: int,
    max_logits: int = LOGITS,
    probability: float = PROBABILITY,
) -> Graph:
    """Make the attribution graphs of prompts.

    Args:
      model: the model.
      model_params: the parameters of one model.
      replacement: the transcoders.
      params: the parameters of each transcoder.
      tokens: the prompts.
      max_features: the number of places for features; at most the number of all features at all
        positions.
      max_logits: the number of places for logits.
      probability: the logit nodes are the fewest tokens whose probabilities sum to this number.
    """
    weights = replacement.weights(params)
    local = local_run(model, model_params, replacement, params, tokens)
    pull_back = transport(model, model_params, replacement, weights, tokens)
    max_features = min(max_features, local.acts[0].size)
    chosen = _choose_features(local.acts, weights, max_features)
    token, share = _choose_logits(local.logits, max_logits, probability)
    reads = _targets(local, weights, chosen, token)
    pulled = jax.lax.map(pull_back, reads, batch_size=_AT_ONCE)  # leaves [target, batch, ...]
    embed = model.forward(model_params, tokens, sites=("hook_embed",))[1]["hook_embed"]
    rows = jax.vmap(_terms, (1, 0, 0, 0, None), 0)(pulled, chosen, local.error, embed, weights)
    counts = jnp.concatenate([chosen.counts, share > 0], 1)
    n_nodes = rows.shape[2] + token.shape[1]
    adjacency = jnp.zeros((len(tokens), n_nodes, n_nodes))
    own = jnp.where(counts[..., None], rows, 0)
    last = n_nodes - token.shape[1]
    adjacency = adjacency.at[:, :max_features, : rows.shape[2]].set(own[:, :max_features])
    adjacency = adjacency.at[:, last:, : rows.shape[2]].set(own[:, max_features:])
    pre = jnp.einsum("bpld,ldf->bplf", local.inputs, weights.encoder, precision="highest")
    pre = pre + weights.bias[None, None]
    batch = jnp.arange(len(tokens))[:, None]
    totals = pre[batch, chosen.pos, chosen.layer, chosen.feature]
    centred = local.logits - local.logits.mean(-1, keepdims=True)
    logits = jnp.take_along_axis(centred, token, 1)
    return Graph(
        adjacency,
        chosen.layer,
        chosen.pos,
        chosen.feature,
        chosen.activation,
        chosen.counts,
        token,
        share,
        jnp.concatenate([totals, logits], 1),
        chosen.n_active,
    )


class _Chosen(NamedTuple):
    """The features that are nodes, sorted by layer; [batch, feature]."""

    layer: Array
    pos: Array
    feature: Array
    activation: Array
    counts: Array
    n_active: Array


def _choose_features(acts: Array, weights: Weights, count: int) -> _Chosen:
    """Choose the active features with the largest activation times decoder norm."""
    batch, _, n_layers, _ = acts.shape
    norms = jnp.sqrt((weights.decoder**2).sum((-2, -1)))
    size = (acts * norms[None, None]).reshape(batch, -1)
    index = jax.lax.top_k(size, count)[1]
    at = jnp.take_along_axis(acts.reshape(batch, -1), index, 1)
    pos, layer, feature = jnp.unravel_index(index, acts.shape[1:])
    # Places that do not count come last.
    order = jnp.argsort(jnp.where(at > 0, layer, n_layers), 1, stable=True)
    layer, pos, feature, at = (jnp.take_along_axis(x, order, 1) for x in (layer, pos, feature, at))
    active = (acts > 0).reshape(batch, -1).sum(1)
    return _Chosen(layer, pos, feature, at, at > 0, active)


def _choose_logits(logits: Array, count: int, probability: float) -> tuple[Array, Array]:
    """Return the tokens of the logit nodes, and their probabilities; 0 for those not needed."""
    share, token = jax.lax.top_k(jax.nn.softmax(logits), count)
    before = jnp.cumsum(share, 1) - share
    return token, jnp.where(before < probability, share, 0)


def _targets(local: LocalRun, weights: Weights, chosen: _Chosen, token: Array) -> Read:
    """Return the linear targets of all features and logits, with a leading axis [target]."""
    batch = jnp.arange(len(token))
    vocabulary = local.logits.shape[1]

    def of_feature(layer: Array, pos: Array, feature: Array) -> Read:
        encoder = weights.encoder[layer, :, feature]
        inputs = jnp.zeros_like(local.inputs).at[batch, pos, layer].set(encoder)
        return Read(inputs, jnp.zeros_like(local.logits))

    def of_logit(token: Array) -> Read:
        logits = jax.nn.one_hot(token, vocabulary) - 1 / vocabulary
        return Read(jnp.zeros_like(local.inputs), logits)

    features = jax.vmap(of_feature)(chosen.layer.T, chosen.pos.T, chosen.feature.T)
    logits = jax.vmap(of_logit)(token.T)
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), features, logits)


@highest_precision
def _terms(
    pulled: Written, chosen: _Chosen, error: Array, embed: Array, weights: Weights
) -> Float[Array, "target source"]:
    """Return the terms of all sources in the targets of one prompt."""
    rows = weights.decoder[chosen.layer, chosen.feature]  # [feature, out_layer, d_model]
    by_pos = jnp.einsum("tpld,fld->tpf", pulled.mlp, rows)
    places = jnp.arange(len(chosen.pos))
    features = by_pos[:, chosen.pos, places] * jnp.where(chosen.counts, chosen.activation, 0)[None]
    errors = jnp.einsum("tpld,pld->tlp", pulled.mlp, error).reshape(len(features), -1)
    embeddings = jnp.einsum("tpd,pd->tp", pulled.embed, embed)
    return jnp.concatenate([features, errors, embeddings], 1)


class NodeKinds(NamedTuple):
    """Masks of the nodes of one graph, for `influence.py`; arrays [node].

    Attributes:
      feature: whether each node is a feature.
      error: whether each node is an error.
      token: whether each node is an embedding.
      logit: whether each node is a logit.
      weights: the probability of each logit node, and 0 for other nodes.
    """

    feature: Bool[Array, " node"]
    error: Bool[Array, " node"]
    token: Bool[Array, " node"]
    logit: Bool[Array, " node"]
    weights: Float[Array, " node"]

    @property
    def always(self) -> Bool[Array, " node"]:
        """Whether each node is always kept by `prune`: embeddings, and logits that count."""
        return self.token | (self.weights > 0)


def node_kinds(graph: Graph, n_pos: int, n_layers: int) -> NodeKinds:
    """Return the kinds of the nodes of a graph of one prompt (a `Graph` without the batch axis)."""
    sizes = len(graph.layer), n_layers * n_pos, n_pos, len(graph.token)
    number = jnp.repeat(jnp.arange(4), jnp.array(sizes), total_repeat_length=sum(sizes))
    feature, error, token, logit = (number == kind for kind in range(4))
    weights = jnp.concatenate([jnp.zeros(sum(sizes[:3])), graph.probability])
    return NodeKinds(feature, error, token, logit, weights)
