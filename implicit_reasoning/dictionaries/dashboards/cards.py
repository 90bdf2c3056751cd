"""What cards of features show: which features, and everything about each; plain data."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int

from implicit_reasoning.analysis.instrument import NotApplicable
from implicit_reasoning.dictionaries.dashboards.feature_statistics import (
    FeatureStats,
    Matches,
    SiteStates,
    feature_stats,
    read_states,
)
from implicit_reasoning.dictionaries.dashboards.histories import Histories, History
from implicit_reasoning.dictionaries.dashboards.labels import (
    Label,
    Labelled,
    Nulls,
    OtherMatch,
    label_features,
    make_label,
    other_pairs,
)
from implicit_reasoning.dictionaries.dashboards.truths import StateTruth
from implicit_reasoning.dictionaries.instrument import ExampleSource
from implicit_reasoning.dictionaries.measure import example_source
from implicit_reasoning.dictionaries.measures.concepts import ConceptStates
from implicit_reasoning.dictionaries.states import Places
from implicit_reasoning.dictionaries.store import Dictionaries, Member
from implicit_reasoning.runs import Run
from implicit_reasoning.worlds import Dataset

BEST, DENSEST, RANDOM = 24, 4, 6
"""Cards for each dictionary: of features with the best labels, of others."""
_SEED = 0


class Example(NamedTuple):
    """A state where a feature is active.

    Attributes:
      before: the prefix's tokens but the last.
      here: the last, where the state is.
      activation: of the feature.
      true: whether the label is; None at another position than it speaks of.
      value: what the label's variable is there; "" at another position.
    """

    before: tuple[str, ...]
    here: str
    activation: float
    true: bool | None
    value: str


class Token(NamedTuple):
    """A token, and how much of its logit is a feature's."""

    name: str
    logit: float


class Card(NamedTuple):
    """A feature.

    Attributes:
      feature: its number.
      density: share of all states where it is active.
      by_position: the same of the states at each position, by its name.
      mean: activation where it is active.
      label: None where nothing is known of it.
      others: what else it matches.
      examples: the highest activations.
      promoted, suppressed: tokens; empty where there is no direct path.
      history: None where there is one checkpoint.
    """

    feature: int
    density: float
    by_position: tuple[tuple[str, float], ...]
    mean: float
    label: Label | None
    others: Sequence[OtherMatch]
    examples: tuple[Example, ...]
    promoted: tuple[Token, ...]
    suppressed: tuple[Token, ...]
    history: History | None


class CardGroup(NamedTuple):
    """Cards of features that were chosen for one reason."""

    title: str
    cards: tuple[Card, ...]


class LabelCount(NamedTuple):
    """How many features have a label of one concept, by verdict."""

    concept: str
    stands: int
    weakly: int


class DictionaryCards(NamedTuple):
    """One dictionary.

    Attributes:
      member: what it is of.
      n_states: distinct states that were looked at.
      n_features: all there are.
      active: features that are ever active.
      counts: by concept; empty where there are none.
      nothing: active features whose label says nothing.
      groups: cards.
    """

    member: Member
    n_states: int
    n_features: int
    active: int
    counts: tuple[LabelCount, ...]
    nothing: int
    groups: tuple[CardGroup, ...]


def make_cards(run: Run, made: Dictionaries, result: xr.Dataset) -> list[DictionaryCards]:
    """Everything about the dictionaries that have cards.

    Args:
      run: that they are of.
      made: the set.
      result: what was measured of it.
    """
    source = example_source(run, made)
    truth = None
    with contextlib.suppress(NotApplicable):
        truth = ConceptStates.choose(source)
    numbers, places = made.shown, source.split.places
    states = read_states(run, places, [made.members[number] for number in numbers])
    return [_show(source, made, number, result, states, truth) for number in numbers]


def _show(
    source: ExampleSource,
    made: Dictionaries,
    number: int,
    result: xr.Dataset,
    states: SiteStates,
    truth: ConceptStates | None,
) -> DictionaryCards:
    places, dataset = source.split.places, source.run.dataset
    stats = feature_stats(source.run, made, number, states, places, truth)
    labels = None
    if truth is not None and stats.matches is not None:
        concepts = truth.concepts
        nulls = Nulls.of(result.isel(member=number), [one.name for one in concepts])
        found = label_features(stats.matches, nulls.f1)
        labels = FeatureLabels(stats.matches, found, nulls, StateTruth(dataset, places, concepts))
    writer = CardWriter(dataset, places, stats, labels, Histories(made, number, result))
    active = stats.density > 0
    groups = choose_features(stats.density, None if labels is None else labels.found)
    return DictionaryCards(
        made.members[number],
        len(places.pos),
        len(active),
        int(active.sum()),
        () if labels is None else labels.counts(active),
        0 if labels is None else int((labels.found.nothing & active).sum()),
        tuple(
            CardGroup(title, tuple(writer.card(int(feature)) for feature in features))
            for title, features in groups.items()
            if len(features)
        ),
    )


