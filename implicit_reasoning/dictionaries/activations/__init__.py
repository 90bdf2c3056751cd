"""Activation functions of dictionaries: what makes activations few, and how training asks for it.

relu.py         ReLU and an L1 penalty
gated.py        a gate and a magnitude
topk.py         the k largest, of one input or of a batch
jumprelu.py     a learnt threshold for each feature
matryoshka.py   nested dictionaries

base.py         the interface
"""

from implicit_reasoning.dictionaries.activations.base import ActivationFn, Encoded, ForwardPass
from implicit_reasoning.dictionaries.activations.gated import Gated
from implicit_reasoning.dictionaries.activations.jumprelu import JumpReLU
from implicit_reasoning.dictionaries.activations.matryoshka import Matryoshka
from implicit_reasoning.dictionaries.activations.relu import ReLU
from implicit_reasoning.dictionaries.activations.topk import BatchTopK, TopK

ACTIVATIONS = {one.name: one for one in (ReLU, Gated, TopK, BatchTopK, JumpReLU, Matryoshka)}
"""Those that come with the lab, by name; others are found by import path."""

__all__ = [
    "ACTIVATIONS",
    "ActivationFn",
    "BatchTopK",
    "Encoded",
    "ForwardPass",
    "Gated",
    "JumpReLU",
    "Matryoshka",
    "ReLU",
    "TopK",
]
