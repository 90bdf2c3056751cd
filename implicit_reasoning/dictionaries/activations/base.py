"""Define the base class `ActivationFn` of activation functions.

The loss of a dictionary is a squared error plus terms that the activation function defines. The
squared error is summed over output dimensions and averaged over the batch. The sparsity is a
number: either the coefficient of a sparsity penalty or a number of active features. JAX traces the
sparsity, so dictionaries with different sparsities share one compiled program.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from implicit_reasoning import renames
from implicit_reasoning.dictionaries.architectures import Architecture, Features, Inputs, Outputs
from implicit_reasoning.dictionaries.sparse import Sparse
from implicit_reasoning.model import Params

Scalar = Float[Array, ""]

_RENAMED = {"knob": "sparsity_kind", "architecture": "saelens_architecture"}


class Encoded(NamedTuple):
    """The encoder's outputs for a batch.

    Attributes:
      acts: activations of the features, as a dense array or as `Sparse`.
      pre: [batch, d_sae] pre-activations of all features.
    """

    acts: Features | Sparse
    pre: Features

    @property
    def dense(self) -> Features:
        """Feature activations as a dense array [batch, d_sae]."""
        return self.acts.dense(self.pre.shape[1]) if isinstance(self.acts, Sparse) else self.acts


class ForwardPass(NamedTuple):
    """Results of the forward pass of one batch, from which loss terms are computed.

    Attributes:
      x: [batch, d_in] inputs.
      y: [batch, d_out] targets.
      out: [batch, d_out] the dictionary's outputs.
      encoded: feature activations and pre-activations.
      sparsity: coefficient of the penalty, or number of active features per input. The meaning
        depends on `ActivationFn.sparsity_kind`.
      dead: bool [d_sae], whether each feature is dead.
    """

    x: Inputs
    y: Outputs
    out: Outputs
    encoded: Encoded
    sparsity: Scalar
    dead: Bool[Array, " d_sae"]


@dataclass(frozen=True)
class ActivationFn(abc.ABC):
    """Base class of activation functions.

    Attributes:
      name: name of the activation function in configurations and tables.
      sparsity_kind: the meaning of `sparsity`. "l1" and "l0" mean the coefficient of a penalty. "k"
        means the number of active features per input.
      saelens_architecture: the `architecture` with which SAELens loads the trained dictionary.
    """

    name: ClassVar[str]
    sparsity_kind: ClassVar[str]
    saelens_architecture: ClassVar[str]

    def __init_subclass__(cls) -> None:
        """Accept subclasses of users that have the old names of attributes."""
        super().__init_subclass__()
        for old, new in _RENAMED.items():
            if old in vars(cls):
                renames.note(f"attribute of {cls.__name__}", old, new)
                setattr(cls, new, vars(cls)[old])

    def init(self, architecture: Architecture) -> Params:
        """Return initial values of the activation function's parameters."""
        return {"b_enc": jnp.zeros(architecture.d_sae)}

    @abc.abstractmethod
    def encode(
        self, architecture: Architecture, params: Params, x: Inputs, sparsity: Scalar
    ) -> Encoded:
        """Compute the activations and pre-activations for a training step."""

    def terms(
        self, architecture: Architecture, params: Params, forward: ForwardPass
    ) -> dict[str, Scalar]:
        """Return the loss terms that are added to the squared error, keyed by name."""
        return {}

    def observe(
        self, architecture: Architecture, params: Params, threshold: Scalar, encoded: Encoded
    ) -> Scalar:
        """Return the updated running threshold after a step.

        The running threshold becomes the threshold of features for inference. Only BatchTopK and
        Matryoshka update the running threshold.
        """
        return threshold

    def project(self, params: Params) -> Params:
        """Clip parameters to their valid range.

        Training calls this method after each step.
        """
        return params

    def finish(self, architecture: Architecture, params: Params, threshold: Scalar) -> Params:
        """Convert trained parameters for inference, and scale decoder rows to norm 1.

        The method divides each decoder row by its norm from `architecture.norms` and scales the
        encoder by the same norm. The dictionary's outputs therefore do not change.
        """
        norms = architecture.norms(params)
        scaled = params | {
            "W_enc": params["W_enc"] * architecture.broadcast_over_features(norms, "W_enc"),
            "W_dec": params["W_dec"] / architecture.broadcast_over_features(norms, "W_dec"),
        }
        return scaled | self.scaled(params, norms, threshold)

    def scaled(self, params: Params, norms: Float[Array, " d_sae"], threshold: Scalar) -> Params:
        """Return the function's parameters after activations are multiplied by `norms`.

        For example, the encoder bias becomes `b_enc * norms`.
        """
        return {"b_enc": params["b_enc"] * norms}
