"""Activation functions of dictionaries, with their training losses.

relu.py         ReLU with an L1 penalty
gated.py        a gate and a magnitude
topk.py         TopK (the k largest per input) and BatchTopK (per batch)
jumprelu.py     a learned threshold for each feature
matryoshka.py   nested dictionaries

base.py         the base class `ActivationFn`
"""

from implicit_reasoning.dictionaries.activations.base import ActivationFn, Encoded, ForwardPass
from implicit_reasoning.dictionaries.activations.gated import Gated
from implicit_reasoning.dictionaries.activations.jumprelu import JumpReLU
from implicit_reasoning.dictionaries.activations.matryoshka import Matryoshka
from implicit_reasoning.dictionaries.activations.relu import ReLU
from implicit_reasoning.dictionaries.activations.topk import BatchTopK, TopK

ACTIVATIONS = {one.name: one for one in (ReLU, Gated, TopK, BatchTopK, JumpReLU, Matryoshka)}
"""The built-in activation functions, by name. A user's function is found by its import path."""

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
