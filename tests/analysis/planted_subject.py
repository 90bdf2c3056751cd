"""Planted models on a small world that tests share, and their claims in words.

Compiling takes most of the time of their tests, so these models have no more blocks than the fixed
mechanisms need: three instead of four, and one instead of two in a looped model.
"""

import contextlib
import functools
from unittest import mock

from implicit_reasoning.analysis.claims import describe
from implicit_reasoning.analysis.truth import known as truth
from implicit_reasoning.analysis.truth.known import small_world
from implicit_reasoning.model.planted import mechanisms, routes


@functools.cache
def dataset(**changes):
    sizes = {"n_entities": 24, "out_degree": 5, "phi": 2.5}
    return small_world(**sizes | changes)


def planted_model(name, dataset, splits):
    """Return the model of a planted mechanism without the blocks that it does not use."""
    depth = 2 if name == "shared_store" else 3
    with contextlib.ExitStack() as patches:
        for module in (mechanisms, routes):
            for constant, value in (("DEPTH", depth), ("LAST", depth - 1)):
                patches.enter_context(mock.patch.object(module, constant, value))
        return truth.planted_model(name, dataset, splits)


@functools.cache
def known(name):
    """Return a planted model; only the prefix memoriser stores all chains.

    It has no other way to answer them.
    """
    splits = dataset().splits if name == "prefix_memoriser" else ("train_ii",)
    return planted_model(name, dataset(), splits)


def in_words(claims, name):
    """Return the claims in words, grouped by whether they are true of the model."""
    return describe(claims, known(name).mechanism)
