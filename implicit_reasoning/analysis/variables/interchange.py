"""Choose pairs of base and source rows for interchange interventions.

An interchange replaces the component of the base state in a subspace by the component of the source
state. In a cause pair, base and source have different values of the variable. The expected answer
is the right answer to the base query with the value of the source. In an isolation pair, base and
source have the same value of the variable, different first facts and different last relations. The
expected answer is the answer to the base (Huang et al. 2024, RAVEL).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from implicit_reasoning.analysis.variables.counterfactuals import counterfactual_answers
from implicit_reasoning.worlds import Dataset, prefix_keys

INTERCHANGE_KINDS = ("cause", "isolation")
# Number of sources that are tried for each base. For isolation, few sources have the value of the
# base and also give a composed prompt that is not a training prompt, so many must be tried.
_TRIES = 512


class InterchangePairs(NamedTuple):
    """The sources and the expected answers of cause pairs and isolation pairs.

    Attributes:
      source: int `[kind, base]`, the dataset row of the source of each base; -1 if no source was
        found. The kinds are cause and isolation.
      expected: int32 `[kind, base]`, the expected answer token after the interchange; -1 if no
        source was found.
    """

    source: Int[np.ndarray, "kind base"]
    expected: Int[np.ndarray, "kind base"]


class Rules(NamedTuple):
    """Conditions for pairs of a base and a source.

    Attributes:
      variable: the name of the variable.
      pos: the index of the position at which states are interchanged.
      facts: bool `[value, relation]`, the allowed combinations of new value and last relation in
        cause pairs.
      untrained: whether to reject pairs whose composed prompt is a training prompt. The composed
        prompt consists of the tokens of the source up to `pos` and the tokens of the base after
        `pos`. A model that has memorized the composed prompt gives the expected answer without
        using the variable.
    """

    variable: str
    pos: int
    facts: Bool[np.ndarray, "value relation"]
    untrained: bool


def find_pairs(
    dataset: Dataset,
    bases: Int[np.ndarray, " base"],
    pool: Int[np.ndarray, " row"],
    rules: Rules,
    random: np.random.Generator,
) -> InterchangePairs:
    """Find a source for a cause pair and a source for an isolation pair, for each base.

    In a cause pair, base and source have different values of the variable. In an isolation pair,
    base and source have the same value, different first facts and different last relations. Sources
    are drawn from the pool at random.

    Args:
      dataset: the dataset.
      bases: the dataset rows of the bases.
      pool: the dataset rows that can be sources.
      rules: the conditions for the pairs.
      random: the random number generator.
    """
    tried = pool[random.integers(len(pool), size=(len(bases), _TRIES))]
    truth = dataset.truth
    base, source = np.repeat(bases, _TRIES), tried.ravel()
    value = truth[rules.variable]
    same = value[base] == value[source]
    leads = counterfactual_answers(dataset, base, rules.variable, value[source][:, None])[:, 0]
    last = truth[f"r{dataset.hops}"][base]
    fits = (truth["fact1"][base] != truth["fact1"][source]) & (value[source] >= 0)
    if rules.untrained:
        fits &= ~_composed_is_trained(dataset, base, source, rules.pos)
    cause = fits & ~same & (leads >= 0) & (leads != truth["answer"][base])
    cause &= rules.facts[value[source], last]
    isolation = fits & same & (truth[f"r{dataset.hops}"][source] != last)
    due = (leads, truth["answer"][base])
    found = [
        _first(ok.reshape(tried.shape), tried, d.reshape(tried.shape))
        for ok, d in zip((cause, isolation), due, strict=True)
    ]
    return InterchangePairs(*(np.stack(column) for column in zip(*found, strict=True)))


def _first(fits: np.ndarray, source: np.ndarray, due: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    place = fits.argmax(1)[:, None]
    there = np.take_along_axis(fits, place, 1)[:, 0]
    source, due = (np.take_along_axis(column, place, 1)[:, 0] for column in (source, due))
    return np.where(there, source, -1), np.where(there, due, -1).astype(np.int32)


def _composed_is_trained(
    dataset: Dataset, base: np.ndarray, source: np.ndarray, pos: int
) -> Bool[np.ndarray, " pair"]:
    length = len(dataset.positions)
    # At the last position, the composed prompt is always the prompt of the source, which is a
    # training prompt. The condition would reject every pair.
    if pos == length - 1:
        return np.zeros(len(base), bool)
    chains = dataset.truth["position"][: dataset.n_train] == length - 1
    trained = dataset.tokens[: dataset.n_train][chains][:, :length]
    composed = dataset.tokens[base][:, :length].copy()
    composed[:, : pos + 1] = dataset.tokens[source][:, : pos + 1]
    keys = prefix_keys(np.concatenate([trained, composed]), dataset.n_vocab)[:, -1]
    return np.isin(keys[len(trained) :], keys[: len(trained)])
