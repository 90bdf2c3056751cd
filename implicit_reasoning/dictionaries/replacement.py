"""The local replacement model: MLPs are sums of features and errors, and all else is frozen.

Transcoders of all layers replace the MLPs of a run. The output of an MLP is the sum of the active
features' decoder rows, of the decoder bias, of the skip connection if there is one, and of an error
that makes up for what the transcoder misses. Attention patterns and the scales of norms are
constants of the run. The inputs of the transcoders and the logits are then linear functions of the
features' activations, of the errors and of the embeddings.

    replacement = Replacement(dictionaries, mlp_sites(model))
    local = local_run(model, model_params, replacement, params, tokens)
    pull_back = transport(model, model_params, replacement, replacement.weights(params), tokens)

Sources: Ameisen et al. 2025, "Circuit tracing", methods (local replacement model); Hanna et al.
2025, circuit-tracer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from implicit_reasoning.dictionaries.architectures import CrossLayer, SkipTranscoder, Transcoder
from implicit_reasoning.dictionaries.dictionary import InferenceDictionary
from implicit_reasoning.dictionaries.splice import Sites
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Edit, HookContext, Params, Transformer, merge_edits
from implicit_reasoning.model.edits import add, set_to
from implicit_reasoning.model.gradients import frozen_norms, frozen_patterns
from implicit_reasoning.runtime.machine import highest_precision

States = Float[Array, "batch pos layer d_model"]
Activations = Float[Array, "batch pos layer feature"]

_KINDS = (Transcoder, SkipTranscoder, CrossLayer)


class Weights(NamedTuple):
    """The weights of the transcoders of all layers, in one layout for all kinds.

    Attributes:
      encoder: the encoder of each feature. A feature reads the input of the MLP of its layer.
      bias: the bias of the pre-activation of each feature.
      decoder: what each feature writes to the output of the MLP of each layer. Features of a
        transcoder of one layer write to their own layer only.
      constant: the decoder bias of each layer.
      skip: the skip connection of each layer; 0 if there is none.
    """

    encoder: Float[Array, "layer d_model feature"]
    bias: Float[Array, "layer feature"]
    decoder: Float[Array, "layer feature out_layer d_model"]
    constant: Float[Array, "layer d_model"]
    skip: Float[Array, "layer d_out d_in"]


@dataclass(frozen=True)
class Replacement:
    """The transcoders of all layers of a model. Their parameters are arguments of the methods.

    Attributes:
      dictionaries: one cross-layer transcoder, or one transcoder for each layer.
      sites: the sites that they read and write, one of each for each layer.

    Raises:
      InputError: a dictionary is no transcoder, or has a gated activation function; layers have
        different numbers of features; or the number of sites is not the number of layers.
    """

    dictionaries: tuple[InferenceDictionary, ...]
    sites: Sites

    def __post_init__(self) -> None:
        for dictionary in self.dictionaries:
            if not isinstance(dictionary.architecture, _KINDS):
                raise InputError(
                    "a replacement model needs transcoders or a cross-layer transcoder, got "
                    f"{type(dictionary.architecture).__name__}"
                )
            if dictionary.saelens_architecture == "gated":
                raise InputError(
                    "a replacement model needs features whose activation follows from one linear "
                    "pre-activation; gated transcoders have two"
                )
        crossing = [isinstance(d.architecture, CrossLayer) for d in self.dictionaries]
        if any(crossing) and len(crossing) > 1:
            raise InputError(
                f"a replacement model has one cross-layer transcoder, got {sum(crossing)} among "
                f"{len(crossing)} dictionaries"
            )
        widths = {d.architecture.d_sae for d in self.dictionaries}
        if len(widths) > 1:
            raise InputError(
                "the transcoders of all layers must have the same number of features, got "
                f"{', '.join(map(str, sorted(widths)))}"
            )
        for sites in self.sites:
            if len(sites) != self.n_layers:
                raise InputError(f"{len(sites)} sites for {self.n_layers} layers of transcoders")

    @property
    def n_layers(self) -> int:
        """The number of layers."""
        first = self.dictionaries[0].architecture
        return first.n_layers if isinstance(first, CrossLayer) else len(self.dictionaries)

    @property
    def has_skips(self) -> bool:
        """Whether the transcoders have skip connections."""
        return any(isinstance(d.architecture, SkipTranscoder) for d in self.dictionaries)

    @property
    def n_features(self) -> int:
        """The number of features of each layer."""
        architecture = self.dictionaries[0].architecture
        crossing = isinstance(architecture, CrossLayer)
        return architecture.d_sae // (self.n_layers if crossing else 1)

    def weights(self, params: Sequence[Params]) -> Weights:
        """Return the weights in one layout.

        Args:
          params: the parameters of each dictionary.
        """
        first = self.dictionaries[0].architecture
        n = self.n_layers
        if isinstance(first, CrossLayer):
            (one,) = params
            rows = first.rows(one).reshape(n, self.n_features, n, -1)
            width = rows.shape[-1]
            return Weights(
                jnp.asarray(one["W_enc"]),
                jnp.asarray(one["b_enc"]).reshape(n, -1),
                rows,
                jnp.asarray(one["b_dec"]).reshape(n, width),
                jnp.zeros((n, width, one["W_enc"].shape[1])),
            )
        stacked = {
            name: jnp.stack([jnp.asarray(one[name]) for one in params])
            for name in ("W_enc", "b_enc", "W_dec", "b_dec")
        }
        own = jnp.eye(n)[:, None, :, None] * stacked["W_dec"][:, :, None]
        skips = [one.get("W_skip", jnp.zeros((first.d_out, first.d_in))) for one in params]
        return Weights(stacked["W_enc"], stacked["b_enc"], own, stacked["b_dec"], jnp.stack(skips))

    @highest_precision
    def encode(self, params: Sequence[Params], x: States) -> Activations:
        """Return the activations of all features for the inputs of the MLPs."""
        flat = x.reshape(-1, *x.shape[2:])
        if isinstance(self.dictionaries[0].architecture, CrossLayer):
            acts = self.dictionaries[0].encode(params[0], flat.reshape(len(flat), -1))
            return acts.reshape(*x.shape[:3], self.n_features)
        layers = [
            dictionary.encode(one, flat[:, number])
            for number, (dictionary, one) in enumerate(zip(self.dictionaries, params, strict=True))
        ]
        return jnp.stack(layers, 1).reshape(*x.shape[:3], self.n_features)


def mlp_sites(model: Transformer) -> Sites:
    """Return the sites that transcoders of all MLPs read and write.

    They read `ln2.hook_normalized`, or `hook_mlp_in` in models without norms.
    """
    name = "ln2.hook_normalized" if model.spec.normalization != "none" else "hook_mlp_in"
    blocks = [f"blocks.{n}." for n in range(model.spec.depth)]
    return Sites(
        tuple(f"{block}{name}" for block in blocks),
        tuple(f"{block}hook_mlp_out" for block in blocks),
    )


class LocalRun(NamedTuple):
    """A run of a model, with its MLPs written as features and errors.

    Attributes:
      inputs: the inputs of the MLPs.
      acts: the activations of all features.
      error: the output of each MLP minus the output of its transcoder.
      logits: the logits at the last position.
    """

    inputs: States
    acts: Activations
    error: States
    logits: Float[Array, "batch d_vocab"]


@highest_precision
def reconstruct(weights: Weights, acts: Activations, x: States) -> States:
    """Return the outputs of the transcoders for some activations."""
    written = jnp.einsum("bplf,lfod->bpod", acts, weights.decoder)
    return written + weights.constant[None, None] + jnp.einsum("bpli,loi->bplo", x, weights.skip)


def local_run(
    model: Transformer,
    model_params: Params,
    replacement: Replacement,
    params: Sequence[Params],
    tokens: Int[Array | np.ndarray, "batch pos"],
) -> LocalRun:
    """Run the model, and write the outputs of its MLPs as features and errors.

    Args:
      model: the model.
      model_params: the parameters of one model.
      replacement: the transcoders.
      params: the parameters of each transcoder.
      tokens: the prompts.
    """
    sites = replacement.sites
    logits, values = model.forward(model_params, tokens, sites=(*sites.read, *sites.write))
    inputs, outputs = (jnp.stack([values[s] for s in chosen], 2) for chosen in sites)
    acts = replacement.encode(params, inputs)
    error = outputs - reconstruct(replacement.weights(params), acts, inputs)
    return LocalRun(inputs, acts, error, logits[:, -1])


class Written(NamedTuple):
    """Vectors that are written into the residual stream, or gradients at these places.

    Attributes:
      embed: at the embeddings.
      mlp: at the outputs of the MLPs.
    """

    embed: Float[Array, "batch pos d_model"]
    mlp: States


class Read(NamedTuple):
    """What is read from the residual stream, or the weights of linear targets at these places.

    Attributes:
      inputs: the inputs of the MLPs.
      logits: the logits at the last position.
    """

    inputs: States
    logits: Float[Array, "batch d_vocab"]


def transport(
    model: Transformer,
    model_params: Params,
    replacement: Replacement,
    weights: Weights,
    tokens: Int[Array | np.ndarray, "batch pos"],
) -> Callable[[Read], Written]:
    """Return the function that pulls linear targets back to the places that are written.

    In the local replacement model, a target `sum(cotangent * read)` is a linear function of the
    written vectors. The returned function maps the cotangent to the gradient of the target. No
    gradient flows through features: they are sources of their own.

    Args:
      model: the model.
      model_params: the parameters of one model.
      replacement: the transcoders, for the sites.
      weights: the weights of the transcoders, for the skip connections.
      tokens: the prompts, at which attention patterns and the scales of norms are frozen.
    """
    sites = replacement.sites
    run = _linear(model, model_params, replacement, weights, tokens, sites.read)

    def read(written: Written) -> Read:
        logits, values = run(written)
        return Read(jnp.stack([values[site] for site in sites.read], 2), logits[:, -1])

    pull_back = jax.vjp(read, _nothing(model, replacement, tokens))[1]
    return lambda cotangent: pull_back(cotangent)[0]


def push_forward(
    model: Transformer,
    model_params: Params,
    replacement: Replacement,
    weights: Weights,
    tokens: Int[Array | np.ndarray, "batch pos"],
    reads: Sequence[str],
) -> Callable[[Written], dict[str, Array]]:
    """Return the function that maps written vectors to their parts of some sites.

    The function is linear, and it is the transpose of that of `transport`.

    Args:
      model: the model.
      model_params: the parameters of one model.
      replacement: the transcoders, for the sites.
      weights: the weights of the transcoders, for the skip connections.
      tokens: the prompts, at which attention patterns and the scales of norms are frozen.
      reads: the sites, such as `blocks.0.attn.hook_q`.
    """
    run = _linear(model, model_params, replacement, weights, tokens, reads)
    push: Callable[[Written], dict[str, Array]] = jax.linearize(
        lambda written: run(written)[1], _nothing(model, replacement, tokens)
    )[1]
    return push


def _linear(
    model: Transformer,
    model_params: Params,
    replacement: Replacement,
    weights: Weights,
    tokens: Int[Array | np.ndarray, "batch pos"],
    reads: Sequence[str],
) -> Callable[[Written], tuple[Array, dict[str, Array]]]:
    """Return a run of the local replacement model, as a function of what is written."""
    sites = replacement.sites
    rules = merge_edits(frozen_norms(model), frozen_patterns(model))

    def run(written: Written) -> tuple[Array, dict[str, Array]]:
        moved = {"hook_embed": Edit(add, written.embed)}
        for layer, (read, write) in enumerate(zip(*sites, strict=True)):
            vector = written.mlp[:, :, layer]
            if replacement.has_skips:
                moved[write] = Edit(_write_and_skip, (vector, weights.skip[layer]), read)
            else:
                moved[write] = Edit(_write_only, vector)
        edits = merge_edits(rules, moved)
        return model.forward(model_params, tokens, edits=edits, sites=tuple(reads))

    return run


def _nothing(
    model: Transformer, replacement: Replacement, tokens: Int[Array | np.ndarray, "batch pos"]
) -> Written:
    """Return zeros at all places that are written."""
    shape = (*tokens.shape, model.spec.d_model)
    layers = len(replacement.sites.write)
    return Written(jnp.zeros(shape), jnp.zeros((*tokens.shape, layers, shape[-1])))


def _write_only(value: Array, hooks: HookContext, written: Array) -> Array:
    """Keep the value. Its gradient flows to the written vector only."""
    del hooks
    return jax.lax.stop_gradient(value) + written


def _write_and_skip(
    value: Array, hooks: HookContext, args: tuple[Array, Array], read: str
) -> Array:
    """Keep the value. Its gradient flows to the written vector and to the skip connection only."""
    written, skip = args
    through = jnp.einsum("bpi,oi->bpo", hooks.read(read), skip, precision="highest")
    return jax.lax.stop_gradient(value - through) + through + written


def frozen_edits(
    model: Transformer, model_params: Params, tokens: Int[Array | np.ndarray, "batch pos"]
) -> dict[str, Edit]:
    """Return edits that set attention patterns and the scales of norms to those of a run.

    With these edits, the model is linear apart from its MLPs, so effects of features can be
    compared with those that a graph predicts.
    """
    sites = tuple(frozen_norms(model)) + tuple(frozen_patterns(model))
    _, values = model.forward(model_params, tokens, sites=sites)
    return {site: Edit(set_to, value) for site, value in values.items()}
