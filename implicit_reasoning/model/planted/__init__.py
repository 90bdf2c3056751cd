"""Planted models: weights written by hand, so that the mechanism is known and not inferred.

    draft.py       circuits (moves of codes between positions, look-ups), made into weights
    truth.py       what is true of such a model at every layer and position
    mechanisms.py  the models: composers, memorisers, and decoys that resemble them

Source: the idea of Tracr (Lindner et al. 2023), for the question whether a model composes.
"""

from implicit_reasoning.model.planted.mechanisms import (
    MECHANISMS,
    Knowledge,
    Planted,
    composer,
    hidden_composer,
    idle_copy,
    memoriser,
    parallel,
    prefix_memoriser,
)

__all__ = [
    "MECHANISMS",
    "Knowledge",
    "Planted",
    "composer",
    "hidden_composer",
    "idle_copy",
    "memoriser",
    "parallel",
    "prefix_memoriser",
]
