"""Which features stand for a bridge, and which share of a graph's influence passes through them.

A feature at a position stands for the bridge b if "the feature is active" predicts "e2 is b" with
an F1 of at least .5. The value b is chosen on one half of the first facts (e1, r1), and F1 is
computed on the other half. Features stand for bridges only where the prefix determines the bridge.
Cross-layer transcoders can write the answer without features of the bridge, although the model
computes the bridge; the bridge share shows this.

Source: Lange, Dearstyne and Maher 2026 (cross-layer transcoders rewrite circuits of several hops as
sums of one hop).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from implicit_reasoning.dictionaries.graphs.attribution import Graph, NodeKinds
from implicit_reasoning.dictionaries.graphs.influence import share_through, shares
from implicit_reasoning.dictionaries.graphs.label_prompts import LabelPrompts
from implicit_reasoning.runtime.machine import highest_precision

MIN_F1 = 0.5


class BridgeFeatures(NamedTuple):
    """The bridge for which each feature stands, at each position.

    Attributes:
      value: the index of the bridge; -1 if the feature stands for no bridge.
      f1: F1 on the facts that did not choose the value.
    """

    value: Int[Array, "pos layer feature"]
    f1: Float[Array, "pos layer feature"]


@highest_precision
def bridge_features(
    acts: Float[Array, "state pos layer feature"],
    prompts: LabelPrompts,
    *,
    least: float = MIN_F1,
) -> BridgeFeatures:
    """Find the features that stand for a bridge.

    Args:
      acts: the activations of all features for some prompts.
      prompts: these prompts.
      least: the least F1.
    """
    active = (acts > 0).astype(jnp.float32)
    values = jnp.asarray(np.eye(prompts.n_values, dtype=np.float32))
    one_hot, in_second = values[prompts.bridge], jnp.asarray(prompts.second)[:, None]
    counted = jnp.asarray(prompts.distinct & prompts.known)
    first_half, second_half = (
        f1_of_values(active, one_hot, counted & half) for half in (~in_second, in_second)
    )
    chosen = first_half.argmax(-1)
    score = jnp.take_along_axis(second_half, chosen[..., None], -1)[..., 0]
    # A feature that is inactive on all facts of the first half has no best bridge.
    stands = (score >= least) & (first_half.max(-1) > 0)
    return BridgeFeatures(jnp.where(stands, chosen, -1), score)


@highest_precision
def f1_of_values(
    active: Float[Array, "state pos layer feature"],
    one_hot: Float[Array, "state value"],
    counted: Bool[Array, "state pos"],
) -> Float[Array, "pos layer feature value"]:
    """Return F1 of every feature as a predictor of every value of a variable.

    Args:
      active: 1 where a feature is active, otherwise 0.
      one_hot: 1 at the value of each state. A state without a value has zeros.
      counted: whether the state at each position counts.
    """
    weight = counted.astype(jnp.float32)
    both = jnp.einsum("splf,sv,sp->plfv", active, one_hot, weight)
    fires = jnp.einsum("splf,sp->plf", active, weight)
    present = jnp.einsum("sv,sp->pv", one_hot, weight)
    total = fires[..., None] + present[:, None, None]
    return jnp.where(total > 0, 2 * both / jnp.maximum(total, 1), 0.0)


def standing_for(
    graph: Graph, features: BridgeFeatures, bridge: Int[Array, ""]
) -> Bool[Array, " active"]:
    """Return which active features of a graph stand for a bridge.

    Args:
      graph: the graph of one prompt (a `Graph` without the batch axis).
      features: the bridges for which features stand.
      bridge: the bridge.
    """
    return graph.counts & (features.value[graph.pos, graph.layer, graph.feature] == bridge)


def random_active(
    key: Key[Array, ""],
    place: Int[Array, " active"],
    counts: Bool[Array, " active"],
    chosen: Bool[Array, " active"],
) -> Bool[Array, " active"]:
    """Choose as many random active features of the same places, as a null.

    Args:
      key: the random key.
      place: a number for the position and the layer of each feature.
      counts: whether each feature is active; the others are padding.
      chosen: some active features. The random features can be among them.
    """
    beside = (place[:, None] == place[None]) & counts[None]
    draw = jax.random.uniform(key, place.shape)
    rank = (beside & (draw[None] < draw[:, None])).sum(1)
    return counts & (rank < (beside & chosen[None]).sum(1))


def bridge_share(
    graph: Graph,
    kinds: NodeKinds,
    features: Bool[Array, " active"],
    sources: Bool[Array, " pos"],
) -> Float[Array, ""]:
    """Return the share of influence of some embeddings that passes through some features.

    Args:
      graph: the graph of one prompt.
      kinds: the kinds of its nodes.
      features: which of the active features count, such as those that stand for the bridge of the
        prompt.
      sources: whether the embedding at each position is a source, such as those of e1 and r1.
    """
    n_rest = len(kinds.weights) - len(features)
    through = jnp.concatenate([features, jnp.zeros(n_rest, bool)])
    n_pos = len(sources)
    start = len(kinds.weights) - len(graph.token) - n_pos
    chosen = jnp.zeros(len(kinds.weights), bool).at[start : start + n_pos].set(sources)
    return share_through(shares(graph.adjacency), kinds.weights, chosen, through)
