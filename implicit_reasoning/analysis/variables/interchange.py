"""Pairs of rows for interchange interventions: a base, and a source that lends it its state.

A pair for *cause* has a source with another value of the variable, and the answer that the world
gives to the base with that value. A pair for *isolation* has a source with the same value and
another first fact: whatever else the state knows, the answer must stay (Huang et al. 2024, RAVEL).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from implicit_reasoning.analysis.variables.counterfactuals import counterfactual_answers
from implicit_reasoning.worlds import Dataset, prefix_keys

INTERCHANGE_KINDS = ("cause", "isolation")
_TRIES = 512  # sources that are tried for each base: few have the same value and compose anew


class InterchangePairs(NamedTuple):
    """Of each kind and base: a source, and the answer that is due.

    Attributes:
      source: int [kind, base], a row of the dataset; -1 where none was found.
      expected: int32 [kind, base], a token; -1 where none was found.
    """

    source: Int[np.ndarray, "kind base"]
    expected: Int[np.ndarray, "kind base"]


class Rules(NamedTuple):
    """What a pair may be.

    Attributes:
      variable: its name in the truth.
      pos: position whose states are interchanged.
      facts: bool [value, relation], which (new value, last relation) a cause may ask for: those
        that are learnt from are not those that are scored on.
      untrained: refuse pairs whose composed prompt - the source's up to `pos`, then the base's - is
        itself a training prompt: a model that knows prefixes by heart would pass there.
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
    """For each base the first fitting source among some drawn at random from the pool."""
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
    if pos == length - 1:  # nothing of the base is left: the prompt is the source's, always known
        return np.zeros(len(base), bool)
    chains = dataset.truth["position"][: dataset.n_train] == length - 1
    trained = dataset.tokens[: dataset.n_train][chains][:, :length]
    composed = dataset.tokens[base][:, :length].copy()
    composed[:, : pos + 1] = dataset.tokens[source][:, : pos + 1]
    keys = prefix_keys(np.concatenate([trained, composed]), dataset.n_vocab)[:, -1]
    return np.isin(keys[len(trained) :], keys[: len(trained)])
