"""Graphs of sparse feature circuits: direct effects between the nodes of `feature_circuits.py`.

A direct effect passes no other site: the values of all sites between are those of the clean run.
The weight of an edge is the change of the source, from the clean to the other run, times the
derivative of the target:

- of a feature, the derivative of its activation;
- of an error, the derivative of the error times the gradient of the metric at its site;
- of the output, the derivative of the metric.

Edges into features times the gradients of the metric with respect to these features, edges into
errors and edges into the output sum to the attribution of the source, if all features are nodes.

The result is a `Graph`, as those of transcoders and cross-layer transcoders. Its layers are the
numbers of the sites, and it has one logit node, which is the metric. Influence, pruning and the
bridge share of the three kinds of graphs are therefore computed by the same functions. In contrast
to graphs of transcoders, the weights are changes between two prompts, attention patterns and norms
are not frozen, and errors have incoming edges.

Source: Marks et al. 2024, "Sparse feature circuits", appendix on the computation of edge weights.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from implicit_reasoning.dictionaries.graphs.attribution import Graph
from implicit_reasoning.dictionaries.graphs.feature_circuits import (
    EMBED,
    FeatureCircuits,
    Kept,
    NodeEffects,
    Places,
    strongest,
)
from implicit_reasoning.model import Edit, HookContext
from implicit_reasoning.model.edits import add
from implicit_reasoning.model.sites import RESID
from implicit_reasoning.runtime.machine import highest_precision

_AT_ONCE = 16  # targets that are pulled back together

States = Float[Array, "batch pos site d_model"]
Targets = tuple[States, Float[Array, "batch d_vocab"]]
"""Weights of linear targets: at the values of the sites, and at the logits."""

Sources = tuple[States, Float[Array, "batch pos d_model"]]
"""Gradients of a target at the sites and at the embeddings."""


@highest_precision
def feature_graph(circuits: FeatureCircuits, effects: NodeEffects, *, max_features: int) -> Graph:
    """Make the graphs of feature circuits.

    Args:
      circuits: the clean run and the other values.
      effects: the effects by which features are chosen.
      max_features: the number of places for features, as in `attribute`.

    Returns:
      The graphs. `activation` is the clean activation of each feature, and `total` is the change of
      each feature and of the metric from the clean to the other values. The token of the only
      logit node is the answer of the model.
    """
    chosen = strongest(effects, max_features)
    batch = jnp.arange(len(circuits.tokens))[:, None]
    at = batch, chosen.pos, chosen.site, chosen.feature
    clean, other = (values.acts[at] for values in (circuits.clean, circuits.other))
    logits, pull_back = _cut(circuits)
    targets = _targets(circuits, chosen, clean, logits)
    at_sites, at_embed = jax.lax.map(pull_back, targets, batch_size=_AT_ONCE)
    change = circuits.change
    written = circuits.rows[chosen.site, chosen.feature] * (other - clean)[..., None]
    own = at_sites[:, batch, chosen.pos, chosen.site]
    errors = jnp.einsum("tbpsd,bpsd->btsp", at_sites, change.error)
    sources = [
        jnp.einsum("tbfd,bfd->btf", own, written),
        errors.reshape(*errors.shape[:2], -1),
        jnp.einsum("tbpd,bpd->btp", at_embed, change.embed),
    ]
    rows = jnp.concatenate(sources, 2)
    n_inner, n_nodes = rows.shape[1] - 1, rows.shape[2] + 1
    adjacency = jnp.zeros((len(rows), n_nodes, n_nodes))
    adjacency = adjacency.at[:, :n_inner, :-1].set(rows[:, :-1])  # features and errors
    adjacency = adjacency.at[:, -1, :-1].set(rows[:, -1])
    active = (circuits.clean.acts > 0) | (circuits.other.acts > 0)
    after = circuits.metric_of(_nothing(circuits))
    return Graph(
        adjacency,
        chosen.site,
        chosen.pos,
        chosen.feature,
        clean,
        active[at],
        logits.argmax(-1)[:, None],
        jnp.ones((len(rows), 1)),
        jnp.concatenate([other - clean, (after - circuits.baseline)[:, None]], 1),
        active.reshape(len(rows), -1).sum(1),
    )


def _nothing(circuits: FeatureCircuits) -> Kept:
    """Return the circuit without nodes."""
    acts = circuits.clean.acts
    return Kept(jnp.zeros((1, *acts.shape[1:]), bool), jnp.zeros((1, *acts.shape[1:3]), bool))


def _cut(circuits: FeatureCircuits) -> tuple[Array, Callable[[Targets], Sources]]:
    """Return the logits, and the function that pulls targets back to the sites directly before."""
    sites = circuits.nodes.sites
    names = tuple(f"{site}.hook_direct" for site in sites)

    def run(terms: Sources) -> Targets:
        edits = {EMBED: Edit(add, terms[1])}
        for number, site in enumerate(sites):
            adds = (("hook_direct", RESID),)
            edits[site] = Edit(_stop_and_add, terms[0][:, :, number], adds=adds)
        logits, values = circuits.model.forward(
            circuits.model_params, circuits.tokens, edits=edits, sites=names
        )
        return jnp.stack([values[name] for name in names], 2), logits[:, -1]

    zeros = jnp.zeros_like(circuits.clean.error), jnp.zeros_like(circuits.clean.embed)
    (_, logits), pull_back = jax.vjp(run, zeros)
    return logits, lambda cotangent: pull_back(cotangent)[0]


def _stop_and_add(value: Array, hooks: HookContext, term: Array) -> Array:
    """Keep the value. No gradient of later sites flows through it, but all flow to the term."""
    return jax.lax.stop_gradient(hooks("hook_direct", value)) + term


def _targets(
    circuits: FeatureCircuits, chosen: Places, clean: Array, logits: Array
) -> tuple[Float[Array, "target batch pos site d_model"], Float[Array, "target batch d_vocab"]]:
    """Return the targets with a leading axis: features, errors by site and position, the output."""
    encoder = jnp.stack([jnp.asarray(one["W_enc"]) for one in circuits.params])
    batch, shape = jnp.arange(len(clean)), circuits.clean.error.shape
    active = (circuits.clean.acts > 0).astype(jnp.float32)
    gradient = circuits.gradients()[0]
    onto = jnp.einsum("bpsd,sfd->bpsf", gradient, circuits.rows)
    of_errors = gradient - jnp.einsum("bpsf,sdf->bpsd", active * onto, encoder)

    def of_feature(site: Array, pos: Array, feature: Array, act: Array) -> Array:
        reads = jnp.where((act > 0)[:, None], encoder[site, :, feature], 0)
        return jnp.zeros(shape).at[batch, pos, site].set(reads)

    features = jax.vmap(of_feature)(*(x.T for x in (*chosen, clean)))
    eye = jnp.eye(shape[2] * shape[1]).reshape(-1, 1, shape[2], shape[1], 1)
    errors = jnp.swapaxes(eye, 2, 3) * of_errors[None]
    output = jnp.zeros((1, *shape))
    none = jnp.zeros((len(features) + len(errors), *logits.shape))
    of_metric = jax.grad(lambda logits: circuits.metric(logits).sum())(logits)
    return jnp.concatenate([features, errors, output]), jnp.concatenate([none, of_metric[None]])
