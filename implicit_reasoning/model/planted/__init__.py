"""Planted models: models with hand-written weights, whose mechanism is therefore known exactly.

    draft.py       a model as a list of heads that copy and neurons that look up
    weights.py     the weights of a draft: with or without superposed codes, layer norm and gelu
    truth.py       ground truth: which claims hold at each layer and position
    circuit.py     the heads, neurons and edges through which a model computes its answers
    routes.py      routes from a prompt to its answer, and the claims that each route makes true
    mechanisms.py  the planted models: composers, memorisers, and models that resemble composers

A composer looks up two facts, through the bridge. A memoriser looks up the whole chain at once. A
cluster composer uses a code of the bridge that comes from chains, and not from the single fact. The
models test whether an instrument can tell them apart. The method follows Tracr (Lindner et al.
2023).
"""

from implicit_reasoning.model.planted.circuit import Circuit
from implicit_reasoning.model.planted.mechanisms import (
    MECHANISMS,
    cluster_composer,
    composer,
    gelu_composer,
    gpt2_composer,
    hidden_composer,
    idle_copy,
    layer_norm_composer,
    memoriser,
    parallel,
    prefix_memoriser,
    shared_store,
    superposed_composer,
)
from implicit_reasoning.model.planted.routes import Knowledge, Planted

__all__ = [
    "MECHANISMS",
    "Circuit",
    "Knowledge",
    "Planted",
    "cluster_composer",
    "composer",
    "gelu_composer",
    "gpt2_composer",
    "hidden_composer",
    "idle_copy",
    "layer_norm_composer",
    "memoriser",
    "parallel",
    "prefix_memoriser",
    "shared_store",
    "superposed_composer",
]
