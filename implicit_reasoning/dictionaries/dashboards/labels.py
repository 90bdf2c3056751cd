"""Labels of features from truth, how good they are, and what chance would make of them.

A label says "variable @ position = value". It is chosen on one half of the first facts (see
`feature_statistics.py`); every number beside it is of the other half.
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
"""F1 below which a label says nothing, whatever its null."""
MAX_CHANCE = 1e-3
"""A label has to be better than what so many dealings of values among states would give."""

STANDS_FOR, STANDS_WEAKLY, NOTHING = "stands for", "weakly", "nothing"


class Label(NamedTuple):
    """What a feature stands for, if it does.

    Attributes:
      concept: a number of the concepts.
      value: a number of the concept's values.
      name: such as `e2 @ r1 = <e_12>`.
      own_token: whether the variable is the token at the position itself.
      f1: on the half that it was not chosen on, as all that follows.
      null: highest mean F1 of this concept's best features, of permutations of values.
      chance: F1 that this feature has with this value in fewer than `MAX_CHANCE` of all dealings.
      average_precision: of the activation.
      average_precision_null: as `null`.
      both: states that have the value and are active.
      n_active: active states, of those at the position.
      n_value: states that have the value.
      verdict: of the three.
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
        """Whether it says anything."""
        return self.verdict != NOTHING

    @property
    def precision(self) -> float:
        """How often active states have the value; nan where none is active."""
        return self.both / self.n_active if self.n_active else np.nan

    @property
    def recall(self) -> float:
        """How often states with the value are active."""
        return self.both / self.n_value if self.n_value else np.nan


class OtherMatch(NamedTuple):
    """A pair that a feature matches, too."""

    name: str
    f1: float


class Nulls(NamedTuple):
    """Highest means over a concept's values when values are dealt out anew; nan: not measured."""

    f1: Float[np.ndarray, " concept"]
    average_precision: Float[np.ndarray, " concept"]

    @classmethod
    def of(cls, result: xr.Dataset, names: Sequence[str]) -> Nulls:
        """As they were measured of one dictionary, of concepts of these names."""
        known = set(result["concept"].values.tolist()) if "concept" in result.coords else set()

        def highest(quantity: str, name: str) -> float:
            return float(result[quantity].sel(concept=name).max()) if name in known else np.nan

        return cls(
            *(np.array([highest(f"{one}_null", name) for name in names]) for one in cls._fields)
        )


class Labelled(NamedTuple):
    """The best pairs of every feature, over all concepts, in falling order of `chosen`.

    Attributes:
      concept, value: the pair.
      chosen: see `Matches`; -1 where there are no more pairs.
      f1: on the other half.
      chance: see `Label`; of the first pair, as the verdicts.
      stands, weakly: whether.
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
        """The third verdict."""
        return ~(self.stands | self.weakly)

    def verdict(self, feature: int) -> str:
        """In a word or two."""
        if self.stands[feature]:
            return STANDS_FOR
        return STANDS_WEAKLY if self.weakly[feature] else NOTHING


def label_features(matches: Matches, null: Float[np.ndarray, " concept"]) -> Labelled:
    """Choose every feature's label, and judge it.

    Args:
      matches: as the device found them.
      null: of F1; nan where it is not known.
    """
    n_features, n_pairs = matches.chosen.shape[1:]
    chosen = np.moveaxis(matches.chosen, 0, 1).reshape(n_features, -1)
    # Of equal ones the first: variables before facts, in the order of the prompt.
    order = np.argsort(-chosen, axis=1, kind="stable")[:, :PAIRS]
    concept, rank, feature = order // n_pairs, order % n_pairs, np.arange(n_features)
    value, f1 = (of[concept, feature[:, None], rank] for of in (matches.value, matches.f1))
    first = concept[:, 0], feature
    n_value, n_active = matches.n_value[..., 0][first], matches.n_active[first]
    both = both_by_chance(matches.n_states[concept[:, 0]], n_value, n_active)
    chosen = np.take_along_axis(chosen, order, axis=1)
    above = (matches.both[..., 0][first] > both) & (chosen[:, 0] > 0)
    above &= ~(f1[:, 0] <= null[concept[:, 0]])  # where it is not known, chance is enough
    stands, weakly = above & (f1[:, 0] >= MIN_F1), above & (f1[:, 0] >= MIN_WEAK_F1)
    chance = 2 * both / np.maximum(n_value + n_active, 1)
    return Labelled(concept, value, chosen, f1, chance, stands, weakly & ~stands)


def both_by_chance(
    n_states: Int[np.ndarray, " feature"],
    n_value: Float[np.ndarray, " feature"],
    n_active: Float[np.ndarray, " feature"],
) -> Float[np.ndarray, " feature"]:
    """States with the value that are active, exceeded in at most `MAX_CHANCE` of dealings: exact.

    When values are dealt out anew among states these are drawn without putting back, each for
    itself (hypergeometric).
    """
    from scipy.stats import hypergeom  # half a second: not before it is needed

    both: np.ndarray = hypergeom.isf(
        MAX_CHANCE, n_states, n_value.astype(int), n_active.astype(int)
    )
    return both


def make_label(
    found: Labelled, matches: Matches, nulls: Nulls, truth: StateTruth, feature: int
) -> Label | None:
    """The label of a feature; None where it is active with no value of any concept.

    Args:
      found: of all features.
      matches: as the device found them.
      nulls: of concepts.
      truth: for names.
      feature: its number.
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
    """The next best pairs, of those that it matches at all, on both halves."""
    columns = (found.concept, found.value, found.chosen, found.f1)
    return [
        OtherMatch(truth.label(int(concept), int(value)), float(f1))
        for concept, value, chosen, f1 in zip(*(of[feature, 1:] for of in columns), strict=True)
        if min(chosen, f1) >= MIN_WEAK_F1
    ]
