"""Label features by values of truth variables, and compare the scores of labels with chance.

A label says "variable @ position = value". It is chosen on one half of the first facts (see
`feature_statistics.py`). All scores of the label are computed on the other half.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int

from implicit_reasoning.dictionaries.dashboards.feature_statistics import PAIRS, Matches
from implicit_reasoning.dictionaries.dashboards.truths import StateTruth
from implicit_reasoning.dictionaries.measures.absorption import MIN_F1

MIN_WEAK_F1 = 0.2
"""Minimum F1 of a label. A lower F1 is not accepted even if the null control is still lower."""
MAX_CHANCE = 1e-3
"""Maximum share of random permutations of the values in which a label's score may be reached."""

STANDS_FOR, STANDS_WEAKLY, NOTHING = "stands for", "weakly", "nothing"


class Label(NamedTuple):
    """The label of a feature: the value that it matches best, with scores.

    All scores are computed on the half of the facts that was not used to choose the label.

    Attributes:
      concept: number of the concept.
      value: number of the concept's value.
      name: text of the label, such as `e2 @ r1 = <e_12>`.
      own_token: whether the variable is the token at the label's own position.
      f1: F1 of "is active" as a predictor of "has the value".
      null: a null control of the concept. The values are permuted among the states several times.
        Each time, the F1 of the best feature of each value is averaged over values. `null` is the
        highest of these means.
      chance: an F1 score. At most the share `MAX_CHANCE` of permutations of the values gives this
        feature and value a higher F1.
      average_precision: average precision of the activation as a predictor of "has the value".
      average_precision_null: the null control for average precision, computed like `null`.
      both: number of states that have the value and are active.
      n_active: number of active states at the position.
      n_value: number of states that have the value.
      verdict: `STANDS_FOR`, `STANDS_WEAKLY` or `NOTHING`.
    """

    concept: int
    value: int
    name: str
    own_token: bool
    f1: float
    null: float
    chance: float
    average_precision: float
    average_precision_null: float
    both: int
    n_active: int
    n_value: int
    verdict: str

    @property
    def stands(self) -> bool:
        """Whether the feature stands for the value, at least weakly."""
        return self.verdict != NOTHING

    @property
    def precision(self) -> float:
        """Share of active states that have the value; nan if no state is active."""
        return self.both / self.n_active if self.n_active else np.nan

    @property
    def recall(self) -> float:
        """Share of states with the value that are active; nan if no state has the value."""
        return self.both / self.n_value if self.n_value else np.nan


class OtherMatch(NamedTuple):
    """The name and F1 of a value that a feature matches besides the value in its label."""

    name: str
    f1: float


class Nulls(NamedTuple):
    """Null controls of each concept, for F1 and for average precision.

    The values of the concept are permuted among the states several times. Each time,
    every value gets the score of its best feature, and these scores are averaged. The null control
    is the highest of these averages. It is nan for a concept that was not measured.
    """

    f1: Float[np.ndarray, " concept"]
    average_precision: Float[np.ndarray, " concept"]

    @classmethod
    def of(cls, result: xr.Dataset, names: Sequence[str]) -> Nulls:
        """Return the measured null controls of one dictionary, for concepts with these names."""
        known = set(result["concept"].values.tolist()) if "concept" in result.coords else set()

        def highest(quantity: str, name: str) -> float:
            return float(result[quantity].sel(concept=name).max()) if name in known else np.nan

        return cls(
            *(np.array([highest(f"{one}_null", name) for name in names]) for one in cls._fields)
        )


class Labelled(NamedTuple):
    """For each feature, the pairs (concept, value) that it matches best, with the best pair first.

    Attributes:
      concept: the number of the concept.
      value: the number of the value of this concept.
      chosen: the score by which the pair was chosen, see `Matches`; -1 if there are no more pairs.
      f1: F1 on the half of the facts that was not used to choose the pair.
      chance: the F1 of the first pair that chance rarely exceeds; see `Label.chance`.
      stands: whether the feature stands for the value of the first pair.
      weakly: whether the feature stands weakly for the value of the first pair.
    """

    concept: Int[np.ndarray, "feature pair"]
    value: Int[np.ndarray, "feature pair"]
    chosen: Float[np.ndarray, "feature pair"]
    f1: Float[np.ndarray, "feature pair"]
    chance: Float[np.ndarray, " feature"]
    stands: Bool[np.ndarray, " feature"]
    weakly: Bool[np.ndarray, " feature"]

    @property
    def nothing(self) -> Bool[np.ndarray, " feature"]:
        """Whether each feature stands for no value, not even weakly."""
        return ~(self.stands | self.weakly)

    def verdict(self, feature: int) -> str:
        """Return the verdict on a feature: `STANDS_FOR`, `STANDS_WEAKLY` or `NOTHING`."""
        if self.stands[feature]:
            return STANDS_FOR
        return STANDS_WEAKLY if self.weakly[feature] else NOTHING


