"""Matryoshka: nested dictionaries, in which the first features also reconstruct states alone.

This is BatchTopK with a further loss term for each nested width m. The term is the squared error of
the output that the first m features give without the others. These terms reduce the incentive for
specific features to absorb general features.

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
    """Matryoshka BatchTopK activation. The sparsity is the mean number of active features.

    Attributes:
      widths: widths of the nested dictionaries in ascending order, without the full width.
    """

    widths: tuple[int, ...] = ()

    name: ClassVar[str] = "matryoshka"

    def __post_init__(self) -> None:
        if not self.widths or self.widths[0] < 1 or any(a >= b for a, b in pairwise(self.widths)):
            raise InputError(
                f"widths is {self.widths}; it must have at least one number, and the numbers "
                "must be positive and ascending"
            )

    def init(self, architecture: Architecture) -> Params:
        """Return the initial parameters of BatchTopK.

        Raises:
          InputError: a nested width is not smaller than the full width.
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
