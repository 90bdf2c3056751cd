"""Planted models on a small world that tests share, and what is claimed of them in words."""

import functools

from implicit_reasoning.analysis.claims import describe
from implicit_reasoning.analysis.truth.known import planted_model, small_world


@functools.cache
def dataset(**changes):
    sizes = {"n_entities": 24, "out_degree": 5, "phi": 2.5}
    return small_world(**sizes | changes)


@functools.cache
def known(name):
    """Only the prefix memoriser knows every chain: it has no way to answer others."""
    splits = dataset().splits if name == "prefix_memoriser" else ("train_ii",)
    return planted_model(name, dataset(), splits)


def in_words(claims, name):
    """Claims in words, by whether they are true of the model."""
    return describe(claims, known(name).mechanism)
