"""Activation functions of dictionaries, with their training losses.

relu.py         defines ReLU, with an L1 penalty
gated.py        defines Gated, in which a gate selects features and a second path scales them
topk.py         defines TopK (the k largest per input) and BatchTopK (the largest of a batch)
jumprelu.py     defines JumpReLU, which learns a threshold for each feature
matryoshka.py   defines Matryoshka, which trains nested dictionaries

base.py         defines the base class `ActivationFn`
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
