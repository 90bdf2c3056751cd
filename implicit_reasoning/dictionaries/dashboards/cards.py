"""Select the features that dashboards show, and collect the data for their cards."""

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
    """A state on which a feature is active, with the tokens up to the state's position.

    Attributes:
      before: tokens before the state's position.
      here: the token at the state's position.
      activation: activation of the feature on the state.
      true: whether the feature's label is right for the state. None if the label refers to a
        different position.
      value: name of the true value of the variable in the label. "" if the label refers to a
        different position.
    """

    before: tuple[str, ...]
    here: str
    activation: float
    true: bool | None
    value: str


class Token(NamedTuple):
    """A token, with the change that a feature causes in the token's logit."""

    name: str
    logit: float


class Card(NamedTuple):
    """The data of the dashboard card of one feature.

    Attributes:
      feature: index of the feature.
      density: share of states on which the feature is active.
      by_position: pairs of a position's name and the share of states at the position on which the
        feature is active.
      mean: mean activation over the states on which the feature is active.
      label: the feature's label, or None if the feature has no label.
      others: values that the feature matches, except the value in the label.
      examples: the states with the highest activations of the feature.
      promoted: tokens whose logits the feature increases most. Empty if the feature has no direct
        path to the logits.
      suppressed: tokens whose logits the feature decreases most. Empty if the feature has no direct
        path to the logits.
      history: numbers that describe the feature at each checkpoint. None if there is only one
        checkpoint.
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
    """Feature cards that share a selection criterion, which is the title."""

    title: str
    cards: tuple[Card, ...]


class LabelCount(NamedTuple):
    """The numbers of features that represent values of one concept, strongly or weakly.

    A concept is a variable at a position, such as "e2 @ r1".
    """

    concept: str
    stands: int
    weakly: int


class DictionaryCards(NamedTuple):
    """The feature cards of one dictionary, with counts of features.

    Attributes:
      member: checkpoint, sites, sparsity and seed of the dictionary.
      n_states: number of distinct states of the run.
      n_features: number of features of the dictionary.
      active: number of features that are active on at least one state.
      counts: numbers of labeled features for each concept. Empty if there are no concepts.
      nothing: number of active features that represent no value.
      groups: the feature cards, grouped by selection criterion.
    """

    member: Member
    n_states: int
    n_features: int
    active: int
    counts: tuple[LabelCount, ...]
    nothing: int
    groups: tuple[CardGroup, ...]


def make_cards(run: Run, made: Dictionaries, result: xr.Dataset) -> list[DictionaryCards]:
    """Make feature cards for the dictionaries that `Dictionaries.shown` selects.

    Args:
      run: the run whose model the dictionaries were trained on.
      made: the set of dictionaries.
      result: the measured results of the set, from `measure_dictionaries`.
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
    """Select the features that are shown on cards.

    The function selects features with the best labels, dense features and random features. No
    feature is selected twice. Labels are ranked by their score on the facts on which the labels
    were chosen. Cards show scores on held-out facts, so the ranking does not bias these scores. The
    function selects the best feature of every concept, then the second-best feature of every
    concept, and so on. An easy concept therefore does not fill the page.

    Args:
      density: for each feature, the share of states on which the feature is active.
      found: the labels of the features. None if there are no concepts.
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
    """Makes the labels of a dictionary's features from scores and names."""

    matches: Matches
    found: Labelled
    nulls: Nulls
    truth: StateTruth

    def label(self, feature: int) -> Label | None:
        """Return the label of a feature, or None if the feature has no label."""
        return make_label(self.found, self.matches, self.nulls, self.truth, feature)

    def counts(self, active: Bool[np.ndarray, " feature"]) -> tuple[LabelCount, ...]:
        """For each concept, count the active features that represent a value of the concept."""
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
    """Makes feature cards from feature statistics, labels and histories."""

    dataset: Dataset
    places: Places
    stats: FeatureStats
    labels: FeatureLabels | None
    histories: Histories

    def card(self, feature: int) -> Card:
        """Return the card of the feature with index `feature`."""
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
