"""Architectures of dictionaries: what is read, what is written, and the linear maps between.

An architecture knows shapes and products; how pre-activations become few activations is a matter of
`activations/`. Inputs and targets of several sites stand beside each other in one vector, so that
every architecture reads [batch, d_in] and writes [batch, d_out].

Parameters bear SAELens's names and layouts: `W_enc [d_in, d_sae]`, `b_enc [d_sae]`, `W_dec [d_sae,
d_out]`, `b_dec [d_out]`, `W_skip [d_out, d_in]`. A cross-layer transcoder has a leading axis of
layers: `W_enc [layer, d_model, feature]`, `W_dec [layer, feature, layer, d_model]`.
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
"""Of decoder rows at the start (Anthropic, April 2024 update; SAELens's default)."""

Inputs = Float[Array, "batch d_in"]
Outputs = Float[Array, "batch d_out"]
Features = Float[Array, "batch d_sae"]


@dataclass(frozen=True)
class Architecture:
    """What architectures have in common; each overrides what is otherwise with it.

    Attributes:
      d_in: numbers read.
      d_out: numbers written.
      d_sae: features.
    """

    d_in: int
    d_out: int
    d_sae: int

    def init(self, key: Key[Array, ""], x: Inputs, y: Outputs) -> Params:
        """Parameters to begin with; `b_dec` is the mean of some targets."""
        keys = jax.random.split(key)
        encoder = _unit(jax.random.normal(keys[0], (self.d_sae, self.d_in))).T
        decoder = DECODER_NORM * _unit(jax.random.normal(keys[1], (self.d_sae, self.d_out)))
        return {"W_enc": encoder, "W_dec": decoder, "b_dec": y.mean(0)}

    def centred(self, params: Params, x: Inputs) -> Inputs:
        """What the encoder reads."""
        return x

    def project(self, params: Params, x: Inputs) -> Features:
        """Pre-activations of all features, without their bias."""
        return self.centred(params, x) @ params["W_enc"]

    def project_at(
        self, params: Params, x: Inputs, index: Int[Array, "batch k"], projected: Features
    ) -> Float[Array, "batch k"]:
        """Those of chosen features out of all of them, `projected`; a gradient passes here only."""
        return gather_dot_of(self.centred(params, x), index, params["W_enc"].T, projected)

    def project_some(
        self, params: Params, x: Inputs, index: Int[Array, " some"]
    ) -> Float[Array, "batch some"]:
        """Pre-activations of some features, the same for all inputs, without their bias."""
        return self.centred(params, x) @ params["W_enc"][:, index]

    def rows(self, params: Params) -> Float[Array, "d_sae d_out"]:
        """What each feature writes."""
        rows: Array = params["W_dec"]
        return rows

    def norms(self, params: Params) -> Float[Array, " d_sae"]:
        """How much each feature writes for an activation of 1."""
        return jnp.linalg.norm(self.rows(params), axis=-1)

    def base(self, params: Params, x: Inputs) -> Outputs:
        """What is written without any feature."""
        return jnp.broadcast_to(params["b_dec"][None], (len(x), self.d_out))

    def write(self, params: Params, acts: Features | Sparse) -> Outputs:
        """What features write: the sum of their rows."""
        if isinstance(acts, Sparse):
            return gather_sum(acts.values, acts.indices, self.rows(params))
        return acts @ self.rows(params)

    def feature_axis(self, name: str) -> int | None:
        """Which axis of a parameter has the features; None where it has none."""
        axes = {"W_enc": -1, "b_dec": None, "W_skip": None}
        return axes.get(name, 0)

    def resampled_weights(
        self, params: Params, x: Float[Array, "d_sae d_in"], missing: Float[Array, "d_sae d_out"]
    ) -> Params:
        """Weights of features that read the direction of `x` and write that of what is missing."""
        return {"W_enc": _unit(self.centred(params, x)).T, "W_dec": _unit(missing)}

    def broadcast_over_features(
        self, values: Shaped[Array, " d_sae"], name: str
    ) -> Shaped[Array, "..."]:
        """One value for each feature, of a shape that broadcasts against a parameter."""
        return {"W_enc": values[None], "W_dec": values[:, None]}.get(name, values)


@dataclass(frozen=True)
class Transcoder(Architecture):
    """Reads one site and writes another, such as `ln2.hook_normalized` and `hook_mlp_out`.

    Source: Dunefsky, Chlenski and Nanda 2024. Their code subtracts `b_dec` from the input, which
    here, as in SAELens and circuit-tracer, is read as it is.
    """


@dataclass(frozen=True)
class SkipTranscoder(Transcoder):
    """A transcoder beside a linear map of its input.

    Source: Paulo, Shabalin and Belrose 2025, "Transcoders beat sparse autoencoders".
    """

    def init(self, key: Key[Array, ""], x: Inputs, y: Outputs) -> Params:
        """The linear map begins at 0."""
        return super().init(key, x, y) | {"W_skip": jnp.zeros((self.d_out, self.d_in))}

    def base(self, params: Params, x: Inputs) -> Outputs:
        """The bias, and the linear map of the input."""
        return super().base(params, x) + x @ params["W_skip"].T


@dataclass(frozen=True)
class Autoencoder(Architecture):
    """Reads and writes the same site; the encoder sees what is left without `b_dec`.

    Source: Bricken et al. 2023, "Towards monosemanticity". The encoder begins as the decoder's
    transpose (tied initialisation).
    """

    def __post_init__(self) -> None:
        if self.d_in != self.d_out:
            raise InputError(
                f"an autoencoder writes what it reads; d_in is {self.d_in}, d_out is {self.d_out}"
            )

    def init(self, key: Key[Array, ""], x: Inputs, y: Outputs) -> Params:
        """The encoder is the decoder's transpose."""
        params = super().init(key, x, y)
        return params | {"W_enc": params["W_dec"].T}

    def centred(self, params: Params, x: Inputs) -> Inputs:
        """Without the decoder's bias."""
        return x - params["b_dec"][None]


@dataclass(frozen=True)
class Crosscoder(Autoencoder):
    """One set of features for a site at several checkpoints, whose states stand side by side.

    A feature's norm is the sum of its norms by checkpoint, which makes it pay for each where it is.

    Attributes:
      n_parts: checkpoints; `d_in` and `d_out` are so many times the site's width.

    Source: Lindsey et al. 2024, "Sparse crosscoders for cross-layer features and model diffing".
    """

    n_parts: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.d_in % self.n_parts:
            raise InputError(f"{self.d_in} numbers do not make {self.n_parts} equal parts")

    def by_part(self, params: Params) -> Float[Array, "d_sae part"]:
        """Norm of each feature at each checkpoint."""
        rows = self.rows(params).reshape(self.d_sae, self.n_parts, -1)
        return jnp.linalg.norm(rows, axis=-1)

    def norms(self, params: Params) -> Float[Array, " d_sae"]:
        """The sum over checkpoints."""
        return self.by_part(params).sum(-1)


@dataclass(frozen=True)
class CrossLayer(Architecture):
    """Features that read one layer each and write it and all later ones.

    Attributes:
      n_layers: blocks; inputs, targets and features are so many equal parts, layer by layer.

    Source: Ameisen et al. 2025, "Circuit tracing", methods.
    """

    n_layers: int = 2

    def __post_init__(self) -> None:
        for name in ("d_in", "d_out", "d_sae"):
            if getattr(self, name) % self.n_layers:
                raise InputError(f"{name} is {getattr(self, name)}, no multiple of {self.n_layers}")

    def init(self, key: Key[Array, ""], x: Inputs, y: Outputs) -> Params:
        """What a layer does not write is 0."""
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
        """Each layer's features read that layer's part of the input."""
        by_layer = x.reshape(len(x), self.n_layers, -1)
        return jnp.einsum("bld,ldf->blf", by_layer, params["W_enc"]).reshape(len(x), self.d_sae)

    def project_at(
        self, params: Params, x: Inputs, index: Int[Array, "batch k"], projected: Features
    ) -> Float[Array, "batch k"]:
        """Features of a row read different parts of it: the gradient is that of all of them."""
        return jnp.take_along_axis(self.project(params, x), index, axis=1)

    def project_some(
        self, params: Params, x: Inputs, index: Int[Array, " some"]
    ) -> Float[Array, "batch some"]:
        """Some columns of `project`."""
        return self.project(params, x)[:, index]

    def rows(self, params: Params) -> Float[Array, "d_sae d_out"]:
        """What each feature writes into all layers, 0 into earlier ones."""
        return (params["W_dec"] * self._written()).reshape(self.d_sae, self.d_out)

    def feature_axis(self, name: str) -> int | None:
        """Of weights that of each layer's own features."""
        return 1 if name == "W_dec" else super().feature_axis(name)

    def resampled_weights(
        self, params: Params, x: Float[Array, "d_sae d_in"], missing: Float[Array, "d_sae d_out"]
    ) -> Params:
        """Each feature reads its own layer's part, and writes what is missing from there on."""
        n, n_own = self.n_layers, self.d_sae // self.n_layers
        parts = x.reshape(n, n_own, n, -1)
        own = _unit(parts[jnp.arange(n), :, jnp.arange(n)])
        written = missing.reshape(n, n_own, n, -1) * self._written()
        decoder = _unit(written.reshape(self.d_sae, self.d_out)).reshape(written.shape)
        return {"W_enc": jnp.swapaxes(own, 1, 2), "W_dec": decoder}

    def broadcast_over_features(
        self, values: Shaped[Array, " d_sae"], name: str
    ) -> Shaped[Array, "..."]:
        """As the plain architectures', by layer."""
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
"""By name, in configurations and files."""


def _unit(rows: Float[Array, "*row width"]) -> Float[Array, "*row width"]:
    return rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)
