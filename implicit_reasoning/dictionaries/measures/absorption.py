"""Measure how often features of single facts absorb the feature of a bridge.

A bridge e is the intermediate entity of a two-hop chain, and the states of e are states whose
prefix determines e. The feature of e is chosen on half of the facts and measured on the remaining
facts. A state of e is silent if the feature of e is inactive. A silent state is absorbed if a
different feature f meets two conditions. The feature f is active in less than half of the states of
e. The feature f contributes at least the share `MIN_PROJECTION` of the dictionary's output along
the direction of e. The direction of e points from the mean of all states to the mean of the states
of e. Both means use only the facts on which the feature of e was chosen. The null control uses the
direction of a different bridge.

Absorption is meaningful only if the feature mostly represents its bridge. Tables therefore include
only bridges whose feature has an F1 of at least `MIN_F1`.

Source: Chanin et al. 2024, "A is for absorption", section 5. In the paper, the absorbing latent
must have a cosine of at least .025 with the direction and contribute at least .4 of the projection.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from implicit_reasoning.analysis.instrument import Examples
from implicit_reasoning.dictionaries.instrument import (
    DictionaryInstrument,
    DictionarySubject,
    EncodedStates,
    ExampleSource,
    without_examples,
)
from implicit_reasoning.dictionaries.measures.bridges import Bridges, choose_bridges
from implicit_reasoning.dictionaries.measures.matching import Half, best_features, one_hot_values

MIN_PROJECTION, MIN_COSINE = 0.4, 0.025
MIN_F1 = 0.5
_RARE = 0.5  # a feature active on at least this share of a bridge's states is not of single facts


class Absorption(DictionaryInstrument):
    """Measures the shares of silent and of absorbed states for each bridge.

    A state is silent if the bridge's feature is inactive. A silent state is absorbed if a rarer
    feature contributes a large share of the output along the bridge's direction.
    """

    name = "absorption"
    definition = (
        "For each bridge, shares of the states where it is first known, of facts that its "
        "feature was not chosen on. silent: the bridge's feature is not active; absorbed: in "
        "addition, a feature that is active on less than half of the bridge's states writes at "
        "least .4 of what is written along the bridge's direction. Null: another bridge's "
        "direction. Source: Chanin et al. 2024, section 5."
    )
    outputs = {name: ("bridge",) for name in ("silent", "absorbed", "absorbed_null")}
    nulls = {"another bridge": "absorbed_null"}

    def examples(self, source: ExampleSource) -> Examples:
        """Choose the states at the first position at which the prefix determines the bridge.

        A bridge is the intermediate entity e2 of a chain, which follows from (e1, r1).
        """
        bridges = choose_bridges(source)
        return without_examples(bridges, {"bridge": range(bridges.n_values)})

    def measure(
        self,
        subject: DictionarySubject,
        shared: Mapping[str, Any],
        encoded: EncodedStates,
        inputs: Bridges,
    ) -> dict[str, Array]:
        """Compute the shares of silent and absorbed states, and the null control."""
        acts = encoded.acts[inputs.chosen]
        values, fit = jnp.asarray(inputs.values), np.flatnonzero(~inputs.second)
        of_value = one_hot_values(values, inputs.n_values)
        active = (acts > 0).astype(jnp.float32)
        feature = best_features(Half(acts[fit], values[fit]), inputs.n_values)
        silent = active[jnp.arange(len(values)), feature[values]] == 0
        often = of_value @ active / jnp.maximum(of_value.sum(1), 1)[:, None]
        rare = (often < _RARE)[values]
        means = directions(subject.y[inputs.chosen[fit]], of_value[:, fit])
        here = of_value * jnp.asarray(inputs.second)[None]
        found = {"silent": _by_value(silent.astype(jnp.float32), here)}
        for name, of in {
            "absorbed": inputs.values,
            "absorbed_null": _others(inputs.values),
        }.items():
            spoken = silent & _spoken_for(acts, encoded.rows, means[of], rare)
            found[name] = _by_value(spoken.astype(jnp.float32), here)
        return found


def _others(values: Int[np.ndarray, " state"]) -> Int[np.ndarray, " state"]:
    """Return, for each state, a bridge that differs from the state's bridge.

    All states with the same bridge get the same different bridge.
    """
    distinct, place = np.unique(values, return_inverse=True)
    return np.roll(distinct, 1)[place]


def directions(
    states: Float[Array, "state width"], of_value: Float[Array, "value state"]
) -> Float[Array, "value width"]:
    """Return unit vectors from the mean of all states to the mean state of each value.

    Args:
      states: [state, width], activations of the model.
      of_value: [value, state], 1 where the state has the value, and 0 elsewhere.
    """
    means = of_value @ states / jnp.maximum(of_value.sum(1), 1)[:, None]
    away = means - states.mean(0)[None]
    return away / (jnp.linalg.norm(away, axis=1, keepdims=True) + 1e-12)


def _spoken_for(
    acts: Float[Array, "state d_sae"],
    rows: Float[Array, "d_sae width"],
    direction: Float[Array, "state width"],
    rare: Bool[Array, "state d_sae"],
) -> Bool[Array, " state"]:
    """Return the states for which one rare feature writes most of the output along `direction`.

    "Most" means at least the share `MIN_PROJECTION`.
    """
    along = direction @ rows.T
    written = acts * along
    total = written.sum(1)
    cosine = along / (jnp.linalg.norm(rows, axis=1)[None] + 1e-12)
    candidates = jnp.where(rare & (cosine >= MIN_COSINE), written, 0.0)
    return (total > 0) & (candidates.max(1) >= MIN_PROJECTION * total)


def _by_value(values: Float[Array, " state"], of_value: Float[Array, "value state"]) -> Array:
    """Return the mean over the states of each value; nan for values without states."""
    count = of_value.sum(1)
    return jnp.where(count > 0, of_value @ values / jnp.maximum(count, 1), jnp.nan)
