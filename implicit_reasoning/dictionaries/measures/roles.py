"""Measure: is the same feature on for a bridge that in- and out-of-distribution facts lead to?

A bridge's feature is chosen on half of the facts that training's chains use; then, on the other
half and on facts that no chain uses, how often is it active where the bridge is? Beside it, as the
null, how often another bridge's feature is active there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from implicit_reasoning.dictionaries.measures.base import Asked, Coded, Found, Measure, Subject
from implicit_reasoning.dictionaries.measures.bridges import Bridges, choose_bridges
from implicit_reasoning.dictionaries.measures.matching import Half, best_features
from implicit_reasoning.statistics import ClusterIntervals

ROLES = ("id", "ood")
WHOSE = ("own", "another")
_SEED = 0


@dataclass(frozen=True, eq=False)
class Roles(Measure):
    """Shares of states where a bridge's feature is active, by the role of the first fact."""

    bridges: Bridges

    name: ClassVar[str] = "roles"

    @classmethod
    def choose(cls, asked: Asked) -> Measure | None:
        """Where there are facts of both roles."""
        bridges = choose_bridges(asked)
        there = set() if bridges is None else set(bridges.in_distribution.tolist())
        return None if bridges is None or len(there) < 2 else cls(bridges)

    @property
    def _groups(self) -> dict[str, np.ndarray]:
        """States to look at, whose bridge has a feature: numbers among the chosen."""
        one = self.bridges
        chosen_on = one.in_distribution & ~one.second
        known = np.isin(one.values, one.values[chosen_on])
        groups = (one.in_distribution & one.second, ~one.in_distribution)
        return {name: np.flatnonzero(g & known) for name, g in zip(ROLES, groups, strict=True)}

    def of_one(self, subject: Subject, shared: dict[str, Any], coded: Coded) -> dict[str, Array]:
        """Activity of the own and of another bridge's feature, [whose, state] by role."""
        one, acts = self.bridges, coded.acts[self.bridges.chosen]
        fit = np.flatnonzero(one.in_distribution & ~one.second)
        feature = best_features(Half(acts[fit], jnp.asarray(one.values[fit])), one.n_values)
        active = (acts > 0).astype(jnp.float32)
        random, found = np.random.default_rng(_SEED), {}
        fitted = np.unique(one.values[fit])
        for name, group in self._groups.items():
            own = one.values[group]
            # A shift by at least one place among those that have features: never the own one.
            place = np.searchsorted(fitted, own) + random.integers(1, len(fitted), len(own))
            other = fitted[place % len(fitted)]
            found[name] = jnp.stack([active[group, feature[values]] for values in (own, other)])
        return found

    def labelled(self, outputs: dict[str, np.ndarray]) -> Found:
        """Shares with intervals; a bridge has one feature, so states are clustered by bridge."""
        intervals = [
            ClusterIntervals(self.bridges.values[group]).interval(outputs[name])
            for name, group in self._groups.items()
        ]
        dims = ("member", "role", "whose")
        variables: dict[str, Any] = {
            f"role_active{end}": (dims, np.stack([getattr(i, key) for i in intervals], axis=1))
            for end, key in {"": "mean", "_low": "low", "_high": "high"}.items()
        }
        counts = [len(group) for group in self._groups.values()]
        return variables, {"role": list(ROLES), "whose": list(WHOSE), "role_n": ("role", counts)}
