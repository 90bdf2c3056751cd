"""Define Matryoshka, an activation function that trains nested dictionaries.

Matryoshka is BatchTopK with an additional loss term for each nested width m. The term is the
squared error of a reconstruction from the first m features only. The additional terms discourage
specific features from absorbing general features.

Source: Bussmann et al. 2025, "Learning multi-level features with matryoshka sparse autoencoders".
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from implicit_reasoning.dictionaries.activations.base import ForwardPass, Scalar
from implicit_reasoning.dictionaries.activations.topk import BatchTopK
from implicit_reasoning.dictionaries.architectures import Architecture
from implicit_reasoning.errors import InputError
from implicit_reasoning.model import Params


@dataclass(frozen=True)
class Matryoshka(BatchTopK):
    """Matryoshka BatchTopK. The sparsity is the mean number of active features per input.

    Attributes:
      widths: numbers of features of the nested dictionaries, in ascending order. All widths must be
        smaller than d_sae.
    """

    widths: tuple[int, ...] = ()

    name: ClassVar[str] = "matryoshka"

    def __post_init__(self) -> None:
        if not self.widths or self.widths[0] < 1 or any(a >= b for a, b in pairwise(self.widths)):
            raise InputError(
                f"widths is {self.widths}; it must contain at least one number, and the numbers "
                "must be positive and ascending"
            )

    def init(self, architecture: Architecture) -> Params:
        """Check the nested widths, and return initial parameters.

        Raises:
          InputError: a nested width is at least d_sae.
        """
        if self.widths[-1] >= architecture.d_sae:
            raise InputError(
                f"widths is {self.widths}; all widths must be smaller than d_sae = "
                f"{architecture.d_sae}"
            )
        return super().init(architecture)

    def terms(
        self, architecture: Architecture, params: Params, forward: ForwardPass
    ) -> dict[str, Scalar]:
        """Return the AuxK loss, and the squared error of each nested dictionary."""
        rows, acts = architecture.rows(params), forward.encoded.dense
        out, terms = (
            architecture.base(params, forward.x),
            super().terms(architecture, params, forward),
        )
        for start, end in pairwise((0, *self.widths)):
            out = out + acts[:, start:end] @ rows[start:end]
            terms[f"inner_{end}"] = ((out - forward.y) ** 2).sum(-1).mean()
        return terms
