"""Label features by values of ground-truth variables, and compare scores with chance.

The label "e2 @ r1 = <e_12>" says that the variable e2 has the value <e_12> in states at position
r1. `feature_statistics.py` chooses the label on one half of the first facts (e1, r1). All scores of
the label are computed on the second half.
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
    """The label of a feature: the value that the feature matches best.

    All scores are computed on facts that were not used to choose the label.

    Attributes:
      concept: number of the concept, which is a variable at a position.
      value: number of the concept's value.
      name: text of the label, such as `e2 @ r1 = <e_12>`.
      own_token: whether the label only names the token at its position, as in `r1 @ r1`.
      f1: F1 of "the feature is active" as a predictor of "the state has the value".
      null: the null control of `f1`. The values of the concept are permuted among the states
        several times. For each permutation, the F1 of the best feature is averaged over values.
        `null` is the highest of these means.
      chance: an upper limit of F1 by chance. If values are permuted, the F1 of this feature and
        value exceeds `chance` with a probability of at most `MAX_CHANCE`.
      average_precision: average precision of the feature's activation as a predictor of "the state
        has the value".
      average_precision_null: the null control of `average_precision`, computed like `null`.
      both: number of states that have the value and activate the feature.
      n_active: number of states at the position that activate the feature.
      n_value: number of states that have the value.
      verdict: `STANDS_FOR`, `STANDS_WEAKLY` or `NOTHING`. The verdict says whether the feature
        represents the value.
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
        """Whether the feature represents the label's value, at least weakly."""
        return self.verdict != NOTHING

    @property
    def precision(self) -> float:
        """Among the states that activate the feature, the share with the label's value.

        The precision is nan if no state is active.
        """
        return self.both / self.n_active if self.n_active else np.nan

    @property
    def recall(self) -> float:
        """Among the states with the label's value, the share that activates the feature.

        The recall is nan if no state has the value.
        """
        return self.both / self.n_value if self.n_value else np.nan


class OtherMatch(NamedTuple):
    """The name and F1 of an additional value that a feature matches."""

    name: str
    f1: float


class Nulls(NamedTuple):
    """The null controls of F1 and average precision for each concept.

    The values of the concept are permuted among the states several times. For each permutation, the
    score of the best feature is averaged over values. The null control is the highest of these
    averages. The null control of a concept without measurements is nan.
    """

    f1: Float[np.ndarray, " concept"]
    average_precision: Float[np.ndarray, " concept"]

    @classmethod
    def of(cls, result: xr.Dataset, names: Sequence[str]) -> Nulls:
        """Return the measured null controls of the concepts `names` for one dictionary."""
        known = set(result["concept"].values.tolist()) if "concept" in result.coords else set()

        def highest(quantity: str, name: str) -> float:
            return float(result[quantity].sel(concept=name).max()) if name in known else np.nan

        return cls(
            *(np.array([highest(f"{one}_null", name) for name in names]) for one in cls._fields)
        )


class Labelled(NamedTuple):
    """For each feature, the best-matching pairs (concept, value) in descending order.

    Attributes:
      concept: number of the concept of each pair.
      value: number of the value of each pair.
      chosen: the score by which the pair was chosen, described at `Matches`. -1 if the feature has
        no more pairs.
      f1: F1 of each pair on facts that were not used to choose the pair.
      chance: upper limit of the first pair's F1 by chance, described at `Label.chance`.
      stands: whether the feature represents the value of the first pair.
      weakly: whether the feature represents the value of the first pair weakly.
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
        """For each feature, whether the feature represents no value."""
        return ~(self.stands | self.weakly)

    def verdict(self, feature: int) -> str:
        """Return whether a feature represents the value in its label.

        The result is `STANDS_FOR`, `STANDS_WEAKLY` or `NOTHING`.
        """
        if self.stands[feature]:
            return STANDS_FOR
        return STANDS_WEAKLY if self.weakly[feature] else NOTHING


def label_features(matches: Matches, null: Float[np.ndarray, " concept"]) -> Labelled:
    """Choose the label of every feature, and test the label against chance.

    Args:
      matches: for each concept and feature, the best-matching values.
      null: null control of F1 for each concept, or nan for an unknown null control.
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
    """Return an upper limit for the number of active states with a value that chance explains.

    If values are permuted among the states at random, the number of active states with the value
    has a hypergeometric distribution. This number exceeds the returned limit with a probability of
    at most `MAX_CHANCE`. The computation is exact.

    Args:
      n_states: number of states at the label's position.
      n_value: number of states at the position with the value.
      n_active: number of states at the position that activate the feature.
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
      found: the best-matching pairs (concept, value) of all features.
      matches: for each concept and feature, the best-matching values.
      nulls: the null controls of the concepts' scores.
      truth: the source of the names of concepts and values.
      feature: index of the feature.
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
    """Return the values that a feature matches in addition to the label's value.

    The function returns values for which two scores are at least `MIN_WEAK_F1`. The first score is
    the score by which the value was chosen. The second score is F1 on held-out facts.
    """
    columns = (found.concept, found.value, found.chosen, found.f1)
    return [
        OtherMatch(truth.label(int(concept), int(value)), float(f1))
        for concept, value, chosen, f1 in zip(*(of[feature, 1:] for of in columns), strict=True)
        if min(chosen, f1) >= MIN_WEAK_F1
    ]
