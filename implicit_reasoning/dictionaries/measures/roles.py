"""Measure whether the feature of a bridge is active in and out of distribution.

A bridge is the intermediate entity of a two-hop chain. Training chains use in-distribution facts
only. The feature of a bridge is chosen on half of the in-distribution first facts. The instrument
measures how often this feature is active in states with the bridge. The measured states have the
remaining in-distribution facts or out-of-distribution facts. The null control is the activity of a
different bridge's feature in the same states.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Int

from implicit_reasoning.analysis.instrument import EXAMPLE, Examples, NotApplicable
from implicit_reasoning.dictionaries.instrument import (
    DictionaryInstrument,
    DictionarySubject,
    EncodedStates,
    ExampleSource,
)
from implicit_reasoning.dictionaries.measures.bridges import Bridges, choose_bridges
from implicit_reasoning.dictionaries.measures.matching import Half, best_features

ROLES = ("id", "ood")
FEATURE_OWNERS = ("own", "another")
_SEED = 0


class RoleStates(NamedTuple):
    """The states on which features are chosen, and the states that are measured.

    The measured states consist of in-distribution states, followed by out-of-distribution states.
    For the bridge of every measured state, a feature is chosen on the states `fit`.

    Attributes:
      bridges: all states at the first position at which the prefix determines the bridge.
      fit: int [fit], indices into `bridges` of the in-distribution states on which features are
        chosen.
      group: int [state], indices into `bridges` of the states to measure.
      other: int [state], the control bridge of each state. The control bridge differs from the
        state's bridge. A feature is chosen for every control bridge.
    """

    bridges: Bridges
    fit: Int[np.ndarray, " fit"]
    group: Int[np.ndarray, " state"]
    other: Int[np.ndarray, " state"]


class Roles(DictionaryInstrument):
    """Measures how often features of bridges are active, in and out of distribution."""

    name = "roles"
    definition = (
        "role_active: the share of states where the feature of their bridge is active. Features "
        "are chosen on half of the facts that training chains use; states are of the other half "
        "(id), and of facts that no chain uses (ood). Null: another bridge's feature. Intervals "
        "are clustered by bridge."
    )
    outputs = {"role_active": ("whose", EXAMPLE)}
    nulls = {"another bridge": {"whose": "another"}}
    group = "role"

    def examples(self, source: ExampleSource) -> Examples:
        """Choose states in and out of distribution, clustered by bridge."""
        return self.of(choose_bridges(source))

    @staticmethod
    def of(bridges: Bridges) -> Examples:
        """Choose the examples from the states `bridges`.

        Raises:
          NotApplicable: all first facts are in distribution, or all are out of distribution.
        """
        if len(set(bridges.in_distribution.tolist())) < 2:
            raise NotApplicable(
                "this instrument compares first facts in distribution with first facts out of "
                "distribution; all first facts of this world are of one kind"
            )
        fit = np.flatnonzero(bridges.in_distribution & ~bridges.second)
        fitted = np.unique(bridges.values[fit])
        known = np.isin(bridges.values, fitted)
        of_role = (bridges.in_distribution & bridges.second, ~bridges.in_distribution)
        groups = [np.flatnonzero(of & known) for of in of_role]
        random, others = np.random.default_rng(_SEED), []
        for group in groups:
            own = bridges.values[group]
            # A shift by at least one place selects another bridge for which a feature is chosen.
            place = np.searchsorted(fitted, own) + random.integers(1, len(fitted), len(own))
            others.append(fitted[place % len(fitted)])
        group = np.concatenate(groups)
        inputs = RoleStates(bridges, fit, group, np.concatenate(others))
        number = np.repeat(np.arange(len(ROLES)), [len(of) for of in groups])
        return Examples(
            inputs, ROLES, number, bridges.values[group], coords={"whose": FEATURE_OWNERS}
        )

    def measure(
        self,
        subject: DictionarySubject,
        shared: Mapping[str, Any],
        encoded: EncodedStates,
        inputs: RoleStates,
    ) -> dict[str, Array]:
        """For each state, measure whether two features are active.

        The first feature is chosen for the state's bridge. The second feature is the null control,
        which is chosen for a different bridge.
        """
        bridges, acts = inputs.bridges, encoded.acts[inputs.bridges.chosen]
        values = jnp.asarray(bridges.values)[inputs.fit]
        feature = best_features(Half(acts[inputs.fit], values), bridges.n_values)
        active = (acts > 0).astype(jnp.float32)
        whose = bridges.values[inputs.group], inputs.other
        return {"role_active": jnp.stack([active[inputs.group, feature[of]] for of in whose])}

    def derived(self, result: xr.Dataset, examples: Examples) -> xr.Dataset:
        """Add the coordinate `role_n`, the numbers of states in and out of distribution."""
        counts = np.bincount(examples.group, minlength=len(ROLES))
        return result.assign_coords(role_n=("group", counts))
