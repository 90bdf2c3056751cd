"""Select the features that dashboards show, and collect the data of each feature's card."""

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
"""Numbers of cards per dictionary: for features with the best labels, dense and random features."""
_SEED = 0


class Example(NamedTuple):
    """A state on which a feature is active.

    Attributes:
      before: tokens of the prefix, without the last token.
      here: the last token of the prefix, at the state's position.
      activation: the feature's activation.
      true: whether the state has the value in the feature's label; None if the state is not at the
        label's position.
      value: name of the true value of the label's variable for the state; "" if the state is not at
        the label's position.
    """

    before: tuple[str, ...]
    here: str
    activation: float
    true: bool | None
    value: str


class Token(NamedTuple):
    """A token, and the number that a feature adds to the token's logit."""

    name: str
    logit: float


class Card(NamedTuple):
    """The data of a feature's card.

    Attributes:
      feature: index of the feature.
      density: share of all states on which the feature is active.
      by_position: for each position, the name of the position and the share of the states at this
        position on which the feature is active.
      mean: mean activation over the states on which the feature is active.
      label: the feature's label, or None if the feature has no label.
      others: further values that the feature matches.
      examples: the states with the highest activations.
      promoted: tokens whose logits the feature raises most; empty if there is no direct path from
        the feature to the logits.
      suppressed: tokens whose logits the feature lowers most; empty if there is no direct path.
      history: the feature's history over checkpoints; None if there is only one checkpoint.
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
    """Cards of features that were selected by one criterion."""

    title: str
    cards: tuple[Card, ...]


class LabelCount(NamedTuple):
    """The numbers of features whose label is a value of one concept, by verdict."""

    concept: str
    stands: int
    weakly: int


class DictionaryCards(NamedTuple):
    """The cards of one dictionary, with counts.

    Attributes:
      member: the dictionary's identity.
      n_states: number of distinct states.
      n_features: number of features.
      active: number of features that are active on any state.
      counts: counts of labels by concept; empty if there are no concepts.
      nothing: number of active features whose label has the verdict `NOTHING`.
      groups: the cards.
    """

    member: Member
    n_states: int
    n_features: int
    active: int
    counts: tuple[LabelCount, ...]
    nothing: int
    groups: tuple[CardGroup, ...]


def make_cards(run: Run, made: Dictionaries, result: xr.Dataset) -> list[DictionaryCards]:
    """Make the cards of a set's representative dictionaries (`Dictionaries.shown`).

    Args:
      run: the run that the set belongs to.
      made: the set of dictionaries.
      result: the measured results of the set.
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
    """Select the features that get cards, for each criterion. No feature is selected twice.

    Features with the best labels are ranked by their scores on the half of the facts on which
    labels are chosen. Cards show scores on the other half, so the selection does not bias the shown
    scores. The best features of all concepts come first, then the second best, and so on, so that
    an easy concept does not fill the page.

    Args:
      density: share of states on which each feature is active.
      found: labels of the features; None if there are no concepts.
    """
    active = density > 0
    left, groups = active.copy(), {}
    if found is not None:
        best = _in_turn(found, active & (found.chosen[:, 0] > 0))
        groups["Features with the best labels"] = best
        left[best] = False
    densest = _first(np.argsort(-density, kind="stable"), left, DENSEST)
    groups["Densest of the other features"] = densest
    left[densest] = False
    order = np.random.default_rng(_SEED).permutation(len(density))
    title, of = "Drawn at random", left
    if found is not None:
        title, of = "Drawn at random from features whose label says nothing", left & found.nothing
    groups[title] = np.sort(_first(order, of, RANDOM))
    return groups


def _in_turn(found: Labelled, there: Bool[np.ndarray, " feature"]) -> Int[np.ndarray, " some"]:
    """Select the best feature of each concept, then the second best feature of each, and so on.

    The selected features are returned in the order of the concepts.
    """
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
    """The labels of a dictionary's features, with the data from which labels are made."""

    matches: Matches
    found: Labelled
    nulls: Nulls
    truth: StateTruth

    def label(self, feature: int) -> Label | None:
        """Return the label of a feature, if it has one."""
        return make_label(self.found, self.matches, self.nulls, self.truth, feature)

    def counts(self, active: Bool[np.ndarray, " feature"]) -> tuple[LabelCount, ...]:
        """Count the labels of active features by concept and verdict."""
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
    """Writer that makes cards from statistics, labels and histories."""

    dataset: Dataset
    places: Places
    stats: FeatureStats
    labels: FeatureLabels | None
    histories: Histories

    def card(self, feature: int) -> Card:
        """Return the card of a feature."""
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
        """Return the name of each position that has states, with its share of active states."""
        there = np.unique(self.places.pos)
        shares = np.asarray(self.stats.by_position)[:, feature]
        return tuple((self.dataset.positions[pos], float(shares[pos])) for pos in there)

    def _examples(self, feature: int, label: Label | None) -> tuple[Example, ...]:
        """Return the states with the highest activations; states with activation 0 are omitted."""
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
        """Return promoted and suppressed tokens."""
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
