"""Measure superposition, in which there are more directions than dimensions.

The directions are either decoder rows or class means of bridges. Only features that are active on
at least one state are used. The mean of all states is subtracted from the class means. Three
numbers describe the directions:

- `directions`: the number of directions;
- `overlap`: for each direction, the highest |cosine| with a different direction, averaged over
  directions. `overlap_null` is the overlap of the same number of random directions;
- `dims`: the mean dimensionality of the directions. The dimensionality of a direction w is `|w|^2 /
  sum_j (w . w_j / |w|)^2`. The dimensionality is 1 if w is orthogonal to all other directions.

`effective_dims` is the effective number of dimensions of the states. The formula is `tr(C)^2 /
tr(C^2)`, where C is the covariance of the states.

Source: Elhage et al. 2022, "Toy models of superposition", section 3 (dimensionality).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from implicit_reasoning.analysis.instrument import Examples
from implicit_reasoning.dictionaries.instrument import (
    DictionaryInstrument,
    DictionarySubject,
    EncodedStates,
    ExampleSource,
    without_examples,
)
from implicit_reasoning.dictionaries.measures.absorption import directions
from implicit_reasoning.dictionaries.measures.bridges import Bridges, choose_bridges
from implicit_reasoning.dictionaries.measures.matching import one_hot_values

_SEED = 0


_NUMBERS = ("directions", "overlap", "overlap_null", "dims")


class Superposition(DictionaryInstrument):
    """Measures the number, overlap and dimensionality of a dictionary's decoder rows."""

    name = "superposition"
    definition = (
        "For features that are ever active: their number (directions), the highest |cosine| "
        "with another, mean over directions (overlap), the same for as many random directions "
        "(overlap_null), and the mean of |w|^2 / sum_j (w . w_j / |w|)^2 (dims). "
        "effective_dims: participation ratio of the states' covariance. Source: Elhage et al. "
        "2022, section 3."
    )
    outputs = {
        "effective_dims": (),
        **{f"feature_{number}": () for number in _NUMBERS},
    }
    nulls = {"random directions": "feature_overlap_null"}

    def examples(self, source: ExampleSource) -> Examples:
        """Return no examples, because the instrument uses all states."""
        return without_examples(None)

    def shared(self, subject: DictionarySubject, inputs: Any) -> dict[str, Any]:
        """Compute the effective number of dimensions of the states (participation ratio)."""
        centred = subject.y - subject.y.mean(0)[None]
        covariance = centred.T @ centred / len(centred)
        effective = jnp.trace(covariance) ** 2 / (covariance**2).sum()
        return {"effective_dims": effective}

    def measure(
        self,
        subject: DictionarySubject,
        shared: Mapping[str, Any],
        encoded: EncodedStates,
        inputs: Any,
    ) -> dict[str, Array]:
        """Measure the decoder rows of the features that are active on at least one state."""
        rows = encoded.rows / (jnp.linalg.norm(encoded.rows, axis=1, keepdims=True) + 1e-12)
        return {**shared, **_overlap("feature", rows, (encoded.acts > 0).any(0))}


class BridgeSuperposition(DictionaryInstrument):
    """Measures the number, overlap and dimensionality of the class means of bridges.

    A bridge is the intermediate entity of a two-hop chain. The results do not depend on a
    dictionary.
    """

    name = "bridge_superposition"
    definition = (
        "The numbers of `superposition` for the means of the states of each bridge, where it is "
        "first known, minus the mean of all."
    )
    outputs = {f"bridge_{number}": () for number in _NUMBERS}
    nulls = {"random directions": "bridge_overlap_null"}

    def examples(self, source: ExampleSource) -> Examples:
        """Choose the states at the first position at which the prefix determines the bridge.

        A bridge is the intermediate entity e2 of a chain, which follows from (e1, r1).
        """
        return without_examples(choose_bridges(source))

    def shared(self, subject: DictionarySubject, inputs: Bridges) -> dict[str, Any]:
        """Measure the class means of bridges, which all dictionaries share."""
        of_value = one_hot_values(jnp.asarray(inputs.values), inputs.n_values)
        means = directions(subject.y[inputs.chosen], of_value)
        return _overlap("bridge", means, of_value.sum(1) > 0)

    def measure(
        self,
        subject: DictionarySubject,
        shared: Mapping[str, Any],
        encoded: EncodedStates,
        inputs: Bridges,
    ) -> dict[str, Array]:
        """Return the results of `shared`, which are equal for all dictionaries of a checkpoint."""
        return dict(shared)


def _overlap(
    name: str, unit: Float[Array, "direction width"], there: Bool[Array, " direction"]
) -> dict[str, Array]:
    drawn = jax.random.normal(jax.random.key(_SEED), unit.shape)
    drawn = drawn / jnp.linalg.norm(drawn, axis=1, keepdims=True)
    return {
        f"{name}_directions": there.sum(),
        f"{name}_overlap": _nearest(unit, there),
        f"{name}_overlap_null": _nearest(drawn, there),
        f"{name}_dims": _mean_over(1 / _gram(unit, there).sum(1), there),
    }


def _gram(unit: Array, there: Array) -> Float[Array, "direction direction"]:
    """Return squared cosines between the directions that are present.

    The row and the column of an absent direction are 0, except for a 1 on the diagonal.
    """
    return jnp.where(there[:, None] & there[None], (unit @ unit.T) ** 2, 0) + jnp.diag(~there * 1.0)


def _nearest(unit: Array, there: Array) -> Float[Array, ""]:
    others = _gram(unit, there) * (1 - jnp.eye(len(unit)))
    return _mean_over(jnp.sqrt(others.max(1)), there)


def _mean_over(values: Array, there: Array) -> Float[Array, ""]:
    return jnp.where(there, values, 0).sum() / jnp.maximum(there.sum(), 1)
