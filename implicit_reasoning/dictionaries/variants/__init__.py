"""Variants of dictionaries: what makes activations few, and how training asks for it.

relu.py         ReLU and an L1 penalty
gated.py        a gate and a magnitude
topk.py         the k largest, of one input or of a batch
jumprelu.py     a learnt threshold for each feature
matryoshka.py   nested dictionaries

base.py         the interface
"""

from implicit_reasoning.dictionaries.variants.base import Encoded, Pass, Variant
from implicit_reasoning.dictionaries.variants.gated import Gated
from implicit_reasoning.dictionaries.variants.jumprelu import JumpReLU
from implicit_reasoning.dictionaries.variants.matryoshka import Matryoshka
from implicit_reasoning.dictionaries.variants.relu import ReLU
from implicit_reasoning.dictionaries.variants.topk import BatchTopK, TopK

VARIANTS = {
    variant.name: variant for variant in (ReLU, Gated, TopK, BatchTopK, JumpReLU, Matryoshka)
}
"""Those that come with the lab, by name; others are found by import path."""

__all__ = [
    "VARIANTS",
    "BatchTopK",
    "Encoded",
    "Gated",
    "JumpReLU",
    "Matryoshka",
    "Pass",
    "ReLU",
    "TopK",
    "Variant",
]