def choose_features(
    density: Float[np.ndarray, " feature"], found: Labelled | None
) -> dict[str, Int[np.ndarray, " some"]]:
    """Numbers of the features that get cards, by reason; no feature has two.

    The best are chosen by what labels were chosen by, so that the scores that are shown are not the
    highest of many; in turn of every concept, so that one that is easy does not fill the page.
    """
    active = density > 0
    left, groups = active.copy(), {}
    if found is not None:
        best = _in_turn(found, active & (found.chosen[:, 0] > 0))
        groups["Best labels"] = best
        left[best] = False
    densest = _first(np.argsort(-density, kind="stable"), left, DENSEST)
    groups["Densest of the others"] = densest
    left[densest] = False
    order = np.random.default_rng(_SEED).permutation(len(density))
    title, of = "Drawn at random", left
    if found is not None:
        title, of = "Drawn at random from those whose label says nothing", left & found.nothing
    groups[title] = np.sort(_first(order, of, RANDOM))
    return groups


def _in_turn(found: Labelled, there: Bool[np.ndarray, " feature"]) -> Int[np.ndarray, " some"]:
    """The best of every concept, then the second best, ...; in the end concept by concept."""
    concept, score = found.concept[:, 0], found.chosen[:, 0]
    order = np.lexsort((-score, concept))
    order = order[there[order]]
    starts = np.searchsorted(concept[order], concept[order])
    turn = np.arange(len(order)) - starts
    kept = order[np.lexsort((-score[order], turn))[:BEST]]
    chosen: np.ndarray = kept[np.lexsort((-found.f1[kept, 0], concept[kept]))]
    return chosen


def _first(
    order: Int[np.ndarray, " feature"], of: Bool[np.ndarray, " feature"], count: int
) -> Int[np.ndarray, " some"]:
    return order[of[order]][:count]


@dataclass(frozen=True)
class FeatureLabels:
    """What truth says of the features of a dictionary."""

    matches: Matches
    found: Labelled
    nulls: Nulls
    truth: StateTruth

    def label(self, feature: int) -> Label | None:
        """Of a feature."""
        return make_label(self.found, self.matches, self.nulls, self.truth, feature)

    def counts(self, active: Bool[np.ndarray, " feature"]) -> tuple[LabelCount, ...]:
        """Verdicts by concept."""
        concept = self.found.concept[:, 0]
        return tuple(
            LabelCount(
                f"{one.variable} @ {one.pos}",
                int((active & self.found.stands & (concept == number)).sum()),
                int((active & self.found.weakly & (concept == number)).sum()),
            )
            for number, one in enumerate(self.truth.concepts)
        )


@dataclass(frozen=True)
class CardWriter:
    """Makes cards of numbers."""

    dataset: Dataset
    places: Places
    stats: FeatureStats
    labels: FeatureLabels | None
    histories: Histories

    def card(self, feature: int) -> Card:
        """Everything about a feature."""
        label = None if self.labels is None else self.labels.label(feature)
        concept = ""
        others: Sequence[OtherMatch] = ()
        if self.labels is not None and label is not None:
            concept = self.labels.truth.concepts[label.concept].name
            others = other_pairs(self.labels.found, self.labels.truth, feature)
        return Card(
            feature,
            float(self.stats.density[feature]),
            self._by_position(feature),
            float(self.stats.mean[feature]),
            label,
            others,
            self._examples(feature, label),
            *self._tokens(feature),
            self.histories.of(feature, label, concept),
        )

    def _by_position(self, feature: int) -> tuple[tuple[str, float], ...]:
        """Of positions that have states at all."""
        there = np.unique(self.places.pos)
        shares = np.asarray(self.stats.by_position)[:, feature]
        return tuple((self.dataset.positions[pos], float(shares[pos])) for pos in there)

    def _examples(self, feature: int, label: Label | None) -> tuple[Example, ...]:
        """States where it is active, of those with the highest activations."""
        pairs = zip(self.stats.top[feature], self.stats.states[feature], strict=True)
        return tuple(
            self._example(int(state), float(activation), label)
            for activation, state in pairs
            if activation > 0
        )

    def _example(self, state: int, activation: float, label: Label | None) -> Example:
        pos, vocab = int(self.places.pos[state]), self.dataset.vocab
        *before, here = (
            vocab[one] for one in self.places.tokens[self.places.row[state], : pos + 1]
        )
        true, value = None, ""
        if self.labels is not None and label is not None:
            true, value = self.labels.truth.at(label.concept, label.value, state)
        return Example(tuple(before), here, activation, true, value)

    def _tokens(self, feature: int) -> tuple[tuple[Token, ...], tuple[Token, ...]]:
        """Promoted and suppressed."""
        found = self.stats.tokens
        if found is None:
            return (), ()
        ends = (found.promoted, found.up), (found.suppressed, found.down)
        up, down = (
            tuple(
                Token(self.dataset.vocab[token], float(logit))
                for token, logit in zip(tokens[feature], logits[feature], strict=True)
            )
            for tokens, logits in ends
        )
        return up, down
