"""Compute statistics of all features of a dictionary for the dashboards.

A concept is a variable at a position, such as the bridge e2 at r1. For each feature, this module
finds the best-matching values of concepts. The instrument `concepts` finds the best feature for
each value instead. The score of a feature and a value is the F1 of "the feature is active" as a
predictor of "the state has the value", over states at the position. Values are chosen on one half
of the first facts (e1, r1) and scored on the second half.

A label should explain the feature's activity at all positions. Values are therefore chosen by a
modified F1. In the modified F1, the precision is multiplied by the share of the feature's activity
at the concept's position. All positions have the same weight. For example, a feature may be active
on bridges at r1 and on a few states at r2. The ordinary F1 could select a value that only these few
states share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from implicit_reasoning.analysis.reading.ranking import f1_score
from implicit_reasoning.analysis.subject import tree_rows
from implicit_reasoning.dictionaries.architectures import Features, Inputs
from implicit_reasoning.dictionaries.dictionary import InferenceDictionary
from implicit_reasoning.dictionaries.measures.concepts import ConceptStates
from implicit_reasoning.dictionaries.measures.matching import (
    MIN_STATES,
    Half,
    average_precision,
    both_halves,
    count_states,
    one_hot_values,
)
from implicit_reasoning.dictionaries.splice import Sites
from implicit_reasoning.dictionaries.states import Places, states
from implicit_reasoning.dictionaries.store import Dictionaries, Member
from implicit_reasoning.model import HookContext, Params, Transformer
from implicit_reasoning.runs import Run
from implicit_reasoning.runtime.machine import highest_precision

EXAMPLES, TOKENS, PAIRS = 8, 5, 3
"""Numbers of shown states, of promoted or suppressed tokens, and of pairs, for each feature."""

_SCALE = "ln_final.hook_scale"
_ADDS_TO_RESIDUAL = ("_resid_pre", "_resid_mid", "_resid_post", "_mlp_out", "_attn_out", "_embed")


# Fields are device arrays when they are computed and numpy arrays in cards: hence `Any`.


class Matches(NamedTuple):
    """For each concept and feature, the values that the feature matches best.

    Attributes:
      value: numbers of the best-matching values, beginning with the best.
      chosen: the score by which values are chosen. The score is F1 with a penalty for activity
        outside the concept's position. The score is -1 for a value with too few states in a half.
      f1: F1 on the second half of the facts. nan where `chosen` is -1. The following fields also
        use the second half.
      both: number of states that have the value and activate the feature.
      n_value: number of states that have the value.
      n_active: number of states that activate the feature.
      n_states: number of states, including states without a value.
      average_precision: average precision of the feature's activation as a predictor of the best
        value.
    """

    value: Int[Any, "concept feature pair"]
    chosen: Float[Any, "concept feature pair"]
    f1: Float[Any, "concept feature pair"]
    both: Float[Any, "concept feature pair"]
    n_value: Float[Any, "concept feature pair"]
    n_active: Float[Any, "concept feature"]
    n_states: Int[Any, " concept"]
    average_precision: Float[Any, "concept feature"]


class FeatureTokens(NamedTuple):
    """For each feature, the tokens whose logits the feature changes most.

    Attributes:
      promoted: tokens whose logits the feature increases most, in descending order of the change.
      up: changes of the logits of the `promoted` tokens.
      suppressed: tokens whose logits the feature decreases most, in ascending order of the change.
      down: changes of the logits of the `suppressed` tokens.
    """

    promoted: Int[Any, "feature token"]
    up: Float[Any, "feature token"]
    suppressed: Int[Any, "feature token"]
    down: Float[Any, "feature token"]


class FeatureStats(NamedTuple):
    """Statistics of every feature of one dictionary.

    Attributes:
      density: share of states on which the feature is active.
      by_position: for each position, the share of states at the position on which the feature is
        active.
      mean: mean activation over the states on which the feature is active.
      top: highest activations, in descending order.
      states: indices into `Split.places` of the states with the activations `top`.
      matches: the values that each feature matches best. None if there are no concepts.
      tokens: promoted and suppressed tokens. None if `direct_path` is false for the dictionary.
    """

    density: Float[Any, " feature"]
    by_position: Float[Any, "pos feature"]
    mean: Float[Any, " feature"]
    top: Float[Any, "feature example"]
    states: Int[Any, "feature example"]
    matches: Matches | None
    tokens: FeatureTokens | None


@dataclass(frozen=True)
class SiteStates:
    """Activations of the model at several hook sites.

    Attributes:
      x: activations at each site. The axis `step` contains the checkpoints.
      scale: divisor of the final layer norm for each state, at the first checkpoint. All entries
        are 1 if the model has no final norm.
    """

    x: dict[str, Float[Array, "state step width"]]
    scale: Float[Array, " state"]

    def of(self, sites: Sequence[str]) -> Float[Array, "state d_in"]:
        """Return activations at `sites`, concatenated by checkpoint and then by site."""
        return _together([self.x[site] for site in sites])


@jax.jit
def _together(parts: list[Array]) -> Array:
    whole = jnp.concatenate(parts, axis=2)
    return whole.reshape(len(whole), -1)


def read_states(run: Run, places: Places, members: Sequence[Member]) -> SiteStates:
    """Compute the activations that several dictionaries read.

    Args:
      run: the run whose model the dictionaries were trained on.
      places: locations of the states.
      members: the dictionaries. All dictionaries must have the same checkpoints.
    """
    model, steps = run.model, members[0].steps
    sites = list(dict.fromkeys(site for member in members for site in member.read))
    sites += [_SCALE] * (_SCALE in model.sites)
    widths = [model.dims[model.sites[site][-1]] for site in sites]

    @jax.jit
    def read(params: Params) -> tuple[list[Array], Array]:
        found = states(model, places, params, sites=sites)
        parts = jnp.split(found.reshape(len(found), len(steps), -1), np.cumsum(widths)[:-1], axis=2)
        scale = parts[sites.index(_SCALE)][:, 0, 0] if _SCALE in sites else jnp.ones(len(found))
        return parts, scale

    parts, scale = read(run.params(steps))
    return SiteStates(dict(zip(sites, parts, strict=True)), scale)


def feature_stats(
    run: Run,
    made: Dictionaries,
    number: int,
    read: SiteStates,
    places: Places,
    truth: ConceptStates | None,
) -> FeatureStats:
    """Compute statistics of one dictionary's features on all distinct states.

    Args:
      run: the run whose model the dictionary was trained on.
      made: the set that contains the dictionary.
      number: index of the dictionary in the set.
      read: activations at the sites that the dictionary reads, from `read_states`.
      places: locations of the states.
      truth: the concepts with which features are compared; None if there are no concepts.

    Returns:
      The statistics. All arrays are numpy arrays.
    """
    member, own = made.members[number], made.params_of(number)
    acts = _encoded(made.dictionary, own, read.of(member.read))
    positions = list(run.dataset.positions)
    found = jax.device_get(_look(acts, jnp.asarray(places.pos), len(positions)))
    if truth is not None:
        where = np.array([positions.index(one.pos) for one in truth.concepts])
        # Dividing by the sum over positions gives all positions the same weight.
        share = found.by_position / np.maximum(found.by_position.sum(0), np.float32(1e-12))[None]
        matches = _matches(acts, share[where], truth.halves, truth.n_values)
        found = found._replace(matches=matches)
    if direct_path(run.model, member.write, member.steps):
        rows = _summed(made.dictionary.architecture.rows(own), member.sites)
        one = tree_rows(run.params(member.steps), 0)
        found = found._replace(tokens=_tokens(run.model, one, rows, acts, read.scale))
    stats: FeatureStats = jax.device_get(found)
    return stats


def direct_path(model: Transformer, write: tuple[str, ...], steps: tuple[int, ...]) -> bool:
    """Return whether a dictionary has a direct path to the logits.

    The dictionary must belong to one checkpoint, and all written sites must be in the residual
    stream or be added to the residual stream. A dictionary that writes to a site in the residual
    stream must write to this site only.
    """
    added = all(site.endswith(_ADDS_TO_RESIDUAL) and site in model.sites for site in write)
    # A residual site includes the outputs to earlier residual sites, so these outputs do not add
    # up.
    residuals = sum("resid" in site for site in write)
    return added and len(steps) == 1 and (residuals == 0 or len(write) == 1)


@partial(jax.jit, static_argnums=0)
@highest_precision
def _encoded(finished: InferenceDictionary, params: Params, x: Inputs) -> Features:
    return finished.encode(params, x)


@partial(jax.jit, static_argnums=2)
@highest_precision
def _look(
    acts: Float[Array, "state feature"], pos: Int[Array, " state"], n_pos: int
) -> FeatureStats:
    active = (acts > 0).astype(jnp.float32)
    of_pos = one_hot_values(pos, n_pos)
    by_position = of_pos @ active / jnp.maximum(of_pos.sum(1), 1)[:, None]
    top, places = jax.lax.top_k(acts.T, min(EXAMPLES, len(acts)))
    mean = acts.sum(0) / jnp.maximum(active.sum(0), 1)
    return FeatureStats(active.mean(0), by_position, mean, top, places, None, None)


@partial(jax.jit, static_argnums=3)
@highest_precision
def _matches(
    acts: Float[Array, "state feature"],
    share: Float[Array, "concept feature"],
    halves: Any,
    n_values: int,
) -> Matches:
    """Match features with the values of each concept."""

    def one(item: tuple[Array, Any]) -> Matches:
        share, halves = item
        return match_features(*both_halves(acts, halves), n_values, share)

    found: Matches = jax.lax.map(one, (share, jax.tree.map(jnp.asarray, halves)))
    return found


def match_features(
    first: Half, second: Half, n_values: int, share: Float[Array, " feature"]
) -> Matches:
    """For each feature, find the best-matching values of one concept.

    Args:
      first: the half of the states on which values are chosen.
      second: the half of the states on which values are scored. The halves must not overlap.
      n_values: number of values, which are numbered from 0. Static under `jax.jit`.
      share: for each feature, the share of the activity at the concept's position.
    """
    counts = (count_states(half, n_values) for half in (first, second))
    both, n_value, n_active = zip(*counts, strict=True)
    enough = (n_value[0] >= MIN_STATES) & (n_value[1] >= MIN_STATES)
    everywhere = n_active[0] / jnp.maximum(share, 1e-12)
    score = f1_score(both[0], n_value[0][:, None], everywhere[None])
    chosen, value = jax.lax.top_k(jnp.where(enough[:, None], score, -1.0).T, min(PAIRS, n_values))
    feature = jnp.arange(len(value))[:, None]
    there = second.values[None] == value[:, :1]
    f1 = f1_score(both[1][value, feature], n_value[1][value], n_active[1][:, None])
    return Matches(
        value,
        chosen,
        jnp.where(chosen >= 0, f1, jnp.nan),
        both[1][value, feature],
        n_value[1][value],
        n_active[1],
        jnp.isfinite(second.acts[:, 0]).sum(),
        jax.vmap(average_precision)(second.acts.T, there),
    )


def _summed(rows: Float[Array, "feature d_out"], sites: Sites) -> Float[Array, "feature d_model"]:
    """Return what each feature adds to the residual stream, summed over written sites."""
    return rows.reshape(len(rows), len(sites.write), -1).sum(1)


@partial(jax.jit, static_argnums=0)
@highest_precision
def _tokens(
    model: Transformer,
    params: Params,
    rows: Float[Array, "feature d_model"],
    acts: Float[Array, "state feature"],
    scale: Float[Array, " state"],
) -> FeatureTokens:
    """Return the tokens that each feature promotes and suppresses most.

    Tokens are ranked by the mean direct effect over the states on which the feature is active. The
    scale of the final norm is kept fixed at each state.
    """
    n_active = jnp.maximum((acts > 0).sum(0), 1)
    size = (acts / scale[:, None]).sum(0) / n_active
    logits = size[:, None] * direct_logits(model, params, rows)
    n = min(TOKENS, model.spec.d_vocab)
    up, promoted = jax.lax.top_k(logits, n)
    down, suppressed = jax.lax.top_k(-logits, n)
    return FeatureTokens(promoted, up, suppressed, -down)


def direct_logits(
    model: Transformer, params: Params, rows: Float[Array, "row d_model"]
) -> Float[Array, "row d_vocab"]:
    """Compute the direct effect of residual stream vectors on the logits.

    The final norm and the unembedding are applied to the vectors, with a fixed norm divisor of 1.
    The logits of a zero vector are subtracted, which removes biases.
    """
    network = model.bind(params)

    def read(resid: Array) -> Array:
        one = jnp.ones((len(resid), 1))
        logits: Array = network.unembedding(network.ln_final(resid, HookContext(), scale=one))
        return logits

    return read(rows) - read(jnp.zeros_like(rows[:1]))
