"""Measure: more directions than dimensions? Of a dictionary's features, and of the states' own.

Of the features that are ever active, and of the class means of bridges (less the mean of all):
how many there are; how much the nearest other one overlaps (highest |cosine|, mean over
directions), beside as many random ones; and how many dimensions each has for itself, `|w|^2 /
sum_j (w . w_j / |w|)^2`, which is 1 where no other overlaps. Beside them the dimensions that the
states take, `tr(C)^2 / tr(C^2)` of their covariance C.

Source: Elhage et al. 2022, "Toy models of superposition", section 3 (dimensionality).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from implicit_reasoning.dictionaries.measures.absorption import directions
from implicit_reasoning.dictionaries.measures.base import Asked, Coded, Found, Measure, Subject
from implicit_reasoning.dictionaries.measures.bridges import Bridges, choose_bridges
from implicit_reasoning.dictionaries.measures.matching import of_values

_SEED = 0


@dataclass(frozen=True, eq=False)
class Superposition(Measure):
    """Numbers by dictionary."""

    bridges: Bridges | None

    name: ClassVar[str] = "superposition"

    @classmethod
    def choose(cls, asked: Asked) -> Measure:
        """Of every run; of class means where there are bridges."""
        return cls(choose_bridges(asked))

    def shared(self, subject: Subject) -> dict[str, Any]:
        """Of the states themselves."""
        centred = subject.y - subject.y.mean(0)[None]
        covariance = centred.T @ centred / len(centred)
        effective = jnp.trace(covariance) ** 2 / (covariance**2).sum()
        found = {"effective_dims": effective}
        if self.bridges is not None:
            of_value = of_values(jnp.asarray(self.bridges.values), self.bridges.n_values)
            means = directions(subject.y[self.bridges.chosen], of_value)
            found |= _overlap("bridge", means, of_value.sum(1) > 0)
        return found

    def of_one(self, subject: Subject, shared: dict[str, Any], coded: Coded) -> dict[str, Array]:
        """Of the features that are active somewhere."""
        rows = coded.rows / (jnp.linalg.norm(coded.rows, axis=1, keepdims=True) + 1e-12)
        return {**shared, **_overlap("feature", rows, (coded.acts > 0).any(0))}

    def labelled(self, outputs: dict[str, np.ndarray]) -> Found:
        """By dictionary."""
        return {name: ("member", value) for name, value in outputs.items()}, {}


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
    """Squared cosines, of those that are there."""
    return jnp.where(there[:, None] & there[None], (unit @ unit.T) ** 2, 0) + jnp.diag(~there * 1.0)


def _nearest(unit: Array, there: Array) -> Float[Array, ""]:
    others = _gram(unit, there) * (1 - jnp.eye(len(unit)))
    return _mean_over(jnp.sqrt(others.max(1)), there)


def _mean_over(values: Array, there: Array) -> Float[Array, ""]:
    return jnp.where(there, values, 0).sum() / jnp.maximum(there.sum(), 1)
