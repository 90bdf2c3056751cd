"""Labels of features are chosen on one half, tested on the other, and compared with chance."""

import jax
import jax.numpy as jnp
import numpy as np

from implicit_reasoning.dictionaries.dashboards import cards
from implicit_reasoning.dictionaries.dashboards.feature_statistics import match_features
from implicit_reasoning.dictionaries.dashboards.labels import (
    MAX_CHANCE,
    NOTHING,
    STANDS_FOR,
    both_by_chance,
    label_features,
)
from implicit_reasoning.dictionaries.measures.matching import Half


def halves(n_states=4000, n_values=20, n_features=40, density=0.03, seed=0):
    """Return random values, and features that are independent of them."""
    random = np.random.default_rng(seed)
    values = random.integers(0, n_values, n_states)
    acts = random.random((n_states, n_features)) * (random.random((n_states, 1)) < 2)
    acts *= random.random((n_states, n_features)) < density
    return acts.astype(np.float32), values, np.arange(n_states) % 2 == 1


match_compiled = jax.jit(match_features, static_argnums=2)


def matched(acts, values, second, n_values=20, share=None):
    share = jnp.ones(acts.shape[1]) if share is None else jnp.asarray(share, jnp.float32)
    parts = [Half(jnp.asarray(acts[of]), jnp.asarray(values[of])) for of in (~second, second)]
    found = jax.device_get(match_compiled(*parts, n_values, share))
    return jax.tree.map(lambda leaf: np.asarray(leaf)[None], found)


def test_scores_are_those_by_hand():
    acts, values, second = halves(300, 6, 10, 0.3)
    found, active = matched(acts, values, second, 6), acts > 0
    for feature in range(10):
        f1 = [
            2 * (active[~second, feature] & (values[~second] == v)).sum()
            / (active[~second, feature].sum() + (values[~second] == v).sum())
            for v in range(6)
        ]  # fmt: skip
        value = int(np.argmax(f1))
        assert found.value[0, feature, 0] == value
        on, of = active[second, feature], values[second] == value
        assert found.both[0, feature, 0] == (on & of).sum()
        assert found.n_active[0, feature] == on.sum() and found.n_value[0, feature, 0] == of.sum()
        np.testing.assert_allclose(found.chosen[0, feature, 0], f1[value], rtol=1e-6)
        np.testing.assert_allclose(
            found.f1[0, feature, 0], 2 * (on & of).sum() / (on.sum() + of.sum()), rtol=1e-6
        )
    assert found.n_states[0] == second.sum()


def test_features_that_mean_nothing_stand_for_nothing():
    for density in (0.003, 0.03, 0.3):
        matches = matched(*halves(density=density))
        found = label_features(matches, np.array([0.05]))
        assert found.nothing.all() and found.verdict(0) == NOTHING


def test_a_label_that_fails_on_other_facts_stands_for_nothing():
    """Mutation: the second half has other values."""
    acts, values, second = halves()
    acts[:, 0] = values == 3
    assert label_features(matched(acts, values, second), np.array([0.05])).stands[0]
    broken = np.where(second, (values + 1) % 20, values)
    assert label_features(matched(acts, broken, second), np.array([0.05])).nothing[0]


def test_an_unknown_or_high_null_is_minded():
    acts, values, second = halves()
    acts[:, 0] = values == 3
    matches = matched(acts, values, second)
    assert label_features(matches, np.array([np.nan])).stands[0]
    assert label_features(matches, np.array([1.0])).nothing[0]


def test_chance_is_that_of_values_dealt_out_anew():
    n_states, n_value, n_active = 200, 30, 50
    most = both_by_chance(np.array([n_states]), np.array([30.0]), np.array([50.0]))[0]
    random = np.random.default_rng(0)
    drawn = random.hypergeometric(n_value, n_states - n_value, n_active, 200_000)
    assert (drawn > most).mean() < MAX_CHANCE < (drawn > most - 1).mean()


def test_a_label_is_of_where_the_feature_is_active():
    """At r1 the feature stands for a value; at r2 it is rarely active and matches another by
    chance.
    """
    acts, values, second = halves()
    acts[:, 0] = (values == 3) & (np.arange(4000) % 4 < 3)
    rare = np.zeros_like(acts)
    here = np.flatnonzero((values == 5) & ~second)
    rare[here, 0] = 1
    both = [matched(acts, values, second, share=np.full(40, 0.99))]
    both += [matched(rare, values, second, share=np.full(40, 0.01))]

    def label(parts):
        stacked = jax.tree.map(lambda *some: np.concatenate(some), *parts)
        found = label_features(stacked, np.full(2, 0.05))
        return int(found.concept[0, 0]), int(found.value[0, 0]), found.verdict(0)

    assert label(both) == (0, 3, STANDS_FOR)
    both[1] = matched(rare, values, second)  # mutation: as if the feature were active only there
    assert label(both) == (1, 5, NOTHING)


def test_no_feature_has_two_cards_and_not_only_the_best_have_one():
    acts, values, second = halves(n_features=60)
    acts[:, :20] = values[:, None] == np.arange(20)[None]
    labelled = label_features(matched(acts, values, second), np.array([0.05]))
    density = (acts > 0).mean(0)
    density[59] = 0
    groups = cards.choose_features(density, labelled)
    assert list(map(len, groups.values())) == [cards.BEST, cards.DENSEST, cards.RANDOM]
    shown = np.concatenate(list(groups.values()))
    assert len(set(shown)) == len(shown) and 59 not in shown
    assert set(range(20)) <= set(groups["Features with the best labels"].tolist())
    assert labelled.nothing[list(groups.values())[-1]].all()
    without = cards.choose_features(density, None)
    assert list(map(len, without.values())) == [cards.DENSEST, cards.RANDOM]
