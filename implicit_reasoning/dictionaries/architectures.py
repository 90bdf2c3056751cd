"""Define the architectures of dictionaries, which consist of linear encoders and decoders.

An activation function from `activations/` converts the encoder's pre-activations to sparse feature
activations. The activations of several hook sites are concatenated into one vector. Every
architecture therefore has inputs [batch, d_in] and outputs [batch, d_out].

Parameters have SAELens's names and layouts: `W_enc [d_in, d_sae]`, `b_enc [d_sae]`, `W_dec [d_sae,
d_out]`, `b_dec [d_out]`, `W_skip [d_out, d_in]`. Weights of a cross-layer transcoder have a leading
layer axis: `W_enc [layer, d_model, feature]`, `W_dec [layer, feature, layer, d_model]`.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Shaped

from implicit_reasoning.dictionaries.sparse import Sparse, gather_dot_of, gather_sum
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Params

DECODER_NORM = 0.1
"""Norm of decoder rows at initialization (Anthropic, April 2024 update; SAELens's default)."""

Inputs = Float[Array, "batch d_in"]
Outputs = Float[Array, "batch d_out"]
Features = Float[Array, "batch d_sae"]


@dataclass(frozen=True)
class Architecture:
    """Base class of architectures: a linear encoder and decoder.

    Attributes:
      d_in: width of the input.
      d_out: width of the output.
      d_sae: number of features.
    """

    d_in: int
    d_out: int
    d_sae: int

    def init(self, key: Key[Array, ""], x: Inputs, y: Outputs) -> Params:
        """Return initial parameters. The decoder bias is the mean of the targets `y`."""
        keys = jax.random.split(key)
        encoder = _unit(jax.random.normal(keys[0], (self.d_sae, self.d_in))).T
        decoder = DECODER_NORM * _unit(jax.random.normal(keys[1], (self.d_sae, self.d_out)))
        return {"W_enc": encoder, "W_dec": decoder, "b_dec": y.mean(0)}

    def centred(self, params: Params, x: Inputs) -> Inputs:
        """Return the vector that `W_enc` multiplies. The base class returns `x`."""
        return x

    def project(self, params: Params, x: Inputs) -> Features:
        """Return pre-activations of all features, without the encoder bias."""
        return self.centred(params, x) @ params["W_enc"]

    def project_at(
        self, params: Params, x: Inputs, index: Int[Array, "batch k"], projected: Features
    ) -> Float[Array, "batch k"]:
        """Return the entries of `projected` at the selected features.

        Gradients flow through the selected features to `params` and `x`, but not to `projected`.

        Args:
          params: the dictionary's parameters.
          x: [batch, d_in] inputs.
          index: [batch, k] indices of the selected features of each input.
          projected: [batch, d_sae] the result of `project(params, x)`.
        """
        return gather_dot_of(self.centred(params, x), index, params["W_enc"].T, projected)

    def project_some(
        self, params: Params, x: Inputs, index: Int[Array, " some"]
    ) -> Float[Array, "batch some"]:
        """Return pre-activations of selected features, without the encoder bias.

        Args:
          params: the dictionary's parameters.
          x: [batch, d_in] inputs.
          index: [some] indices of the selected features. All inputs share these indices.
        """
        return self.centred(params, x) @ params["W_enc"][:, index]

    def rows(self, params: Params) -> Float[Array, "d_sae d_out"]:
        """Return the decoder row of each feature.

        The decoder row is the feature's contribution to the output at an activation of 1.
        """
        rows: Array = params["W_dec"]
        return rows

    def norms(self, params: Params) -> Float[Array, " d_sae"]:
        """Return the norm of each feature's decoder row."""
        return jnp.linalg.norm(self.rows(params), axis=-1)

    def base(self, params: Params, x: Inputs) -> Outputs:
        """Return the dictionary's output when no feature is active."""
        return jnp.broadcast_to(params["b_dec"][None], (len(x), self.d_out))

    def write(self, params: Params, acts: Features | Sparse) -> Outputs:
        """Return the sum of decoder rows, weighted by the activations `acts`."""
        if isinstance(acts, Sparse):
            return gather_sum(acts.values, acts.indices, self.rows(params))
        return acts @ self.rows(params)

    def feature_axis(self, name: str) -> int | None:
        """Return the index of the feature axis of the parameter `name`.

        The result is None if the parameter has no feature axis.
        """
        axes = {"W_enc": -1, "b_dec": None, "W_skip": None}
        return axes.get(name, 0)

    def resampled_weights(
        self, params: Params, x: Float[Array, "d_sae d_in"], missing: Float[Array, "d_sae d_out"]
    ) -> Params:
        """Return new weights for resampled features.

        The encoder of feature i is set to the direction of row i of `x`. The decoder row of feature
        i is set to the direction of row i of `missing`.

        Args:
          params: the dictionary's parameters.
          x: [d_sae, d_in] one input for each feature.
          missing: [d_sae, d_out] one reconstruction error for each feature.
        """
        return {"W_enc": _unit(self.centred(params, x)).T, "W_dec": _unit(missing)}

    def broadcast_over_features(
        self, values: Shaped[Array, " d_sae"], name: str
    ) -> Shaped[Array, "..."]:
        """Reshape an array of one value per feature to broadcast against the parameter `name`."""
        return {"W_enc": values[None], "W_dec": values[:, None]}.get(name, values)


@dataclass(frozen=True)
class Transcoder(Architecture):
    """A dictionary whose input and target are activations of two different hook sites.

    For example, a transcoder reads `ln2.hook_normalized` and predicts `hook_mlp_out`.

    Source: Dunefsky, Chlenski and Nanda 2024. The authors' code subtracts `b_dec` from the input.
    This class, SAELens and circuit-tracer use the unchanged input.
    """


@dataclass(frozen=True)
class SkipTranscoder(Transcoder):
    """A transcoder with a linear skip connection from input to output.

    Source: Paulo, Shabalin and Belrose 2025, "Transcoders beat sparse autoencoders".
    """

    def init(self, key: Key[Array, ""], x: Inputs, y: Outputs) -> Params:
        """Return initial parameters. The skip connection `W_skip` is initialized to 0."""
        return super().init(key, x, y) | {"W_skip": jnp.zeros((self.d_out, self.d_in))}

    def base(self, params: Params, x: Inputs) -> Outputs:
        """Return the decoder bias plus the skip connection's output."""
        return super().base(params, x) + x @ params["W_skip"].T


@dataclass(frozen=True)
class Autoencoder(Architecture):
    """A dictionary that reconstructs its input. The encoder reads the input minus `b_dec`.

    The encoder is initialized to the decoder's transpose (tied initialization).

    Source: Bricken et al. 2023, "Towards monosemanticity".
    """

    def __post_init__(self) -> None:
        if self.d_in != self.d_out:
            raise InputError(
                f"d_in is {self.d_in} and d_out is {self.d_out}; d_in and d_out of an autoencoder "
                "must be equal"
            )

    def init(self, key: Key[Array, ""], x: Inputs, y: Outputs) -> Params:
        """Return initial parameters. The encoder is initialized to the decoder's transpose."""
        params = super().init(key, x, y)
        return params | {"W_enc": params["W_dec"].T}

    def centred(self, params: Params, x: Inputs) -> Inputs:
        """Return the input `x` minus the decoder bias `b_dec`."""
        return x - params["b_dec"][None]


@dataclass(frozen=True)
class Crosscoder(Autoencoder):
    """An autoencoder of the concatenated activations of one hook site at several checkpoints.

    A feature has one activation for all checkpoints, and one decoder row per checkpoint. The norm
    of a feature is the sum of the feature's decoder norms. The sparsity penalty uses this norm.

    Attributes:
      n_parts: number of checkpoints. `d_in` and `d_out` are `n_parts` times the site's width.

    Source: Lindsey et al. 2024, "Sparse crosscoders for cross-layer features and model diffing".
    """

    n_parts: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.d_in % self.n_parts:
            raise InputError(
                f"d_in is {self.d_in}; it must be a multiple of n_parts = {self.n_parts}"
            )

    def by_part(self, params: Params) -> Float[Array, "d_sae part"]:
        """Return the norm of each feature's decoder row at each checkpoint."""
        rows = self.rows(params).reshape(self.d_sae, self.n_parts, -1)
        return jnp.linalg.norm(rows, axis=-1)

    def norms(self, params: Params) -> Float[Array, " d_sae"]:
        """Return the sum over checkpoints of each feature's decoder norms."""
        return self.by_part(params).sum(-1)


@dataclass(frozen=True)
class CrossLayer(Architecture):
    """A cross-layer transcoder.

    A feature reads from one layer. The feature writes to the same layer and to all later layers.

    Attributes:
      n_layers: number of layers. Inputs, outputs and features are divided into `n_layers` equal
        parts, in layer order.

    Source: Ameisen et al. 2025, "Circuit tracing", methods.
    """

    n_layers: int = 2

    def __post_init__(self) -> None:
        for name in ("d_in", "d_out", "d_sae"):
            if getattr(self, name) % self.n_layers:
                raise InputError(
                    f"{name} is {getattr(self, name)}; it must be a multiple of n_layers = "
                    f"{self.n_layers}"
                )

    def init(self, key: Key[Array, ""], x: Inputs, y: Outputs) -> Params:
        """Return initial parameters. Decoder weights to layers before a feature's layer are 0."""
        n, keys = self.n_layers, jax.random.split(key)
        n_own, width, width_out = self.d_sae // n, self.d_in // n, self.d_out // n
        encoder = jax.random.normal(keys[0], (n, width, n_own))
        decoder = jax.random.normal(keys[1], (n, n_own, n, width_out)) * self._written()
        flat = DECODER_NORM * _unit(decoder.reshape(self.d_sae, self.d_out))
        return {
            "W_enc": encoder / jnp.linalg.norm(encoder, axis=1, keepdims=True),
            "W_dec": flat.reshape(decoder.shape),
            "b_dec": y.mean(0),
        }

    def project(self, params: Params, x: Inputs) -> Features:
        """Return pre-activations of all features, without the encoder bias.

        A feature reads only the part of `x` from the feature's layer.
        """
        by_layer = x.reshape(len(x), self.n_layers, -1)
        return jnp.einsum("bld,ldf->blf", by_layer, params["W_enc"]).reshape(len(x), self.d_sae)

    def project_at(
        self, params: Params, x: Inputs, index: Int[Array, "batch k"], projected: Features
    ) -> Float[Array, "batch k"]:
        """Return the entries of `project(params, x)` at the selected features.

        The method computes the pre-activations of all features and ignores `projected`. The
        arguments are described at `Architecture.project_at`.
        """
        return jnp.take_along_axis(self.project(params, x), index, axis=1)

    def project_some(
        self, params: Params, x: Inputs, index: Int[Array, " some"]
    ) -> Float[Array, "batch some"]:
        """Return the columns of `project(params, x)` at the selected features."""
        return self.project(params, x)[:, index]

    def rows(self, params: Params) -> Float[Array, "d_sae d_out"]:
        """Return the decoder rows of each feature for all layers, concatenated.

        Rows for layers before the feature's layer are 0.
        """
        return (params["W_dec"] * self._written()).reshape(self.d_sae, self.d_out)

    def feature_axis(self, name: str) -> int | None:
        """Return the index of the feature axis of the parameter `name`.

        The result is None if the parameter has no feature axis.

        In `W_enc` and `W_dec`, this axis contains the features of one layer.
        """
        return 1 if name == "W_dec" else super().feature_axis(name)

    def resampled_weights(
        self, params: Params, x: Float[Array, "d_sae d_in"], missing: Float[Array, "d_sae d_out"]
    ) -> Params:
        """Return new weights for resampled features.

        Let l be the layer of feature i. The encoder of feature i is set to the direction of the
        part of `x[i]` for layer l. The decoder of feature i is set to the direction of the parts of
        `missing[i]` for layer l and all later layers.
        """
        n, n_own = self.n_layers, self.d_sae // self.n_layers
        parts = x.reshape(n, n_own, n, -1)
        own = _unit(parts[jnp.arange(n), :, jnp.arange(n)])
        written = missing.reshape(n, n_own, n, -1) * self._written()
        decoder = _unit(written.reshape(self.d_sae, self.d_out)).reshape(written.shape)
        return {"W_enc": jnp.swapaxes(own, 1, 2), "W_dec": decoder}

    def broadcast_over_features(
        self, values: Shaped[Array, " d_sae"], name: str
    ) -> Shaped[Array, "..."]:
        """Reshape an array of one value per feature to broadcast against the parameter `name`.

        In `W_enc` and `W_dec`, the first axis is the layer.
        """
        by_layer = values.reshape(self.n_layers, -1)
        shaped = {"W_enc": by_layer[:, None], "W_dec": by_layer[:, :, None, None]}
        return shaped.get(name, values)

    def _written(self) -> Float[Array, "layer 1 layer 1"]:
        return jnp.triu(jnp.ones((self.n_layers, self.n_layers)))[:, None, :, None]


ARCHITECTURES: dict[str, type[Architecture]] = {
    "autoencoder": Autoencoder,
    "transcoder": Transcoder,
    "skip_transcoder": SkipTranscoder,
    "crosscoder": Crosscoder,
    "cross_layer": CrossLayer,
}
"""Architectures by their name in configurations and files."""


def _unit(rows: Float[Array, "*row width"]) -> Float[Array, "*row width"]:
    return rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)
