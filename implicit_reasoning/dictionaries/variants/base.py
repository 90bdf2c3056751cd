"""What a variant is: how pre-activations become few activations, and what training asks for that.

The loss of every variant is the squared error, summed over numbers and averaged over the batch, and
the variant's own terms. One number, its sparsity, says how few: a coefficient, or a count. It is
traced, so that dictionaries of several sparsities are one program.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from implicit_reasoning.dictionaries.kinds import Features, Inputs, Kind, Outputs
from implicit_reasoning.dictionaries.sparse import Sparse
from implicit_reasoning.model import Params

Scalar = Float[Array, ""]


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


class Pass(NamedTuple):
    """A batch on its way through a dictionary: what a variant's terms may look at."""

    x: Inputs
    y: Outputs
    out: Outputs
    encoded: Encoded
    sparsity: Scalar
    dead: Bool[Array, " d_sae"]


@dataclass(frozen=True)
class Variant(abc.ABC):
    """The small interface behind which all variants are.

    Attributes:
      name: in configurations and tables.
      knob: what `sparsity` is: a coefficient ("l1", "l0"), which may warm up, or a number of
        features ("k").
      architecture: what SAELens calls it once it is trained.
    """

    name: ClassVar[str]
    knob: ClassVar[str]
    architecture: ClassVar[str]

    def init(self, kind: Kind) -> Params:
        """The variant's own parameters."""
        return {"b_enc": jnp.zeros(kind.d_sae)}

    @abc.abstractmethod
    def encode(self, kind: Kind, params: Params, x: Inputs, sparsity: Scalar) -> Encoded:
        """Activations as training has them."""

    def terms(self, kind: Kind, params: Params, seen: Pass) -> dict[str, Scalar]:
        """What is added to the squared error, by name."""
        return {}

    def observe(self, kind: Kind, params: Params, threshold: Scalar, encoded: Encoded) -> Scalar:
        """The running threshold after a step, for variants that train on whole batches."""
        return threshold

    def project(self, params: Params) -> Params:
        """Parameters set back to where they may be, after a step."""
        return params

    def finish(self, kind: Kind, params: Params, threshold: Scalar) -> Params:
        """Parameters for use, in `architecture`: decoder rows have norm 1, by `kind.norms`.

        What is written is what was written before, and an activation tells how much it is.
        """
        norms = kind.norms(params)
        scaled = params | {
            "W_enc": params["W_enc"] * kind.of_features(norms, "W_enc"),
            "W_dec": params["W_dec"] / kind.of_features(norms, "W_dec"),
        }
        return scaled | self.scaled(params, norms, threshold)

    def scaled(self, params: Params, norms: Float[Array, " d_sae"], threshold: Scalar) -> Params:
        """The variant's own parameters when activations become `norms` times what they are."""
        return {"b_enc": params["b_enc"] * norms}