def label_features(matches: Matches, null: Float[np.ndarray, " concept"]) -> Labelled:
    """Choose the label of every feature, and judge whether the feature stands for its label.

    Args:
      matches: each feature's best values of each concept.
      null: null control of each concept's F1; nan if it is unknown.
    """
    n_features, n_pairs = matches.chosen.shape[1:]
    chosen = np.moveaxis(matches.chosen, 0, 1).reshape(n_features, -1)
    # Ties keep the order of concepts: variables in the order of the prompt, then facts.
    order = np.argsort(-chosen, axis=1, kind="stable")[:, :PAIRS]
    concept, rank, feature = order // n_pairs, order % n_pairs, np.arange(n_features)
    value, f1 = (of[concept, feature[:, None], rank] for of in (matches.value, matches.f1))
    first = concept[:, 0], feature
    n_value, n_active = matches.n_value[..., 0][first], matches.n_active[first]
    both = both_by_chance(matches.n_states[concept[:, 0]], n_value, n_active)
    chosen = np.take_along_axis(chosen, order, axis=1)
    above = (matches.both[..., 0][first] > both) & (chosen[:, 0] > 0)
    above &= ~(f1[:, 0] <= null[concept[:, 0]])  # an unknown null is not applied
    stands, weakly = above & (f1[:, 0] >= MIN_F1), above & (f1[:, 0] >= MIN_WEAK_F1)
    chance = 2 * both / np.maximum(n_value + n_active, 1)
    return Labelled(concept, value, chosen, f1, chance, stands, weakly & ~stands)


def both_by_chance(
    n_states: Int[np.ndarray, " feature"],
    n_value: Float[np.ndarray, " feature"],
    n_active: Float[np.ndarray, " feature"],
) -> Float[np.ndarray, " feature"]:
    """Return the number of active states with the value that chance rarely exceeds.

    If values are permuted among the states at random, the number of active states with the value
    has a hypergeometric distribution. The probability that this number exceeds the returned number
    is at most `MAX_CHANCE`. The computation is exact.

    Args:
      n_states: number of states at the position.
      n_value: number of states with the value.
      n_active: number of active states.
    """
    from scipy.stats import hypergeom  # the import takes half a second

    both: np.ndarray = hypergeom.isf(
        MAX_CHANCE, n_states, n_value.astype(int), n_active.astype(int)
    )
    return both


def make_label(
    found: Labelled, matches: Matches, nulls: Nulls, truth: StateTruth, feature: int
) -> Label | None:
    """Return the label of a feature, or None if the feature matches no value of any concept.

    Args:
      found: the best-matching values of all features.
      matches: each feature's best values of each concept.
      nulls: null controls of the concepts.
      truth: the ground truth, for names.
      feature: number of the feature.
    """
    if found.chosen[feature, 0] <= 0:
        return None
    concept, value = int(found.concept[feature, 0]), int(found.value[feature, 0])
    of, place = truth.concepts[concept], (concept, feature)
    return Label(
        concept,
        value,
        truth.label(concept, value),
        of.variable == of.pos,
        f1=float(found.f1[feature, 0]),
        null=float(nulls.f1[concept]),
        chance=float(found.chance[feature]),
        average_precision=float(matches.average_precision[place]),
        average_precision_null=float(nulls.average_precision[concept]),
        both=int(matches.both[(*place, 0)]),
        n_active=int(matches.n_active[place]),
        n_value=int(matches.n_value[(*place, 0)]),
        verdict=found.verdict(feature),
    )


def other_pairs(found: Labelled, truth: StateTruth, feature: int) -> list[OtherMatch]:
    """Return further values that a feature matches, without the value in its label.

    A value is returned if two scores are at least `MIN_WEAK_F1`: the score by which the value was
    chosen, and the F1 on the other half of the facts.
    """
    columns = (found.concept, found.value, found.chosen, found.f1)
    return [
        OtherMatch(truth.label(int(concept), int(value)), float(f1))
        for concept, value, chosen, f1 in zip(*(of[feature, 1:] for of in columns), strict=True)
        if min(chosen, f1) >= MIN_WEAK_F1
    ]
