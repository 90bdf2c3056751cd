"""Planted models on a small world that tests share, and their claims in words."""

import functools

from implicit_reasoning.analysis.claims import describe
from implicit_reasoning.analysis.truth.known import planted_model, small_world


@functools.cache
def dataset(**changes):
    sizes = {"n_entities": 24, "out_degree": 5, "phi": 2.5}
    return small_world(**sizes | changes)


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
