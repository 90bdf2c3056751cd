"""Planted models: weights written by hand, so that the mechanism is known and not inferred.

    draft.py       circuits (moves of codes between positions, look-ups), made into weights
    truth.py       what is true of such a model at every layer and position
    circuit.py     which of its heads, neurons and edges its answers are computed through
    routes.py      ways from a prompt to its answer, each with what it makes true
    mechanisms.py  the models: composers, memorisers, and decoys that resemble them

Source: the idea of Tracr (Lindner et al. 2023), for the question whether a model composes.
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
