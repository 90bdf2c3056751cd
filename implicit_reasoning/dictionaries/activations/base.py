"""Activation functions: how pre-activations become few activations, and how training asks for it.

The loss of every activation function is the squared error, summed over numbers and averaged over
the batch, and the activation function's own terms. One number, its sparsity, says how few: a
coefficient, or a count. It is traced, so that dictionaries of several sparsities are one program.
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
    """What an encoder made of a batch.

    Attributes:
      acts: activations, of all features or of those that can be active.
      pre: what they were made from, of all features.
    """

    acts: Features | Sparse
    pre: Features

    @property
    def dense(self) -> Features:
        """Activations of all features, however they are kept."""
        return self.acts.dense(self.pre.shape[1]) if isinstance(self.acts, Sparse) else self.acts


class ForwardPass(NamedTuple):
    """A batch on its way through a dictionary: what the terms of a loss may look at."""

    x: Inputs
    y: Outputs
    out: Outputs
    encoded: Encoded
    sparsity: Scalar
    dead: Bool[Array, " d_sae"]


@dataclass(frozen=True)
class ActivationFn(abc.ABC):
    """The small interface behind which all activation functions are.

    Attributes:
      name: in configurations and tables.
      sparsity_kind: what `sparsity` is: a coefficient ("l1", "l0"), which may warm up, or a number
        of features ("k").
      saelens_architecture: what SAELens calls it once it is trained.
    """

    name: ClassVar[str]
    sparsity_kind: ClassVar[str]
    saelens_architecture: ClassVar[str]

    def __init_subclass__(cls) -> None:
        """Take attributes of a user's class that have their old names."""
        super().__init_subclass__()
        for old, new in _RENAMED.items():
            if old in vars(cls):
                renames.note(f"attribute of {cls.__name__}", old, new)
                setattr(cls, new, vars(cls)[old])

    def init(self, architecture: Architecture) -> Params:
        """Its own parameters."""
        return {"b_enc": jnp.zeros(architecture.d_sae)}

    @abc.abstractmethod
    def encode(
        self, architecture: Architecture, params: Params, x: Inputs, sparsity: Scalar
    ) -> Encoded:
        """Activations as training has them."""

    def terms(
        self, architecture: Architecture, params: Params, forward: ForwardPass
    ) -> dict[str, Scalar]:
        """What is added to the squared error, by name."""
        return {}

    def observe(
        self, architecture: Architecture, params: Params, threshold: Scalar, encoded: Encoded
    ) -> Scalar:
        """The running threshold after a step, for those that train on whole batches."""
        return threshold

    def project(self, params: Params) -> Params:
        """Parameters set back to where they may be, after a step."""
        return params

    def finish(self, architecture: Architecture, params: Params, threshold: Scalar) -> Params:
        """Parameters for use: decoder rows have norm 1, by `architecture.norms`.

        What is written is what was written before, and an activation tells how much it is.
        """
        norms = architecture.norms(params)
        scaled = params | {
            "W_enc": params["W_enc"] * architecture.broadcast_over_features(norms, "W_enc"),
            "W_dec": params["W_dec"] / architecture.broadcast_over_features(norms, "W_dec"),
        }
        return scaled | self.scaled(params, norms, threshold)

    def scaled(self, params: Params, norms: Float[Array, " d_sae"], threshold: Scalar) -> Params:
        """Its own parameters when activations become `norms` times what they are."""
        return {"b_enc": params["b_enc"] * norms}
