"""Define the base class of activation functions, which make activations sparse.

The loss of a dictionary is the squared error, summed over output dimensions and averaged over the
batch, plus terms that the activation function defines. One number, the sparsity, sets how sparse
the activations are. It is either the coefficient of a penalty or a number of active features. The
sparsity is traced, so dictionaries with different sparsities share one program.
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
        """The activations of all features as a dense array."""
        return self.acts.dense(self.pre.shape[1]) if isinstance(self.acts, Sparse) else self.acts


class ForwardPass(NamedTuple):
    """The values of a batch's forward pass that loss terms may use.

    Attributes:
      x: [batch, d_in] inputs.
      y: [batch, d_out] targets.
      out: [batch, d_out] the dictionary's outputs.
      encoded: activations and pre-activations.
      sparsity: the coefficient of the penalty or the number of active features; see
        `ActivationFn.sparsity_kind`.
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
      name: the name in configurations and tables.
      sparsity_kind: the meaning of `sparsity`: "l1" or "l0" for a coefficient, which may have a
        warm-up, or "k" for a number of features.
      saelens_architecture: SAELens's name of the activation function after training.
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
        """Compute the activations that training uses."""

    def terms(
        self, architecture: Architecture, params: Params, forward: ForwardPass
    ) -> dict[str, Scalar]:
        """Return the terms that are added to the squared error, by name."""
        return {}

    def observe(
        self, architecture: Architecture, params: Params, threshold: Scalar, encoded: Encoded
    ) -> Scalar:
        """Return the running threshold after a step. Only BatchTopK and Matryoshka change it."""
        return threshold

    def project(self, params: Params) -> Params:
        """Project parameters onto their valid range. Training calls this after each step."""
        return params

    def finish(self, architecture: Architecture, params: Params, threshold: Scalar) -> Params:
        """Convert trained parameters for inference, and scale decoder rows to norm 1.

        The norm of a row is that of `architecture.norms`. Activations are multiplied by the norms,
        so the dictionary's outputs do not change.
        """
        norms = architecture.norms(params)
        scaled = params | {
            "W_enc": params["W_enc"] * architecture.broadcast_over_features(norms, "W_enc"),
            "W_dec": params["W_dec"] / architecture.broadcast_over_features(norms, "W_dec"),
        }
        return scaled | self.scaled(params, norms, threshold)

    def scaled(self, params: Params, norms: Float[Array, " d_sae"], threshold: Scalar) -> Params:
        """Return the activation function's parameters after activations are scaled by `norms`."""
        return {"b_enc": params["b_enc"] * norms}
