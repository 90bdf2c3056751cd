"""Sparse feature circuits: indirect effects of the features and errors of sparse autoencoders.

Autoencoders read the residual stream, the MLP output and the attention output of every block. At
each site and position, the nodes are the features and the reconstruction error. They sum to the
value of the site, so together they are the model. The embedding of each position is a node too.

The indirect effect of a node is the change of a metric if the node is set to its value in another
run, such as that of a corrupt prompt, and everything later is computed. It is found in three ways:

- `attributions`: the change of the node times the gradient of the metric in the clean run;
- `integrated_gradients`: the gradient is averaged while the site of the node moves on a straight
  line from the clean to the other run. The effects of all nodes of a site then sum to the effect of
  the site;
- `exact`: the model runs once for each node.

`metric_of` runs the model with some nodes, and sets all others to the other run. `faithfulness`
follows from it. Graphs between nodes are in `feature_graphs.py`.

    circuits = FeatureCircuits.of(model, params, nodes, own, clean, corrupt, metric)
    effects = circuits.attributions()
    kept = select(effects, 0.1)

Source: Marks et al. 2024, "Sparse feature circuits", sections 3.1 and 3.2, appendix on errors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.dictionaries.architectures import Autoencoder
from implicit_reasoning.dictionaries.dictionary import InferenceDictionary
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Edit, Edits, HookContext, Params, Transformer
from implicit_reasoning.model import gradients as model_gradients
from implicit_reasoning.model.edits import add, set_to
from implicit_reasoning.runtime.machine import highest_precision

EMBED = "hook_embed"

Metric = Callable[[Float[Array, "batch d_vocab"]], Float[Array, " batch"]]
"""Function of the logits at the last position. It returns one number for each prompt."""

States = Float[Array, "batch pos site d_model"]
Activations = Float[Array, "batch pos site feature"]


def circuit_sites(model: Transformer) -> tuple[str, ...]:
    """Return the attention output, the MLP output and the residual of every block."""
    names = "hook_attn_out", "hook_mlp_out", "hook_resid_post"
    return tuple(f"blocks.{block}.{name}" for block in range(model.spec.depth) for name in names)


@dataclass(frozen=True)
class FeatureNodes:
    """The autoencoders whose features are nodes. Their parameters are arguments of the methods.

    Attributes:
      dictionaries: one autoencoder for each site.
      sites: the sites, in the order of the forward pass.

    Raises:
      InputError: a dictionary is no autoencoder of one site, or is gated; the dictionaries have
        different numbers of features; or their number is not that of the sites.
    """

    dictionaries: tuple[InferenceDictionary, ...]
    sites: tuple[str, ...]

    def __post_init__(self) -> None:
        for dictionary in self.dictionaries:
            kind = type(dictionary.architecture)
            if kind is not Autoencoder or dictionary.saelens_architecture == "gated":
                raise InputError(
                    "a feature circuit needs autoencoders of one site that are not gated, got "
                    f"{dictionary.saelens_architecture} {kind.__name__}"
                )
        widths = {dictionary.architecture.d_sae for dictionary in self.dictionaries}
        if len(widths) > 1:
            raise InputError(
                "the autoencoders of all sites must have the same number of features, got "
                f"{', '.join(map(str, sorted(widths)))}"
            )
        if len(self.dictionaries) != len(self.sites):
            raise InputError(f"{len(self.sites)} sites for {len(self.dictionaries)} autoencoders")

    @property
    def n_features(self) -> int:
        """The number of features of each site."""
        return self.dictionaries[0].architecture.d_sae

    def encode(self, params: Sequence[Params], x: States) -> Activations:
        """Return the activations of all features."""
        flat = x.reshape(-1, *x.shape[2:])
        acts = [
            dictionary.encode(one, flat[:, number])
            for number, (dictionary, one) in enumerate(zip(self.dictionaries, params, strict=True))
        ]
        return jnp.stack(acts, 1).reshape(*x.shape[:3], -1)


class NodeValues(NamedTuple):
    """The values of all nodes in a run.

    Attributes:
      acts: the activations of all features.
      error: the value of each site minus its reconstruction.
      embed: the embedding of the token at each position.
    """

    acts: Activations
    error: States
    embed: Float[Array, "batch pos d_model"]


class NodeEffects(NamedTuple):
    """The indirect effects of all nodes.

    Attributes:
      features: of each feature.
      errors: of the error of each site.
      embeddings: of the embedding at each position.
    """

    features: Activations
    errors: Float[Array, "batch pos site"]
    embeddings: Float[Array, "batch pos"]


class Places(NamedTuple):
    """Nodes whose effects are computed exactly, for each prompt.

    Attributes:
      site: the index of the site. The number of sites stands for the embedding.
      pos: the position.
      feature: the feature. The number of features stands for the error.
    """

    site: Int[Array, "batch place"]
    pos: Int[Array, "batch place"]
    feature: Int[Array, "batch place"]


class Kept(NamedTuple):
    """The nodes of a circuit. An axis `batch` of length 1 means the same circuit for all prompts.

    Attributes:
      features: whether each feature is in the circuit.
      errors: whether the error of each site is in the circuit.
    """

    features: Bool[Array, "_batch pos site feature"]
    errors: Bool[Array, "_batch pos site"]

    @property
    def complement(self) -> Kept:
        """All other nodes."""
        return Kept(~self.features, ~self.errors)


def select(effects: NodeEffects, threshold: float | Float[Array, ""]) -> Kept:
    """Return the features and errors whose effect is at least the threshold in absolute value.

    For one circuit for all prompts, pass mean effects with an axis `batch` of length 1.
    """
    return Kept(*(jnp.abs(x) >= threshold for x in (effects.features, effects.errors)))


def faithfulness(
    circuit: Float[Array | np.ndarray, "*circuit batch"],
    whole: Float[Array | np.ndarray, " batch"],
    nothing: Float[Array | np.ndarray, " batch"],
) -> Float[Array | np.ndarray, "*circuit"]:
    """Return the share of the metric that a circuit recovers: 0 without nodes, 1 for the model.

    If the circuit is complete, the faithfulness of its complement is 0, because the rest of the
    model does nothing without the circuit.

    Args:
      circuit: the metric of circuits.
      whole: the metric of the model.
      nothing: the metric of the circuit without nodes.

    Source: Marks et al. 2024, section 3.3 (where that of the complement is called completeness).
    """
    low, high = nothing.mean(), whole.mean()
    return (circuit.mean(-1) - low) / (high - low)


@dataclass(frozen=True)
class FeatureCircuits:
    """The clean run on some prompts, and the values to which nodes are set; make it with `of`.

    Attributes:
      model: the model.
      model_params: the parameters of one model.
      nodes: the autoencoders.
      params: the parameters of each autoencoder.
      tokens: the clean prompts.
      metric: the metric.
      clean: the values of all nodes in the clean run.
      other: the values to which nodes are set.
      baseline: the metric of the clean run.
    """

    model: Transformer
    model_params: Params
    nodes: FeatureNodes
    params: Sequence[Params]
    tokens: Int[Array, "batch pos"]
    metric: Metric
    clean: NodeValues
    other: NodeValues
    baseline: Float[Array, " batch"]

    @classmethod
    def of(
        cls,
        model: Transformer,
        model_params: Params,
        nodes: FeatureNodes,
        params: Sequence[Params],
        tokens: Int[Array | np.ndarray, "batch pos"],
        other: Int[Array | np.ndarray, "batch pos"] | NodeValues,
        metric: Metric,
    ) -> FeatureCircuits:
        """Run the model on clean and corrupt prompts.

        Args:
          model: the model.
          model_params: the parameters of one model.
          nodes: the autoencoders.
          params: the parameters of each autoencoder.
          tokens: the clean prompts.
          other: the corrupt prompts, or values of nodes, such as their means over prompts.
          metric: the metric. It must be differentiable for attributions.
        """
        values = partial(node_values, model, model_params, nodes, params)
        clean, logits = values(tokens)
        changed = other if isinstance(other, NodeValues) else values(other)[0]
        prompts = jnp.asarray(tokens)
        run = model, model_params, nodes, params, prompts, metric, clean, changed, metric(logits)
        return cls(*run)

    @property
    def rows(self) -> Float[Array, "site feature d_model"]:
        """The decoder rows of all features."""
        return jnp.stack([jnp.asarray(one["W_dec"]) for one in self.params])

    @property
    def change(self) -> NodeValues:
        """The other value of each node minus its clean value."""
        return jax.tree.map(lambda other, clean: other - clean, self.other, self.clean)

    @highest_precision
    def gradients(self) -> tuple[States, Float[Array, "batch pos d_model"]]:
        """Return the gradients of the metric at all sites and at the embeddings."""
        sites = self.nodes.sites
        found = model_gradients.site_gradients(self._run, self._last, (*sites, EMBED)).gradients
        return jnp.stack([found[site] for site in sites], 2), found[EMBED]

    def attributions(self) -> NodeEffects:
        """Estimate the effects of all nodes from one backward pass."""
        return self._products(*self.gradients())

    @highest_precision
    def integrated_gradients(self, nodes: int = 10) -> NodeEffects:
        """Estimate the effects from gradients along straight lines, one line for each site.

        Args:
          nodes: the number of points on each line. There is a backward pass for each.
        """
        names = (*self.nodes.sites, EMBED)
        start, end = (
            [*jnp.moveaxis(self._values(values), 2, 0), values.embed]
            for values in (self.clean, self.other)
        )

        def of_site(group: Array) -> Array:
            def path(alpha: Array) -> Edits:
                return {
                    site: Edit(_on_line, (group == number, alpha, start[number], end[number]))
                    for number, site in enumerate(names)
                }

            found = model_gradients.integrated_gradients(
                *(self._run, self._last, names, path), nodes=nodes
            )
            return jnp.stack([found[site] for site in names])[group]

        found = jax.lax.map(of_site, jnp.arange(len(names)))
        return self._products(jnp.moveaxis(found[:-1], 0, 2), found[-1])

    @highest_precision
    def exact(self, places: Places, *, at_once: int = 16) -> Float[Array, "batch place"]:
        """Set each node alone to its other value, and return the change of the metric.

        Args:
          places: the nodes.
          at_once: the number of nodes of each prompt that run together.
        """
        n_sites, n_features = len(self.nodes.sites), self.nodes.n_features
        change, rows = self.change, self.rows
        batch = jnp.arange(len(self.tokens))

        def of_node(place: tuple[Array, Array, Array]) -> Array:
            site, pos, feature = place
            at = jnp.minimum(site, n_sites - 1)
            column = jnp.minimum(feature, n_features - 1)
            moved = change.acts[batch, pos, at, column][:, None] * rows[at, column]
            moved = jnp.where((feature < n_features)[:, None], moved, change.error[batch, pos, at])
            moved = jnp.where((site < n_sites)[:, None], moved, change.embed[batch, pos])
            edits = {}
            for number, name in enumerate((*self.nodes.sites, EMBED)):
                here = jnp.where((site == number)[:, None], moved, 0)
                edits[name] = Edit(add, jnp.zeros_like(change.embed).at[batch, pos].set(here))
            return self._last(self._run(edits=edits)[0]) - self.baseline

        found = jax.lax.map(of_node, tuple(x.T for x in places), batch_size=at_once)
        return found.T

    @highest_precision
    def metric_of(self, kept: Kept) -> Float[Array, " batch"]:
        """Return the metric of the model if only some nodes are computed.

        All other nodes are set to their other values. Embeddings are clean. `jax.lax.map` runs many
        circuits in one program.
        """
        edits = {}
        for number, site in enumerate(self.nodes.sites):
            own = kept.features[:, :, number], kept.errors[:, :, number]
            other = self.other.acts[:, :, number], self.other.error[:, :, number]
            args = self.params[number], own, other
            edits[site] = Edit(_only, args, self.nodes.dictionaries[number])
        return self._last(self._run(edits=edits)[0])

    def _run(
        self, *, edits: Edits | None = None, sites: Sequence[str] = ()
    ) -> tuple[Array, dict[str, Array]]:
        logits, values = self.model.forward(
            self.model_params, self.tokens, edits=edits or {}, sites=tuple(sites)
        )
        return logits, values

    def _last(self, logits: Array) -> Array:
        return self.metric(logits[:, -1])

    def _values(self, values: NodeValues) -> States:
        """Return the values of all sites, up to a constant that all runs share."""
        return jnp.einsum("bpsf,sfd->bpsd", values.acts, self.rows) + values.error + self._bias

    @property
    def _bias(self) -> Array:
        return jnp.stack([jnp.asarray(one["b_dec"]) for one in self.params])[None, None]

    def _products(self, gradient: States, embed: Array) -> NodeEffects:
        change = self.change
        return NodeEffects(
            jnp.einsum("bpsd,sfd->bpsf", gradient, self.rows, precision="highest") * change.acts,
            (gradient * change.error).sum(-1),
            (embed * change.embed).sum(-1),
        )


@highest_precision
def node_values(
    model: Transformer,
    model_params: Params,
    nodes: FeatureNodes,
    params: Sequence[Params],
    tokens: Int[Array | np.ndarray, "batch pos"],
) -> tuple[NodeValues, Float[Array, "batch d_vocab"]]:
    """Run the model, and return the values of all nodes and the logits at the last position."""
    logits, values = model.forward(model_params, tokens, sites=(*nodes.sites, EMBED))
    x = jnp.stack([values[site] for site in nodes.sites], 2)
    acts = nodes.encode(params, x)
    bias = jnp.stack([jnp.asarray(one["b_dec"]) for one in params])[None, None]
    rows = jnp.stack([jnp.asarray(one["W_dec"]) for one in params])
    error = x - jnp.einsum("bpsf,sfd->bpsd", acts, rows) - bias
    return NodeValues(acts, error, values[EMBED]), logits[:, -1]


def strongest(effects: NodeEffects, count: int) -> Places:
    """Return the features of each prompt with the largest absolute effects, sorted by site."""
    shape = effects.features.shape
    count = min(count, int(np.prod(shape[1:])))
    flat = jnp.abs(effects.features).reshape(shape[0], -1)
    pos, site, feature = jnp.unravel_index(jax.lax.top_k(flat, count)[1], shape[1:])
    order = jnp.argsort(site, 1, stable=True)
    return Places(*(jnp.take_along_axis(x, order, 1) for x in (site, pos, feature)))


def _on_line(value: Array, hooks: HookContext, args: tuple[Array, Array, Array, Array]) -> Array:
    """Replace the value by a point between two values, if the site moves."""
    moves, alpha, start, end = args
    return jnp.where(moves, set_to(value, hooks, start + alpha * (end - start)), value)


@highest_precision
def _only(
    value: Array,
    hooks: HookContext,
    args: tuple[Params, tuple[Array, Array], tuple[Array, Array]],
    dictionary: InferenceDictionary,
) -> Array:
    """Set all features and errors of a site that are not kept to other values."""
    params, (features, errors), (other_acts, other_error) = args
    flat = value.reshape(-1, value.shape[-1])
    acts = dictionary.encode(params, flat)
    error = (flat - dictionary.decode(params, acts, flat)).reshape(value.shape)
    acts = acts.reshape(*value.shape[:2], -1)
    moved = jnp.where(features, 0, other_acts - acts) @ params["W_dec"]
    return value + moved + jnp.where(errors[..., None], 0, other_error - error)
