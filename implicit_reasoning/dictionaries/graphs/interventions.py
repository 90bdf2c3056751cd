"""Set features of a run, and compare the effects with those that its graph predicts.

An intervention sets activations of features at positions: to 0 (ablate), to a number (clamp), or
from the features of one bridge to those of another (swap). The same intervention has five results,
from what the edges of a graph predict to what the model does:

| within | features that are not set | MLPs | attention and norms |
|---|---|---|---|
| `edges` | keep their activations | transcoders and errors | of the run |
| `paths` | active ones follow their pre-activation | transcoders and errors | of the run |
| `replacement` | are computed | transcoders and errors | of the run |
| `frozen` | are computed | of the model | of the run |
| `real` | are computed | of the model | of the model |

The effect within `edges` is the sum of the direct edges of the features that are set. The effect
within `paths` is the sum over all paths of edges. `predicted_effects` computes both from a graph,
and `Interventions` also for features that are inactive in the run and are therefore no nodes. These
predictions are linear: they know no feature that becomes active, and the activation of a feature
that becomes inactive is negative. The replacement model shows how much this matters.
Within `frozen` and `real`, the decoder rows of the changes are added to the outputs of the MLPs.

    run = Interventions.of(model, model_params, replacement, params, tokens)
    predicted, observed = (run(ablate(where), within).logits for within in ("paths", "real"))

Sources: Ameisen et al. 2025, "Circuit tracing", sections on interventions and on mechanistic
faithfulness; Hanna et al. 2025, circuit-tracer (`feature_intervention`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.dictionaries.architectures import CrossLayer
from implicit_reasoning.dictionaries.graphs.attribution import Graph
from implicit_reasoning.dictionaries.graphs.bridge import BridgeFeatures
from implicit_reasoning.dictionaries.graphs.influence import influence
from implicit_reasoning.dictionaries.graphs.label_prompts import LabelPrompts
from implicit_reasoning.dictionaries.replacement import (
    Activations,
    LocalRun,
    Replacement,
    States,
    Weights,
    frozen_edits,
    local_run,
)
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Edit, HookContext, Params, Transformer, merge_edits
from implicit_reasoning.runtime.machine import highest_precision

PREDICTED, OBSERVED = ("edges", "paths"), ("replacement", "frozen", "real")
WITHIN = (*PREDICTED, *OBSERVED)
"""The models in which an intervention can run, from the prediction to the real model."""


class Intervention(NamedTuple):
    """Activations to which features are set.

    Attributes:
      where: whether each feature is set.
      value: the activation to which it is set; it does not matter where no feature is set.
    """

    where: Bool[Array, "batch pos layer feature"]
    value: Activations


def ablate(where: Bool[Array, "batch pos layer feature"]) -> Intervention:
    """Return the intervention that sets features to 0."""
    return Intervention(where, jnp.zeros(where.shape))


def clamp(
    where: Bool[Array, "batch pos layer feature"], value: Activations | float
) -> Intervention:
    """Return the intervention that sets features to given activations."""
    return Intervention(where, jnp.broadcast_to(jnp.asarray(value), where.shape))


def swap(
    features: BridgeFeatures,
    means: Float[Array, "pos layer feature"],
    old: Int[Array, " batch"],
    new: Int[Array, " batch"],
    at: Bool[Array | np.ndarray, " pos"],
) -> Intervention:
    """Return the intervention that replaces the features of one bridge by those of another.

    Args:
      features: the bridge for which each feature stands.
      means: the activation to which a feature of the new bridge is set, as from `mean_activations`.
      old: the bridge of each prompt. Its features are set to 0. With -1, no feature is set to 0.
      new: the bridge whose features are activated. With -1, no feature is activated.
      at: the positions at which features are set.
    """
    off, on = (
        (features.value[None] == one[:, None, None, None])
        & (one >= 0)[:, None, None, None]
        & jnp.asarray(at)[None, :, None, None]
        for one in (old, new)
    )
    return Intervention(off | on, jnp.where(on, means[None], 0))


@highest_precision
def mean_activations(
    acts: Float[Array, "state pos layer feature"],
    features: BridgeFeatures,
    prompts: LabelPrompts,
) -> Float[Array, "pos layer feature"]:
    """Return the mean positive activation of each feature on prompts with its bridge.

    The mean of a feature that stands for no bridge is 0. `prompts` are the prompts of `acts`.
    """
    one_hot = jnp.asarray(np.eye(prompts.n_values, dtype=np.float32))[prompts.bridge]
    weight = jnp.asarray(prompts.distinct).astype(jnp.float32)
    total, count = (
        jnp.einsum("splf,sv,sp->plfv", of, one_hot, weight)
        for of in (acts, (acts > 0).astype(jnp.float32))
    )
    chosen = jnp.maximum(features.value, 0)[..., None]
    total, count = (jnp.take_along_axis(x, chosen, -1)[..., 0] for x in (total, count))
    return jnp.where(features.value >= 0, total / jnp.maximum(count, 1), 0.0)


def random_features(
    key: Array, change: Intervention, acts: Activations, weights: Weights
) -> Intervention:
    """Return an intervention that changes random features by vectors of the same norms.

    Every feature that is set is replaced by another feature of its layer, at the same position. The
    change of the activation times the norm of the decoder row is that of the replaced feature, so
    an activation can become negative.

    Args:
      key: the key of the draw.
      change: the intervention whose null this is.
      acts: the activations of all features.
      weights: the weights of the transcoders.
    """
    norms = jnp.sqrt((weights.decoder**2).sum((-2, -1)))
    # Features that write something come first, and are exchanged among themselves.
    order = jnp.argsort(norms == 0, 1, stable=True)
    rank, count = jnp.argsort(order, 1), (norms > 0).sum(1)[:, None]
    shift = jax.random.randint(key, (len(acts), acts.shape[2], 1), 1, jnp.maximum(count, 2)[None])
    place = jnp.where(rank < count, (rank[None] + shift) % jnp.maximum(count, 1)[None], rank[None])
    source = jnp.take_along_axis(jnp.broadcast_to(order[None], place.shape), place, 2)
    size = jnp.where(change.where, change.value - acts, 0) * norms[None, None]
    where, size = (jnp.take_along_axis(x, source[:, None], 3) for x in (change.where, size))
    return Intervention(where, acts + size / jnp.maximum(norms, 1e-10)[None, None])


class Observed(NamedTuple):
    """What follows from an intervention.

    Attributes:
      logits: the logits at the last position.
      inputs: the inputs of the MLPs.
    """

    logits: Float[Array, "batch d_vocab"]
    inputs: States


@dataclass(frozen=True)
class Interventions:
    """Interventions on the same prompts; make it with `of`.

    Attributes:
      model: the model.
      model_params: the parameters of one model.
      replacement: the transcoders.
      params: the parameters of each transcoder.
      tokens: the prompts.
      local: the run without an intervention.
      weights: the weights of the transcoders.
      frozen: the edits that set attention patterns and the scales of norms.
    """

    model: Transformer
    model_params: Params
    replacement: Replacement
    params: Sequence[Params]
    tokens: Int[Array | np.ndarray, "batch pos"]
    local: LocalRun
    weights: Weights
    frozen: dict[str, Edit]

    @classmethod
    def of(
        cls,
        model: Transformer,
        model_params: Params,
        replacement: Replacement,
        params: Sequence[Params],
        tokens: Int[Array | np.ndarray, "batch pos"],
    ) -> Interventions:
        """Run the model without an intervention.

        Args:
          model: the model.
          model_params: the parameters of one model.
          replacement: the transcoders.
          params: the parameters of each transcoder.
          tokens: the prompts.

        Raises:
          InputError: features of a cross-layer transcoder depend on the inputs of later layers.
        """
        if _crosses(replacement) and replacement.dictionaries[0].saelens_architecture == "topk":
            raise InputError(
                "features of a cross-layer transcoder with topk compete with features of later "
                "layers, so no forward pass can compute them; convert the dictionary to jumprelu"
            )
        arguments = model, model_params, replacement, params, tokens
        return cls(
            *arguments,
            local_run(*arguments),
            replacement.weights(params),
            frozen_edits(model, model_params, tokens),
        )

    def __call__(self, change: Intervention, within: str) -> Observed:
        """Run the model with an intervention.

        `jax.lax.map` or `jax.vmap` over interventions runs all of them in one program.

        Args:
          change: the features to set, for all prompts.
          within: one of `WITHIN`; see the module.

        Raises:
          InputError: `within` is no such name.
        """
        if within not in WITHIN:
            raise InputError(f"within is {within!r}; it must be one of {', '.join(WITHIN)}")
        sites, args = self.replacement.sites, (self.weights, self.params, self.local, change)
        moved = {
            write: Edit(_set_features, args, _At(self.replacement, layer, within))
            for layer, write in enumerate(sites.write)
        }
        edits = moved if within == "real" else merge_edits(self.frozen, moved)
        logits, values = self.model.forward(
            self.model_params, self.tokens, edits=edits, sites=sites.read
        )
        return Observed(logits[:, -1], jnp.stack([values[site] for site in sites.read], 2))


class _At(NamedTuple):
    """The static arguments of one edit: the layer that is written, and the kind of model."""

    replacement: Replacement
    layer: int
    within: str


def _crosses(replacement: Replacement) -> bool:
    return isinstance(replacement.dictionaries[0].architecture, CrossLayer)


@highest_precision
def _set_features(
    value: Array,
    hooks: HookContext,
    args: tuple[Weights, Sequence[Params], LocalRun, Intervention],
    at: _At,
) -> Array:
    """Return the output of the MLP of a layer, after features are set."""
    weights, params, local, change = args
    # Transcoders of one layer write to their own layer only.
    layers = slice(0 if _crosses(at.replacement) else at.layer, at.layer + 1)
    x = jnp.stack([hooks.read(site) for site in at.replacement.sites.read[layers]], 2)
    where, new = change.where[:, :, layers], change.value[:, :, layers]
    rows = weights.decoder[layers, :, at.layer]
    if at.within == "edges":
        live = local.acts[:, :, layers]
    elif at.within == "paths":
        pre = jnp.einsum("bpld,ldf->bplf", x, weights.encoder[layers])
        active = local.acts[:, :, layers] > 0
        live = jnp.where(active, pre + weights.bias[layers][None, None], 0)
    else:
        live = _encode(at.replacement, params, x, at.layer)
    if at.within in ("frozen", "real"):
        return value + jnp.einsum("bplf,lfd->bpd", jnp.where(where, new - live, 0), rows)
    written = jnp.einsum("bplf,lfd->bpd", jnp.where(where, new, live), rows)
    through = jnp.einsum("bpi,oi->bpo", x[:, :, -1], weights.skip[at.layer])
    constant = weights.constant[at.layer][None, None]
    return written + constant + through + local.error[:, :, at.layer]


def _encode(
    replacement: Replacement, params: Sequence[Params], x: Array, layer: int
) -> Float[Array, "batch pos some feature"]:
    """Return the activations of the features that write to a layer, from their inputs."""
    if _crosses(replacement):
        later = jnp.zeros((*x.shape[:2], replacement.n_layers - layer - 1, x.shape[3]))
        return replacement.encode(params, jnp.concatenate([x, later], 2))[:, :, : layer + 1]
    flat = x.reshape(-1, x.shape[-1])
    acts = replacement.dictionaries[layer].encode(params[layer], flat)
    return acts.reshape(*x.shape[:3], -1)


class Effects(NamedTuple):
    """The changes that a graph predicts for its targets: features first, and then logits.

    Attributes:
      edges: over direct edges.
      paths: over all paths. A feature that is set does not respond to others.
    """

    edges: Float[Array, " target"]
    paths: Float[Array, " target"]


@highest_precision
def predicted_effects(
    graph: Graph,
    where: Bool[Array, "pos layer feature"],
    value: Float[Array, "pos layer feature"],
) -> Effects:
    """Return the changes of pre-activations and logits that the edges of a graph predict.

    Features that are set but are no nodes of the graph are left out.

    Args:
      graph: the graph of one prompt (a `Graph` without the batch axis).
      where: whether each feature is set.
      value: the activation to which it is set.
    """
    place = graph.pos, graph.layer, graph.feature
    held = where[place] & graph.counts
    start = jnp.where(held, value[place] - graph.activation, 0)
    n = len(graph.layer)
    last = len(graph.adjacency) - len(graph.token)
    rows = jnp.concatenate([graph.adjacency[:n, :n], graph.adjacency[last:, :n]])
    # The weight of an edge divided by the activation of its source is the virtual weight.
    virtual = rows / jnp.where(graph.counts, graph.activation, 1)[None]
    respond = jnp.where(held[:, None], 0, virtual[:n])
    total = start + influence(respond.T, start)
    return Effects(virtual @ start, virtual @ total)
