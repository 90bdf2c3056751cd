"""Define `Dictionary` for training and `InferenceDictionary` for use after training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from implicit_reasoning.dictionaries.activations import ActivationFn, Encoded, ForwardPass
from implicit_reasoning.dictionaries.architectures import Architecture, Features, Inputs, Outputs
from implicit_reasoning.dictionaries.sparse import Sparse
from implicit_reasoning.errors import InputError
from implicit_reasoning.formatting import card, fields
from implicit_reasoning.model import Params
from implicit_reasoning.runtime.machine import highest_precision

Scalar = Float[Array, ""]
SAELENS_ARCHITECTURES = ("standard", "gated", "topk", "jumprelu")


class LossOutputs(NamedTuple):
    """The second result of `Dictionary.loss`, with loss terms and activations.

    Attributes:
      terms: the terms of the loss, keyed by name. `mse` is the squared error.
      encoded: activations and pre-activations of the features.
      fired: [d_sae], whether each feature is active on at least one input of the batch.
      l0: number of active features per input, averaged over the batch.
    """

    terms: dict[str, Scalar]
    encoded: Encoded
    fired: Bool[Array, " d_sae"]
    l0: Scalar


@dataclass(frozen=True)
class Dictionary:
    """A trainable dictionary, which combines an architecture and an activation function.

    The parameters are arguments of the methods.
    """

    architecture: Architecture
    activation_fn: ActivationFn

    def init(self, key: Key[Array, ""], x: Inputs, y: Outputs) -> Params:
        """Return initial parameters, with `b_dec` set to the mean of the targets `y`."""
        return self.architecture.init(key, x, y) | self.activation_fn.init(self.architecture)

    def loss(
        self,
        params: Params,
        x: Inputs,
        y: Outputs,
        sparsity: Scalar,
        dead: Bool[Array, " d_sae"],
    ) -> tuple[Scalar, LossOutputs]:
        """Compute the squared error plus the loss terms of the activation function.

        The squared error is summed over output dimensions and averaged over the batch.

        Args:
          params: the dictionary's parameters.
          x: [batch, d_in] inputs.
          y: [batch, d_out] targets.
          sparsity: coefficient of the penalty or number of active features, depending on
            `ActivationFn.sparsity_kind`.
          dead: [d_sae], whether each feature is dead.

        Returns:
          The loss, and a `LossOutputs` with the loss terms and the activations.
        """
        architecture, activation_fn = self.architecture, self.activation_fn
        encoded = activation_fn.encode(architecture, params, x, sparsity)
        out = architecture.write(params, encoded.acts) + architecture.base(params, x)
        terms = {"mse": ((out - y) ** 2).sum(-1).mean()}
        terms |= activation_fn.terms(
            architecture, params, ForwardPass(x, y, out, encoded, sparsity, dead)
        )
        return jnp.sum(jnp.stack(list(terms.values()))), self._seen(terms, encoded)

    def _seen(self, terms: dict[str, Scalar], encoded: Encoded) -> LossOutputs:
        acts = encoded.acts
        if isinstance(acts, Sparse):
            active = acts.values > 0
            fired = jnp.zeros(self.architecture.d_sae, jnp.int32).at[acts.indices].max(active)
            return LossOutputs(terms, encoded, fired > 0, active.sum(-1).mean())
        return LossOutputs(terms, encoded, (acts > 0).any(0), (acts > 0).sum(-1).mean())

    def finish(
        self,
        params: Params,
        threshold: Scalar,
        sparsity: Scalar,
        scale_in: Scalar | float = 1.0,
        scale_out: Scalar | float = 1.0,
    ) -> Params:
        """Convert trained parameters to parameters of the inference dictionary.

        The scales of inputs and targets are folded into the weights. The converted dictionary
        therefore reads unscaled inputs and predicts unscaled targets.

        Args:
          params: parameters after training on inputs divided by `scale_in` and targets divided by
            `scale_out`.
          threshold: the running threshold, which `ActivationFn.observe` updates during training.
          sparsity: the sparsity in training. For `topk`, the sparsity becomes the parameter `k`.
          scale_in: number by which inputs were divided in training.
          scale_out: number by which targets were divided in training.
        """
        raw = params | {
            "W_enc": params["W_enc"] / scale_in,
            "W_dec": params["W_dec"] * scale_out,
            "b_dec": params["b_dec"] * scale_out,
        }
        if "W_skip" in raw:
            raw["W_skip"] = params["W_skip"] * (scale_out / scale_in)
        found = self.activation_fn.finish(self.architecture, raw, threshold * scale_out)
        if self.activation_fn.saelens_architecture == "topk":
            found["k"] = jnp.asarray(sparsity, jnp.int32)
        return found

    def for_inference(self) -> InferenceDictionary:
        """Return the dictionary for inference.

        The method `finish` computes the parameters of this dictionary.
        """
        name = self.activation_fn.saelens_architecture
        max_k = getattr(self.activation_fn, "max_k", 0) if name == "topk" else 0
        return InferenceDictionary(self.architecture, name, max_k)


@dataclass(frozen=True)
class InferenceDictionary:
    """A dictionary for inference.

    Instruments, splicing, import and export use this class. The parameters are arguments of the
    methods.

    Attributes:
      architecture: the linear encoder and decoder.
      saelens_architecture: the activation function by SAELens's name: `standard` (ReLU), `gated`,
        `topk` or `jumprelu`.
      max_k: upper limit of the parameter `k` for `topk`, and 0 for all other activation functions.
    """

    architecture: Architecture
    saelens_architecture: str
    max_k: int = 0

    def __post_init__(self) -> None:
        if self.saelens_architecture not in SAELENS_ARCHITECTURES:
            raise InputError(
                f"saelens_architecture is {self.saelens_architecture!r}; it must be one of "
                f"{', '.join(SAELENS_ARCHITECTURES)}"
            )
        if (self.max_k > 0) != (self.saelens_architecture == "topk"):
            raise InputError(
                f"max_k is {self.max_k} and saelens_architecture is {self.saelens_architecture!r}; "
                "max_k must be positive for 'topk' and 0 otherwise"
            )
        if self.max_k > self.architecture.d_sae:
            raise InputError(
                f"max_k is {self.max_k}; it must be at most d_sae = {self.architecture.d_sae}"
            )

    def _repr_html_(self) -> str:
        return card("InferenceDictionary", "", fields(describe(self)))

    @highest_precision
    def encode(self, params: Params, x: Inputs) -> Features:
        """Return the activations of all features for the inputs `x`."""
        projected = self.architecture.project(params, x)
        if self.saelens_architecture == "gated":
            magnitude = projected * jnp.exp(params["r_mag"])[None] + params["b_mag"][None]
            return jnp.where(projected + params["b_gate"][None] > 0, jax.nn.relu(magnitude), 0.0)
        pre = projected + params["b_enc"][None]
        if self.saelens_architecture == "jumprelu":
            return jnp.where(pre > params["threshold"][None], jax.nn.relu(pre), 0.0)
        if self.saelens_architecture == "topk":
            value, index = jax.lax.top_k(pre, self.max_k)
            few = jnp.arange(self.max_k)[None] < params["k"]
            return Sparse(jnp.where(few, jax.nn.relu(value), 0.0), index).dense(
                self.architecture.d_sae
            )
        return jax.nn.relu(pre)

    @highest_precision
    def decode(self, params: Params, acts: Features, x: Inputs) -> Outputs:
        """Return the output for the activations `acts`.

        A skip transcoder also computes a linear function of the input `x`. All other architectures
        ignore the values of `x`.
        """
        return self.architecture.write(params, acts) + self.architecture.base(params, x)

    def __call__(self, params: Params, x: Inputs) -> Outputs:
        """Return the reconstruction of the target for the input `x`."""
        return self.decode(params, self.encode(params, x), x)


def describe(dictionary: InferenceDictionary) -> dict[str, str]:
    """Describe a dictionary's architecture, widths and activation function as strings."""
    architecture, name = dictionary.architecture, dictionary.saelens_architecture
    widths = (architecture.d_in, architecture.d_sae, architecture.d_out)
    return {
        "architecture": type(architecture).__name__,
        "d_in, d_sae, d_out": ", ".join(map(str, widths)),
        "activation function": f"{name}, k at most {dictionary.max_k}" if name == "topk" else name,
    }
