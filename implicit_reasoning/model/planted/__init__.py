"""Planted models: weights written by hand, so that the mechanism is known exactly.

    draft.py       circuits of moves between positions and look-ups, compiled into weights
    truth.py       ground truth: which claims hold at each layer and position
    circuit.py     the heads, neurons and edges through which a model computes its answers
    routes.py      routes from a prompt to its answer, with the claims that each makes true
    mechanisms.py  the models: composers, memorisers, and decoys that resemble them

The method follows Tracr (Lindner et al. 2023). The models test whether an instrument can tell that
a model composes.
"""

from implicit_reasoning.model.planted.circuit import Circuit
from implicit_reasoning.model.planted.mechanisms import (
    MECHANISMS,
    composer,
    hidden_composer,
    idle_copy,
    memoriser,
    parallel,
    prefix_memoriser,
)
from implicit_reasoning.model.planted.routes import Knowledge, Planted

__all__ = [
    "MECHANISMS",
    "Circuit",
    "Knowledge",
    "Planted",
    "composer",
    "hidden_composer",
    "idle_copy",
    "memoriser",
    "parallel",
    "prefix_memoriser",
]
