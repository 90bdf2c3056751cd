"""Matryoshka: the first features must reconstruct without the later ones.

BatchTopK with nested widths: the error of what the first m features write alone is added for each
width m, which leaves general features no reason to be absorbed by special ones.

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
    """See the module; `sparsity` is the mean of k.

    Attributes:
      widths: of the nested dictionaries, ascending, without the whole one.
    """

    widths: tuple[int, ...] = ()

    name: ClassVar[str] = "matryoshka"

    def __post_init__(self) -> None:
        if not self.widths or self.widths[0] < 1 or any(a >= b for a, b in pairwise(self.widths)):
            raise InputError(f"widths ascend, one at least; they are {self.widths}")

    def init(self, architecture: Architecture) -> Params:
        """As BatchTopK's.

        Raises:
          InputError: a nested dictionary is not smaller than the whole.
        """
        if self.widths[-1] >= architecture.d_sae:
            raise InputError(
                f"widths {self.widths} are to be below d_sae, which is {architecture.d_sae}"
            )
        return super().init(architecture)

    def terms(
        self, architecture: Architecture, params: Params, forward: ForwardPass
    ) -> dict[str, Scalar]:
        """AuxK, and the error of each nested dictionary."""
        rows, acts = architecture.rows(params), forward.encoded.dense
        out, terms = (
            architecture.base(params, forward.x),
            super().terms(architecture, params, forward),
        )
        for start, end in pairwise((0, *self.widths)):
            out = out + acts[:, start:end] @ rows[start:end]
            terms[f"inner_{end}"] = ((out - forward.y) ** 2).sum(-1).mean()
        return terms
